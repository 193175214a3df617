package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrNotRunning is returned by Connect when no edge runs on the data directory.
var ErrNotRunning = errors.New("no edge is running on this data directory")

// Client calls the API of a running edge. It may be used concurrently.
type Client struct {
	base       string
	credential string
	http       *http.Client
}

// Connect finds the edge that runs on dataDir by the files it keeps there. A
// non-empty addr (host:port) overrides where it listens.
func Connect(dataDir, addr string) (*Client, error) {
	text, err := os.ReadFile(filepath.Join(dataDir, CredentialFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (%s has no %s): start one with `edge serve`, or name its directory with --data-dir", ErrNotRunning, dataDir, CredentialFile)
	} else if err != nil {
		return nil, fmt.Errorf("read the edge's credential: %w", err)
	}
	if addr == "" {
		at, err := os.ReadFile(filepath.Join(dataDir, AddressFile))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w (%s has no %s)", ErrNotRunning, dataDir, AddressFile)
		} else if err != nil {
			return nil, fmt.Errorf("read the edge's admin address: %w", err)
		}
		addr = strings.TrimSpace(string(at))
	}
	return &Client{
		base:       "http://" + addr,
		credential: strings.TrimSpace(string(text)),
		http:       &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{Proxy: nil}},
	}, nil
}

// Patient is the client for a call that may take as long as d.
func (c *Client) Patient(d time.Duration) *Client {
	patient := *c
	patient.http = &http.Client{Timeout: d, Transport: c.http.Transport}
	return &patient
}

// Call sends in as JSON (nil for none) and reads the answer into out (nil to drop
// it). An answer that is not a success is an *Error; an edge that is gone is
// ErrNotRunning.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	if in == nil {
		return c.Send(ctx, method, path, "", nil, out)
	}
	text, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return c.Send(ctx, method, path, "application/json", bytes.NewReader(text), out)
}

// Send is Call with a body of any type; an empty contentType means no body.
func (c *Client) Send(ctx context.Context, method, path, contentType string, body io.Reader, out any) error {
	return c.receive(ctx, method, path, contentType, body, func(answer io.Reader) error {
		if out == nil {
			return nil
		}
		return json.NewDecoder(answer).Decode(out)
	})
}

// receive is Send for answers of any kind.
func (c *Client) receive(ctx context.Context, method, path, contentType string, body io.Reader, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.credential)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		var wrapped struct {
			Error *Error `json:"error"`
		}
		text, _ := io.ReadAll(io.LimitReader(resp.Body, MaxBody))
		if json.Unmarshal(text, &wrapped) != nil || wrapped.Error == nil {
			return fmt.Errorf("the edge answered %s to %s %s", resp.Status, method, path)
		}
		wrapped.Error.Status = resp.StatusCode
		return wrapped.Error
	}
	return read(resp.Body)
}
