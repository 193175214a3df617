// Package admin is the operator's side of an edge: health, metrics and the API
// that the command line and the dashboard use. Health and metrics are open;
// everything else wants the credential of the data directory.
package admin

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Names of the files in the data directory by which the command line of the same
// machine finds a running edge.
const (
	CredentialFile = "admin.token" // the credential, 0600
	AddressFile    = "admin.addr"  // host:port where the API listens, while the edge runs
)

// MaxBody bounds a request body to the API, in bytes.
const MaxBody = 1 << 20

// Credential reads the credential of a data directory, or makes one.
func Credential(dataDir string) (string, error) {
	path := filepath.Join(dataDir, CredentialFile)
	if text, err := os.ReadFile(path); err == nil {
		if c := strings.TrimSpace(string(text)); len(c) >= 32 {
			return c, nil
		}
		return "", fmt.Errorf("%s is damaged: remove it and restart the edge to make a new one", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails
	c := base64.RawURLEncoding.EncodeToString(b[:])
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	if _, err := f.WriteString(c + "\n"); err != nil {
		_ = f.Close()
		return "", err
	}
	return c, f.Close()
}

// Error is an answer of the API that is not a success.
type Error struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`    // stable, for programs
	Message string `json:"message"` // for the operator
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Guard lets a request through to next only if it names an allowed Host, comes
// from no other site's page, and carries the credential. Host and origin are
// checked for the open paths too: a browser on the machine can be made to ask.
type Guard struct {
	hosts      map[string]bool
	credential [sha256.Size]byte
}

// NewGuard makes a guard for an API listening on addr; hosts are further names
// by which it may be called.
func NewGuard(credential string, addr net.Addr, hosts ...string) *Guard {
	g := &Guard{credential: sha256.Sum256([]byte(credential)), hosts: map[string]bool{"localhost": true}}
	for _, h := range hosts {
		g.hosts[strings.ToLower(h)] = true
	}
	if host, _, err := net.SplitHostPort(addr.String()); err == nil {
		g.hosts[host] = true
	}
	return g
}

// AllowsHost reports whether a Host header is one of ours. Any literal address is:
// DNS rebinding needs a name. So is none at all, which only HTTP/1.0 may send:
// balancers' health checks do, browsers never.
func (g *Guard) AllowsHost(hostport string) bool {
	if hostport == "" {
		return true
	}
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return g.hosts[strings.ToLower(host)]
}

// Allows reports whether the request carries the credential as a bearer token.
func (g *Guard) Allows(r *http.Request) bool {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return false
	}
	sum := sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(sum[:], g.credential[:]) == 1
}

// open wraps a handler that needs no credential.
func (g *Guard) open(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.AllowsHost(r.Host) {
			writeError(w, &Error{Status: http.StatusMisdirectedRequest, Code: "wrong_host", Message: "this address is not called by that name"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// protect wraps a handler that needs the credential.
func (g *Guard) protect(next http.Handler) http.Handler {
	return g.open(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.Allows(r) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="edge"`)
			writeError(w, &Error{Status: http.StatusUnauthorized, Code: "unauthorized", Message: "the credential in the edge's data directory (" + CredentialFile + ") is needed"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
		next.ServeHTTP(w, r)
	}))
}

func writeError(w http.ResponseWriter, e *Error) {
	writeJSON(w, e.Status, map[string]*Error{"error": e})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
}
