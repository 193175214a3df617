package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wormhole/edge/admin"
	"wormhole/edge/authority"
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
		RunE: asking(&op, func(cmd *cobra.Command, t admin.Tokens, _ []string) ([]authority.KeyInfo, error) {
			return t.ListKeys(cmd.Context())
		}, func(out io.Writer, keys []authority.KeyInfo) error {
			w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tACTIVE\tTOKENS\tCREATED")
			for _, k := range keys {
				fmt.Fprintf(w, "%s\t%t\t%d\t%s\n", k.ID, k.Active, k.Tokens, k.CreatedAt.Local().Format(time.DateTime))
			}
			return w.Flush()
		}),
	}
	op.register(list, true)
	var rop operator
	rotate := &cobra.Command{
		Use:   "rotate",
		Short: "Sign new tokens with a new key; tokens of the older keys stay valid",
		Args:  cobra.NoArgs,
		RunE: asking(&rop, func(cmd *cobra.Command, t admin.Tokens, _ []string) (authority.KeyInfo, error) {
			return t.Rotate(cmd.Context())
		}, func(out io.Writer, k authority.KeyInfo) error {
			_, err := fmt.Fprintln(out, k.ID)
			return err
		}),
	}
	rop.register(rotate, true)
	var dop operator
	remove := &cobra.Command{
		Use:   "remove ID",
		Short: "Remove a key and with it every token that it signed",
		Args:  cobra.ExactArgs(1),
		RunE: asking(&dop, func(cmd *cobra.Command, t admin.Tokens, args []string) (authority.KeyInfo, error) {
			return t.RemoveKey(cmd.Context(), args[0])
		}, func(out io.Writer, k authority.KeyInfo) error {
			_, err := fmt.Fprintf(out, "removed %s and with it %d tokens\n", k.ID, k.Tokens)
			return err
		}),
	}
	dop.register(remove, true)
	cmd.AddCommand(list, rotate, remove)
	return cmd
}
