package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// command runs a subcommand of the edge's own program and returns what it printed.
func (e *Edge) command(ctx context.Context, input string, args ...string) (output []byte, err error) {
	command := exec.CommandContext(ctx, e.bin.Edge, args...)
	command.Stdin = strings.NewReader(input)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	err = e.place.do(func() error {
		output, err = command.Output()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("edge %s: %w: %s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return output, nil
}

// Token issues a token for the hosts through the edge's own command.
func (e *Edge) Token(ctx context.Context, hosts ...string) (string, error) {
	args := []string{"token", "issue", "--data-dir", e.DataDir}
	for _, host := range hosts {
		args = append(args, "--host", host)
	}
	token, err := e.command(ctx, "", args...)
	return strings.TrimSpace(string(token)), err
}

// ApplySites puts the rules in text, as YAML, into force.
func (e *Edge) ApplySites(ctx context.Context, text string) error {
	_, err := e.command(ctx, text, "site", "apply", "--data-dir", e.DataDir, "-f", "-")
	return err
}

// Backends is how many backends are live.
func (e *Edge) Backends(ctx context.Context) (int, error) {
	output, err := e.command(ctx, "", "status", "--json", "--data-dir", e.DataDir)
	if err != nil {
		return 0, err
	}
	var status struct {
		Backends []json.RawMessage `json:"backends"`
	}
	if err := json.Unmarshal(output, &status); err != nil {
		return 0, fmt.Errorf("edge status: %w", err)
	}
	return len(status.Backends), nil
}

// AwaitTunnels returns when n backends are live, and fails after two minutes.
func (e *Edge) AwaitTunnels(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return poll(ctx, e.process, func() error {
		got, err := e.Backends(ctx)
		if err == nil && got < n {
			err = fmt.Errorf("%d of %d backends are live", got, n)
		}
		if err != nil { // asking costs the edge something, too
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		return err
	})
}
