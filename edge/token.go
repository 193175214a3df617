package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wormhole/edge/admin"
	"wormhole/edge/authority"
	"wormhole/edge/cluster"
	"wormhole/edge/cluster/store"
)

// tokens returns where to ask about tokens and keys: the running edge, else the
// data directory itself, which works whether or not an edge runs on it.
func (o *operator) tokens(ctx context.Context) (t admin.Tokens, done func(), err error) {
	client, err := o.connect()
	if err == nil {
		if _, err = client.ListKeys(ctx); err == nil {
			return client, func() {}, nil
		}
	}
	if running(err) || o.addr != "" {
		return nil, nil, err
	}
	if _, err := os.Stat(filepath.Join(o.dataDir, cluster.Folder)); err == nil {
		return nil, nil, errors.New("this edge is one of a cluster, whose state is not in the data directory alone: start it, or ask another edge")
	}
	if err := os.MkdirAll(o.dataDir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("data directory: %w", err)
	}
	dir, err := store.OpenDir(filepath.Join(o.dataDir, "store"))
	if err != nil {
		return nil, nil, err
	}
	a, err := authority.Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	return admin.Local{Authority: a}, func() { _ = dir.Close() }, nil
}

// withTokens runs f with a place to ask.
func (o *operator) withTokens(cmd *cobra.Command, f func(admin.Tokens) error) error {
	t, done, err := o.tokens(cmd.Context())
	if err != nil {
		return err
	}
	defer done()
	return f(t)
}

// asking makes a command that asks something and prints the answer, as JSON or as show
// does.
func asking[T any](op *operator, ask func(cmd *cobra.Command, t admin.Tokens, args []string) (T, error), show func(w io.Writer, answer T) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return op.withTokens(cmd, func(t admin.Tokens) error {
			answer, err := ask(cmd, t, args)
			switch {
			case err != nil:
				return err
			case op.json:
				return printJSON(cmd.OutOrStdout(), answer)
			}
			return show(cmd.OutOrStdout(), answer)
		})
	}
}

// aboutToken asks about one token, which args name or which stands on standard input.
func aboutToken[T any](ask func(t admin.Tokens, ctx context.Context, idOrToken string) (T, error)) func(*cobra.Command, admin.Tokens, []string) (T, error) {
	return func(cmd *cobra.Command, t admin.Tokens, args []string) (answer T, err error) {
		id, err := argOrStdin(cmd, args[0])
		if err != nil {
			return answer, err
		}
		return ask(t, cmd.Context(), id)
	}
}

func newToken() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Issue, list, inspect and revoke the tokens that let apps serve names",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTokenIssue(), newTokenList(), newTokenInspect(), newTokenRevoke())
	return cmd
}

func newTokenIssue() *cobra.Command {
	var (
		op  operator
		req authority.IssueRequest
	)
	cmd := &cobra.Command{
		Use:   "issue --host HOST",
		Short: "Print a new token",
		Long: `Print a new token on standard output and nothing else. Whoever has it may serve
its hosts: keep it as you keep a password. It is not stored and cannot be shown
again; revoke it and issue another one if it is lost.`,
		Example: `  edge token issue --host app.example.com > app.token
  edge token issue --host app.example.com --host '*.app.example.com' --name app --ttl 2160h
  edge token issue --host grpc.example.com --app-protocol h2c --tag tier=gold --data-dir /var/lib/wormhole`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(req.Hosts) == 0 {
				return &configError{errors.New("--host: at least one host is needed, such as --host app.example.com")}
			}
			return op.withTokens(cmd, func(t admin.Tokens) error {
				issued, err := t.IssueToken(cmd.Context(), req)
				if err != nil {
					return &configError{err}
				}
				if op.json {
					return printJSON(cmd.OutOrStdout(), issued)
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), issued.Token)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&req.Hosts, "host", nil, "`host` to serve, exact or *.parent; may be repeated")
	f.DurationVar(&req.TTL, "ttl", authority.DefaultTTL, "how long the token is valid")
	f.StringVar(&req.Name, "name", "", "`name` shown in listings")
	f.StringToStringVar(&req.Tags, "tag", nil, "`k=v` given to every backend of the token; may be repeated")
	f.StringSliceVar(&req.Kinds, "kind", nil, "what it may serve: http (default), tcp, tls")
	f.StringVar(&req.AppProtocol, "app-protocol", "", "what the app speaks: http1 (default) or h2c, as for gRPC")
	f.IntVar(&req.MaxTunnels, "max-tunnels", 0, "most tunnels to one edge; 0 is the edge's default")
	f.IntVar(&req.MaxStreams, "max-streams", 0, "most streams in one tunnel; 0 is the edge's default")
	op.register(cmd, true)
	return cmd
}

func newTokenList() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the issued tokens",
		Args:  cobra.NoArgs,
		RunE: asking(&op, func(cmd *cobra.Command, t admin.Tokens, _ []string) ([]authority.TokenInfo, error) {
			return t.List(cmd.Context())
		}, func(out io.Writer, list []authority.TokenInfo) error {
			w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tNAME\tSTATUS\tHOSTS\tEXPIRES")
			for _, i := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", i.ID, i.Name, i.Status, joinShort(i.Hosts), i.ExpiresAt.Local().Format(time.DateTime))
			}
			return w.Flush()
		}),
	}
	op.register(cmd, true)
	return cmd
}

func newTokenInspect() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:     "inspect ID|TOKEN|-",
		Short:   "Show what a token may do and what it is worth now",
		Long:    "Show what a token may do and what it is worth now. With - the token is read from\nstandard input, so that it appears neither in the history nor in the process list.",
		Example: "  edge token inspect - < app.token\n  edge token inspect 3f7c --json",
		Args:    cobra.ExactArgs(1),
		RunE:    asking(&op, aboutToken(admin.Tokens.Inspect), printToken),
	}
	op.register(cmd, true)
	return cmd
}

func newTokenRevoke() *cobra.Command {
	var op operator
	cmd := &cobra.Command{
		Use:     "revoke ID|NAME|-",
		Short:   "Take a token back; its live tunnels are closed within two seconds",
		Example: "  edge token revoke 3f7c\n  edge token revoke - < app.token",
		Args:    cobra.ExactArgs(1),
		RunE: asking(&op, aboutToken(admin.Tokens.Revoke), func(out io.Writer, i authority.TokenInfo) error {
			_, err := fmt.Fprintf(out, "revoked %s %s\n", i.ID, i.Name)
			return err
		}),
	}
	op.register(cmd, true)
	return cmd
}

func printToken(out io.Writer, i authority.Inspection) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	row("id", i.ID)
	row("name", i.Name)
	row("status", string(i.Status))
	row("hosts", strings.Join(i.Hosts, ", "))
	row("kinds", strings.Join(i.Kinds, ", "))
	row("app protocol", i.AppProtocol)
	for k, v := range i.Tags {
		row("tag", k+"="+v)
	}
	row("issued", i.IssuedAt.Local().Format(time.DateTime))
	row("expires", i.ExpiresAt.Local().Format(time.DateTime))
	row("key", i.KeyID)
	if !i.RevokedAt.IsZero() {
		row("revoked", i.RevokedAt.Local().Format(time.DateTime))
	}
	return w.Flush()
}
