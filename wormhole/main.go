package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"
)

// Exit statuses that are not the app's own; sysexits.h has the names.
const (
	exitStartTimeout = 75 // EX_TEMPFAIL
	exitRefused      = 77 // EX_NOPERM
	exitConfig       = 78 // EX_CONFIG
)

func main() {
	os.Exit(run(os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr))
}

// run does what the command line says and returns the exit status.
func run(args []string, env environment, stdout, stderr io.Writer) int {
	inv, faults := parseArgs(args)
	switch {
	case inv.help:
		printHelp(stdout)
		return 0
	case inv.version:
		printVersion(stdout)
		return 0
	case inv.health && len(faults) == 0:
		return probe(stdout)
	}
	values := resolve(inv.flags, env)
	cfg, more := load(values, env, inv.command)
	faults = append(faults, more...)
	if inv.showConfig {
		printConfig(stdout, values, cfg)
	}
	status := exitConfig
	if cfg.token != "" {
		if err := checkToken(cfg.token, time.Now()); err != nil {
			if errors.Is(err, errExpired) && len(faults) == 0 && !inv.showConfig {
				status = exitRefused
			}
			faults = append(faults, fmt.Errorf("token: %w", err))
		}
	}
	if len(faults) > 0 {
		printFaults(stderr, faults)
		return status
	}
	if inv.showConfig {
		return 0
	}
	hideToken()
	return serve(cfg, newLogger(cfg, stderr))
}

func printFaults(w io.Writer, faults []error) {
	if len(faults) == 1 {
		_, _ = fmt.Fprintf(w, "wormhole: %v\n", faults[0])
		return
	}
	_, _ = fmt.Fprintf(w, "wormhole: %d faults in the configuration:\n", len(faults))
	for _, f := range faults {
		_, _ = fmt.Fprintf(w, "  %v\n", f)
	}
}

// newLogger logs to w: as text if it is a terminal, else as JSON.
func newLogger(cfg *config, w io.Writer) *slog.Logger {
	format := cfg.logFormat
	if format == "" {
		format = "json"
		if f, ok := w.(*os.File); ok {
			if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
				format = "text"
			}
		}
	}
	options := &slog.HandlerOptions{Level: cfg.logLevel}
	if format == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}
