package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"wormhole/edge/config"
	"wormhole/edge/handover"
	"wormhole/edge/node"
)

func newServe() *cobra.Command {
	cfg := config.Default()
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run one edge node",
		Long: `Run one edge node. Every flag is also a key of the --config file (some-name is
some_name) and a variable (EDGE_SOME_NAME); a flag wins over the variable, and
the variable over the file.

SIGTERM and SIGINT drain the node: agents are told to go elsewhere, requests in
flight finish within --drain-timeout. A second signal stops it at once.

SIGUSR2 upgrades in place: the program on disk is started with the same arguments
and takes over the open sockets; when it serves, this process drains. Nobody is
refused. If the new program does not come up, this one goes on.`,
		Example: `  edge serve --hostname edge1.example.com --acme-email ops@example.com
  edge serve --hostname edge1.example.com --tls files --cert fullchain.pem --key key.pem
  edge serve --config /etc/wormhole/edge.yaml
  edge serve --hostname fra.example.com --dns 203.0.113.2:53 --dns-zone edge.example.com --dns-address 203.0.113.2
  EDGE_HTTPS=:8443 EDGE_HTTP= edge serve --data-dir ./data`,
		Args: cobra.NoArgs,
	}
	cfg.Register(cmd.Flags())
	config.DeferFaults(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := cfg.Load(cmd.Flags(), os.LookupEnv); err != nil {
			return &configError{err}
		}
		// Whoever reads the log may go, and an edge must not go with it: a write then
		// fails like any other.
		signal.Ignore(syscall.SIGPIPE)
		logger := newLogger(os.Stderr, &cfg)
		inherited, err := handover.Inherited()
		if err != nil {
			return err
		}
		n, err := node.Succeed(cmd.Context(), cfg, version, inherited, logger)
		if err != nil {
			return &configError{err}
		}
		stop := upgradeOnSignal(n, logger)
		defer stop()
		return runNode(cmd.Context(), n)
	}
	return cmd
}
