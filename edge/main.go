// Command edge is one node of the edge network, and the operator's command line
// for it: it parses, builds, waits and exits; what happens is in the packages.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"wormhole/edge/config"
	"wormhole/edge/node"
	"wormhole/shared/cores"
	"wormhole/shared/memory"
)

// version is set by the linker.
var version = "dev"

// Exit statuses, after sysexits.h.
const (
	exitFailure = 1
	exitConfig  = 78 // EX_CONFIG: flags, keys, files or addresses that cannot work
)

// configError is an error that another try with the same settings cannot heal.
type configError struct{ err error }

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

func main() {
	// Nobody can ask this process for a profile of its heap, and one that is kept takes
	// more than half a MiB.
	runtime.MemProfileRate = 0
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	printError(stderr, err)
	var bad *configError
	if errors.As(err, &bad) {
		return exitConfig
	}
	return exitFailure
}

// printError lists joined errors one a line.
func printError(w io.Writer, err error) {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	if len(lines) == 1 {
		fmt.Fprintln(w, "edge:", lines[0])
		return
	}
	fmt.Fprintf(w, "edge: %d faults\n", len(lines))
	for _, l := range lines {
		fmt.Fprintln(w, "  -", l)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "edge",
		Short: "A node of the Wormhole edge network, and its command line",
		Long: `edge ends TLS for your sites and hands requests to the apps behind them, over
the tunnels that wormhole agents keep open to it.`,
		Example: `  edge dev                                   try everything on this machine
  edge serve --hostname edge1.example.com    run a node
  edge token issue --host app.example.com    let an app serve a name
  edge status                                see what is live`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &configError{fmt.Errorf("%w (see `%s --help`)", err, cmd.CommandPath())}
	})
	root.AddCommand(newServe(), newDev(), newToken(), newKey(), newSite(), newCert(), newUsage(), newStatus(), newCluster(), newBackup(), newRestore(), newDrain(), newVersion())
	return root
}

// heapRoom is how much an edge may allocate between two visits of the collector,
// however small its heap is: each visit costs as much as hundreds of requests.
const heapRoom = 16 << 20

// runNode runs n until ctx ends, and keeps the process as small as its work allows.
func runNode(ctx context.Context, n *node.Node) error {
	beside, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { memory.Run(beside, heapRoom) })
	running.Go(func() { cores.Run(beside) })
	defer running.Wait()
	defer stop()
	return n.Run(ctx)
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version) },
	}
}

// newLogger writes to w as the configuration says. cfg must be valid.
func newLogger(w io.Writer, cfg *config.Config) *slog.Logger {
	level, _ := cfg.Level()
	opt := &slog.HandlerOptions{Level: level}
	text := cfg.LogFormat == "text"
	if f, ok := w.(*os.File); ok && cfg.LogFormat == "" {
		text = term.IsTerminal(int(f.Fd()))
	}
	if text {
		return slog.New(slog.NewTextHandler(w, opt))
	}
	return slog.New(slog.NewJSONHandler(w, opt))
}
