package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"wormhole/edge/admin"
	"wormhole/edge/site"
)

func newSite() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "site",
		Short: "List, show, apply and delete the rules of sites",
		Long: `A site needs no rules: it exists as soon as an agent with a valid token serves
its host. Rules change how its requests are treated.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSiteList(), newSiteShow(), newSiteApply(), newSiteDelete(), newSiteValidate())
	return cmd
}

func newSiteList() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the sites",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			var sites []admin.Site
			if err := client.Call(cmd.Context(), http.MethodGet, "/v1/sites", nil, &sites); err != nil {
				return err
			}
			if op.json {
				return printJSON(cmd.OutOrStdout(), sites)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "HOST\tBACKENDS\tIN FLIGHT\tRULES")
			for _, s := range sites {
				rules := "default"
				if s.Configured {
					rules = "applied"
				}
				fmt.Fprintf(w, "%s\t%d\t%d\t%s\n", s.Host, s.Backends, s.InFlight, rules)
			}
			return w.Flush()
		},
	}
	op.register(cmd, true)
	return cmd
}

func newSiteShow() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "show HOST",
		Short: "Show the rules that were applied to a site",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			var spec map[string]any
			if err := client.Call(cmd.Context(), http.MethodGet, "/v1/sites/"+url.PathEscape(args[0]), nil, &spec); err != nil {
				return err
			}
			if op.json {
				return printJSON(cmd.OutOrStdout(), spec)
			}
			text, err := yaml.Marshal(spec)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	op.register(cmd, true)
	return cmd
}

func newSiteApply() *cobra.Command {
	var (
		op   operator
		file string
	)
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Put rules into force, at once and for good",
		Long: `Put rules into force from a YAML or JSON file with one site a document. All are
applied or, if one has a fault, none. Requests and streams that run are untouched.`,
		Example: `  edge site apply -f site.yaml
  printf 'host: db.example.com\ntcp: 5432\n' | edge site apply -f -
  printf 'host: app.example.com\nbackend_header: X-Internal-Service\n' | edge site apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := readFileOrStdin(cmd, file)
			if err != nil {
				return &configError{err}
			}
			if _, err := site.ParseAll(text); err != nil {
				return &configError{err}
			}
			client, err := op.connect()
			if err != nil {
				return err
			}
			var specs []map[string]any
			if err := client.Send(cmd.Context(), http.MethodPost, "/v1/sites", "application/yaml", bytes.NewReader(text), &specs); err != nil {
				return err
			}
			if op.json {
				return printJSON(cmd.OutOrStdout(), specs)
			}
			for _, s := range specs {
				fmt.Fprintf(cmd.OutOrStdout(), "applied %s\n", s["host"])
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "-", "`file` to read, - for standard input")
	op.register(cmd, true)
	return cmd
}

func newSiteDelete() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "delete HOST",
		Short: "Withdraw a site's rules, and forget the site if nobody serves it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := op.connect()
			if err != nil {
				return err
			}
			return client.Call(cmd.Context(), http.MethodDelete, "/v1/sites/"+url.PathEscape(args[0]), nil, nil)
		},
	}
	op.register(cmd, false)
	return cmd
}

func newSiteValidate() *cobra.Command {
	var (
		file   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "validate -f FILE",
		Short: "Check rules without applying them; needs no running edge",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := readFileOrStdin(cmd, file)
			if err != nil {
				return &configError{err}
			}
			specs, err := site.ParseAll(text)
			if err != nil {
				return &configError{err}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), specs)
			}
			for _, s := range specs {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", s.Host)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "-", "`file` to read, - for standard input")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// argOrStdin is the argument, or the text of standard input if it is "-".
func argOrStdin(cmd *cobra.Command, arg string) (string, error) {
	if arg != "-" {
		return arg, nil
	}
	text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), admin.MaxBody))
	if err != nil {
		return "", fmt.Errorf("read standard input: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

func readFileOrStdin(cmd *cobra.Command, file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(io.LimitReader(cmd.InOrStdin(), admin.MaxBody))
	}
	return os.ReadFile(file)
}
