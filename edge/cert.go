package main

import (
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wormhole/edge/admin"
)

func newCert() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "See the certificates that the edge orders, and have one ordered again",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCertList(), newCertRetry())
	return cmd
}

func newCertList() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List hosts, their certificates, and what is wrong with an order",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			var list []admin.Certificate
			if err := client.Call(cmd.Context(), http.MethodGet, "/v1/certificates", nil, &list); err != nil {
				return err
			}
			if op.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			when := func(t *time.Time) string {
				if t == nil {
					return "-"
				}
				return t.Local().Format(time.DateTime)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "HOST\tSTATE\tEXPIRES\tISSUER\tSERIAL\tNEXT\tERROR")
			for _, c := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Host, c.State, when(c.NotAfter),
					orDash(c.Issuer), orDash(c.Serial), when(c.NextTry), orDash(c.LastError))
			}
			return w.Flush()
		},
	}
	op.register(cmd, true)
	return cmd
}

func newCertRetry() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "retry HOST",
		Short: "Order again now for a host whose orders failed, after its cause was mended",
		Long: `Forget the failed orders for a host and order again now: for instance after its
name was pointed at this edge in DNS. An entry of the certificate store that is
damaged is removed. A certificate in good order stays.`,
		Example: "  edge cert retry app.example.com",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			return client.Call(cmd.Context(), http.MethodPost, "/v1/certificates/"+url.PathEscape(args[0])+"/retry", nil, nil)
		},
	}
	op.register(cmd, false)
	return cmd
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
