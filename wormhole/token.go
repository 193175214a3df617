package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"wormhole/shared/token"
)

// maxToken is the most bytes of a token file; a token is smaller.
const maxToken = 8 << 10

// readToken reads the token from a file.
func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	switch {
	case err != nil:
		return "", err
	case len(text) > maxToken:
		return "", fmt.Errorf("%s is longer than %d bytes, which no token is", path, maxToken)
	}
	raw := strings.TrimSpace(string(text))
	if raw == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return raw, nil
}

// errExpired is a token that no edge will accept any more.
var errExpired = errors.New("the token has expired")

// checkToken looks at a token as far as one can without keys. An expired one is
// errExpired; other errors mean that it is not a token at all.
func checkToken(raw string, now time.Time) error {
	t, err := token.Peek(raw)
	if err != nil {
		return err
	}
	if !t.ExpiresAt.IsZero() && now.After(t.ExpiresAt.Add(time.Minute)) {
		return fmt.Errorf("%w on %s, and by this machine's clock it is %s: issue a new token, unless the clock is wrong",
			errExpired, t.ExpiresAt.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// tokenInterval is how often a token file is looked at.
const tokenInterval = 2 * time.Second

// watchToken hands the token to replace whenever the file has another one, until
// ctx ends. It compares contents: the files of Kubernetes and of secret managers
// change by renaming, and times may stand still.
func watchToken(ctx context.Context, path, current string, replace func(string), logger *slog.Logger) {
	tick := time.NewTicker(tokenInterval)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		raw, err := readToken(path)
		if err == nil && raw != current {
			err = checkToken(raw, time.Now())
		}
		if err != nil {
			if !failed {
				logger.Warn("token file cannot be used, the old token stays", "err", err)
			}
			failed = true
			continue
		}
		failed = false
		if raw != current {
			logger.Info("token file has a new token")
			current = raw
			replace(raw)
		}
	}
}
