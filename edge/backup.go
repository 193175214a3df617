package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"wormhole/edge/admin"
	"wormhole/edge/backup"
	"wormhole/edge/config"
	"wormhole/edge/node"
)

// backedUp is what `edge backup --json` prints, and restored `edge restore --json`.
type backedUp struct {
	File      string    `json:"file"`
	Created   time.Time `json:"created"`
	Node      string    `json:"node"`
	Entries   int       `json:"entries"`
	Bytes     int       `json:"bytes"`
	SHA256    string    `json:"sha256"`
	Encrypted bool      `json:"encrypted"`
}

type restored struct {
	DataDir string    `json:"data_dir"`
	Created time.Time `json:"created"`
	Node    string    `json:"node"`
	Entries int       `json:"entries"`
	// Aside is where --force moved what was there.
	Aside string `json:"set_aside,omitempty"`
}

// keptIn are the flags of both commands.
type keptIn struct {
	op       operator
	storeDir string
	passFile string
}

func (k *keptIn) register(cmd *cobra.Command) {
	k.op.register(cmd, true)
	cmd.Flags().StringVar(&k.storeDir, "store-dir", os.Getenv(config.EnvPrefix+"STORE_DIR"), "`directory` of the durable store if it is not inside --data-dir")
	cmd.Flags().StringVar(&k.passFile, "passphrase-file", "", "`file` whose first line encrypts the backup")
}

func (k *keptIn) passphrase() (string, error) {
	if k.passFile == "" {
		return "", nil
	}
	text, err := os.ReadFile(k.passFile)
	if err != nil {
		return "", &configError{fmt.Errorf("--passphrase-file: %w", err)}
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimSuffix(line, "\r"); len(line) < backup.MinPassphrase {
		return "", &configError{fmt.Errorf("--passphrase-file: its first line has %d bytes, and %d are the least", len(line), backup.MinPassphrase)}
	}
	return line, nil
}

func newBackup() *cobra.Command {
	var (
		k   keptIn
		out string
	)
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Put everything durable into one file: certificates, accounts, keys, tokens, sites, members",
		Long: `Put everything durable into one file: certificates and the account with their CA,
signing keys, issued and revoked tokens, sites, and in a cluster its members and
their authority. It works while the edge runs and when it does not; in a cluster
any edge has everything.

The file holds private keys and is readable by its owner only. With
--passphrase-file it is encrypted, in a format that the age program opens too.`,
		Example: `  edge backup --out edge.backup
  edge backup --out edge.backup --passphrase-file backup.pass
  edge backup --out - | age -r age1... > edge.backup.age`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pass, err := k.passphrase()
			if err != nil {
				return err
			}
			a, err := k.take(cmd.Context())
			if err != nil {
				return err
			}
			text, err := sealed(a, pass)
			if err != nil {
				return err
			}
			if out == "" {
				out = "edge-" + a.Created.Format("20060102T150405Z") + ".backup"
			}
			if out == "-" {
				if f, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
					return &configError{errors.New("--out -: standard output is a terminal, and a backup holds private keys: name a file")}
				}
				_, err := cmd.OutOrStdout().Write(text)
				return err
			}
			if err := replaceFile(out, text); err != nil {
				return err
			}
			sum := sha256.Sum256(text)
			if k.op.json {
				return printJSON(cmd.OutOrStdout(), backedUp{out, a.Created, a.Node, len(a.Entries), len(text), hex.EncodeToString(sum[:]), pass != ""})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d entries, %d bytes\n", out, len(a.Entries), len(text))
			if pass == "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "edge: it holds private keys in the clear; --passphrase-file encrypts them")
			}
			return nil
		},
	}
	k.register(cmd)
	cmd.Flags().StringVar(&out, "out", "", "`file` to write, - for standard output; empty is a new one here, named after the time")
	return cmd
}

// take asks the edge that runs, else reads its directory.
func (k *keptIn) take(ctx context.Context) (*backup.Archive, error) {
	client, err := k.op.connect()
	if err == nil {
		var a *backup.Archive
		if a, err = client.Backup(ctx); err == nil {
			return a, nil
		}
	}
	if running(err) || k.op.addr != "" {
		return nil, err
	}
	return node.BackupOf(ctx, k.op.dataDir, k.storeDir, version)
}

func sealed(a *backup.Archive, pass string) ([]byte, error) {
	var b bytes.Buffer
	if pass == "" {
		err := a.Write(&b)
		return b.Bytes(), err
	}
	w, err := backup.Seal(&b, pass)
	if err != nil {
		return nil, err
	}
	err = errors.Join(a.Write(w), w.Close())
	return b.Bytes(), err
}

// replaceFile puts a whole file with mode 0600 in the place of path.
func replaceFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // renamed, if all went well
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func newRestore() *cobra.Command {
	var (
		k     keptIn
		force bool
	)
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a data directory of a backup; - reads it from standard input",
		Long: `Make a data directory of a backup. The file is checked as a whole first, and one
that was damaged or is something else changes nothing. No edge may be running on
the directory, and it must be empty: --force moves what is there into a folder
before-restore-TIME.

The backup of a cluster makes its first edge anew, which hosts the store: stop the
edges that hosted it, and start this one with --cluster-listen and without --join,
under the address that edge had. The other edges find it and follow.`,
		Example: "  edge restore edge.backup --data-dir /var/lib/wormhole\n  edge restore edge.backup --passphrase-file backup.pass",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pass, err := k.passphrase()
			if err != nil {
				return err
			}
			a, err := openBackup(cmd.InOrStdin(), args[0], pass)
			if err != nil {
				return err
			}
			if err := k.op.nobodyRuns(cmd.Context()); err != nil {
				return err
			}
			aside, err := a.Restore(cmd.Context(), backup.Target{DataDir: k.op.dataDir, StoreDir: k.storeDir, Force: force})
			if err != nil {
				if aside != "" {
					err = fmt.Errorf("%w (what was there is in %s)", err, aside)
				}
				return err
			}
			if k.op.json {
				return printJSON(cmd.OutOrStdout(), restored{k.op.dataDir, a.Created, a.Node, len(a.Entries), aside})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is the edge %s as of %s, with %d entries\n", k.op.dataDir, a.Node, a.Created.Local().Format(time.DateTime), len(a.Entries))
			if aside != "" {
				fmt.Fprintln(cmd.OutOrStdout(), "what was there is in", aside)
			}
			return nil
		},
	}
	k.register(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "set aside what the directory holds")
	return cmd
}

func openBackup(stdin io.Reader, path, pass string) (*backup.Archive, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, &configError{err}
		}
		defer f.Close() // read only
		in = f
	}
	a, err := backup.Open(in, pass)
	switch {
	case errors.Is(err, backup.ErrSealed):
		return nil, &configError{fmt.Errorf("%s: %w (--passphrase-file)", path, err)}
	case err != nil:
		return nil, &configError{fmt.Errorf("%s: %w", path, err)}
	}
	return a, nil
}

// nobodyRuns errs if an edge runs on the data directory, or may.
func (o *operator) nobodyRuns(ctx context.Context) error {
	client, err := o.connect()
	if err == nil {
		var status admin.Status
		err = client.Call(ctx, "GET", "/v1/status", nil, &status)
	}
	switch {
	case err == nil:
		return fmt.Errorf("an edge is running on %s: stop it first", o.dataDir)
	case running(err):
		return fmt.Errorf("an edge seems to be running on %s: stop it first (%w)", o.dataDir, err)
	}
	return nil
}
