package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	"wormhole/edge/admin"
	"wormhole/edge/config"
)

// operator is how a subcommand reaches the edge it is about.
type operator struct {
	dataDir string
	addr    string
	json    bool
}

// register defines the flags that every operator's command has; listing says
// whether the command prints something that programs may want to read.
func (o *operator) register(cmd *cobra.Command, listing bool) {
	dir := config.DefaultDataDir()
	if v := os.Getenv(config.EnvPrefix + "DATA_DIR"); v != "" {
		dir = v
	}
	cmd.Flags().StringVar(&o.dataDir, "data-dir", dir, "`directory` of the edge")
	cmd.Flags().StringVar(&o.addr, "admin", "", "`address` of the edge's API; empty is read from the data directory")
	if listing {
		cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	}
}

// connect returns a client of the edge running on the data directory.
func (o *operator) connect() (*admin.Client, error) {
	return admin.Connect(o.dataDir, o.addr)
}

// running reports whether err says that there is no edge to ask.
func running(err error) bool { return !errors.Is(err, admin.ErrNotRunning) }

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
