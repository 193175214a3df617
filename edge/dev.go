package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wormhole/edge/authority"
	"wormhole/edge/config"
	"wormhole/edge/node"
)

// devHost is the site that the printed lines use.
const devHost = "app.localhost"

func newDev() *cobra.Command {
	cfg := config.Default()
	cfg.DataDir = ""
	cfg.HTTPS, cfg.HTTP, cfg.Admin = "127.0.0.1:8443", "127.0.0.1:8080", "127.0.0.1:7080"
	cfg.Hostname = "localhost"
	cfg.TLS = config.TLSInternal
	cfg.DrainDelay, cfg.DrainTimeout = 0, 5*time.Second
	cfg.LogLevel = "warn"
	cfg.AccessLog = "off"
	cfg.BackendHeader = "X-Backend"
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Try everything on this machine: no root, no internet, nothing to configure",
		Long: `Run an edge for this machine only: a certificate authority of its own, a token
for *.localhost, and the exact line printed that puts an app behind it. Ports that
are taken are replaced by the next free ones. Its state is in a temporary folder
that goes when it stops, unless --data-dir names one that stays.`,
		Example: "  edge dev\n  edge dev --data-dir ./dev --access-log -",
		Args:    cobra.NoArgs,
	}
	cfg.Register(cmd.Flags())
	config.DeferFaults(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		taken := func(flag string) bool { // whether the operator chose the address
			_, env := os.LookupEnv(config.EnvPrefix + strings.ToUpper(flag))
			return cmd.Flags().Changed(flag) || env
		}
		if !taken("https") {
			cfg.HTTPS = nextFree(cfg.HTTPS, true)
		}
		if !taken("http") {
			cfg.HTTP = nextFree(cfg.HTTP, false)
		}
		if !taken("admin") {
			cfg.Admin = nextFree(cfg.Admin, false)
		}
		_, env := os.LookupEnv(config.EnvPrefix + "DATA_DIR")
		if !cmd.Flags().Changed("data-dir") && !env {
			if cfg.DataDir, err = os.MkdirTemp("", "wormhole-dev-"); err != nil {
				return err
			}
			defer os.RemoveAll(cfg.DataDir) // a leftover of a temporary folder is no failure
		}
		if err := cfg.Load(cmd.Flags(), os.LookupEnv); err != nil {
			return &configError{err}
		}
		n, err := node.New(cmd.Context(), cfg, version, newLogger(os.Stderr, &cfg))
		if err != nil {
			return &configError{err}
		}
		tokenFile := filepath.Join(cfg.DataDir, "dev.token")
		issued, err := n.Authority().IssueToken(cmd.Context(), authority.IssueRequest{
			Hosts: []string{"*.localhost"}, Name: "dev", TTL: 30 * 24 * time.Hour, IssuedBy: "edge dev",
		})
		if err != nil {
			return err
		}
		if err := os.WriteFile(tokenFile, []byte(issued.Token+"\n"), 0o600); err != nil {
			return err
		}
		go func() { // ends with the node
			<-n.Opened()
			printDev(cmd.OutOrStdout(), n, tokenFile)
		}()
		return runNode(cmd.Context(), n)
	}
	return cmd
}

func printDev(w io.Writer, n *node.Node, tokenFile string) {
	addrs := n.Status().Addresses
	_, port, _ := net.SplitHostPort(addrs["https"])
	url := "https://" + net.JoinHostPort(devHost, port) + "/"
	fmt.Fprintf(w, `The edge is running, for this machine only. Put an app behind it:

  WORMHOLE_TOKEN_FILE=%s WORMHOLE_EDGE=%s WORMHOLE_CA_FILE=%s WORMHOLE_HOST=%s %s node index.js

as often as you like, each copy with a PORT of its own, and ask:

  curl --cacert %s %s

Backends live: http://%s/ (credential in %s)
`, tokenFile, net.JoinHostPort("localhost", port), n.CAFile(), devHost, agentCommand(),
		n.CAFile(), url, addrs["admin"], filepath.Join(filepath.Dir(tokenFile), "admin.token"))
}

// agentCommand is how the agent is called here: by its name if that is found, else by
// the path of the one that lies beside this program.
func agentCommand() string {
	const name = "wormhole"
	if _, err := exec.LookPath(name); err == nil {
		return name
	}
	self, err := os.Executable()
	if err != nil {
		return name
	}
	beside := filepath.Join(filepath.Dir(self), name)
	if info, err := os.Stat(beside); err != nil || !info.Mode().IsRegular() {
		return name
	}
	if dir, err := os.Getwd(); err == nil {
		if short, err := filepath.Rel(dir, beside); err == nil && filepath.IsLocal(short) {
			return "." + string(filepath.Separator) + short
		}
	}
	return beside
}

// nextFree is addr, or the same with the next port up that nobody listens on.
func nextFree(addr string, udp bool) string {
	host, portText, _ := net.SplitHostPort(addr)
	first, _ := strconv.Atoi(portText)
	for port := first; port < first+100; port++ {
		candidate := net.JoinHostPort(host, strconv.Itoa(port))
		l, err := net.Listen("tcp", candidate)
		if err != nil {
			continue
		}
		_ = l.Close()
		if udp {
			p, err := net.ListenPacket("udp", candidate)
			if err != nil {
				continue
			}
			_ = p.Close()
		}
		return candidate
	}
	return addr
}
