package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wormhole/edge/admin"
)

func newKey() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "List and rotate the keys that sign tokens",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var op operator
	list := &cobra.Command{
		Use:   "list",
		Short: "List the signing keys",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return op.withTokens(cmd, func(t admin.Tokens) error {
				keys, err := t.ListKeys(cmd.Context())
				if err != nil {
					return err
				}
				if op.json {
					return printJSON(cmd.OutOrStdout(), keys)
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tACTIVE\tTOKENS\tCREATED")
				for _, k := range keys {
					fmt.Fprintf(w, "%s\t%t\t%d\t%s\n", k.ID, k.Active, k.Tokens, k.CreatedAt.Local().Format(time.DateTime))
				}
				return w.Flush()
			})
		},
	}
	op.register(list, true)
	var rop operator
	rotate := &cobra.Command{
		Use:   "rotate",
		Short: "Sign new tokens with a new key; tokens of the older keys stay valid",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return rop.withTokens(cmd, func(t admin.Tokens) error {
				k, err := t.Rotate(cmd.Context())
				if err != nil {
					return err
				}
				if rop.json {
					return printJSON(cmd.OutOrStdout(), k)
				}
				fmt.Fprintln(cmd.OutOrStdout(), k.ID)
				return nil
			})
		},
	}
	rop.register(rotate, true)
	var dop operator
	remove := &cobra.Command{
		Use:   "remove ID",
		Short: "Remove a key and with it every token that it signed",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return dop.withTokens(cmd, func(t admin.Tokens) error {
				k, err := t.RemoveKey(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if dop.json {
					return printJSON(cmd.OutOrStdout(), k)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "removed %s and with it %d tokens\n", k.ID, k.Tokens)
				return nil
			})
		},
	}
	dop.register(remove, true)
	cmd.AddCommand(list, rotate, remove)
	return cmd
}
