package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"wormhole/edge/authority"
	"wormhole/edge/cluster/store"
	"wormhole/edge/site"
)

// Node is what the API asks of the edge it belongs to. All methods may be called
// concurrently.
type Node interface {
	// Status describes the edge now.
	Status() Status
	// Ready returns nil when the edge takes requests, else why it does not.
	Ready() error
	// Drain begins to take the edge out of service, as SIGTERM does.
	Drain()
	// Sites lists the sites; ApplySites and DeleteSite change them durably. ApplySites
	// applies all or, if one has a fault, none.
	Sites() []Site
	SiteSpec(host string) (site.Spec, bool)
	ApplySites(ctx context.Context, specs []site.Spec) error
	DeleteSite(ctx context.Context, host string) (bool, error)
	// Certificates lists those of files and of the CA; RetryCertificate forgets what
	// went wrong for a host and has it ordered for anew.
	Certificates() []Certificate
	RetryCertificate(ctx context.Context, host string) error
}

// Tokens are an operator's calls about tokens and keys; *authority.Authority has
// them on the spot, *Client from afar.
type Tokens interface {
	IssueToken(ctx context.Context, req authority.IssueRequest) (authority.Issued, error)
	List(ctx context.Context) ([]authority.TokenInfo, error)
	Inspect(ctx context.Context, tokenOrID string) (authority.Inspection, error)
	Revoke(ctx context.Context, idOrName string) (authority.TokenInfo, error)
	ListKeys(ctx context.Context) ([]authority.KeyInfo, error)
	Rotate(ctx context.Context) (authority.KeyInfo, error)
	RemoveKey(ctx context.Context, id string) (authority.KeyInfo, error)
}

// API is the whole admin address: health, metrics, the page and the operator's
// calls.
func API(guard *Guard, node Node, tokens Tokens, metrics, page http.Handler) http.Handler {
	a := &api{node: node, tokens: tokens}
	mux := http.NewServeMux()
	open := func(pattern string, h http.HandlerFunc) { mux.Handle(pattern, guard.open(h)) }
	open("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	open("GET /readyz", a.readyz)
	open("GET /metrics", metrics.ServeHTTP)
	open("GET /{$}", page.ServeHTTP)

	call := func(pattern string, f func(*http.Request) (any, error)) {
		mux.Handle(pattern, guard.protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r)
			if err != nil {
				writeError(w, asError(err))
				return
			}
			writeJSON(w, http.StatusOK, v)
		})))
	}
	call("GET /v1/status", func(*http.Request) (any, error) { return a.node.Status(), nil })
	call("POST /v1/drain", func(*http.Request) (any, error) { a.node.Drain(); return struct{}{}, nil })

	if c, ok := node.(Clustered); ok {
		clusterCalls(call, c)
	}
	if m, ok := node.(Metered); ok {
		usageCalls(call, m)
	}
	if b, ok := node.(BackedUp); ok {
		mux.Handle("GET /v1/backup", guard.protect(serveBackup(b)))
	}

	call("GET /v1/tokens", func(r *http.Request) (any, error) { return a.tokens.List(r.Context()) })
	call("POST /v1/tokens", func(r *http.Request) (any, error) {
		var req authority.IssueRequest
		if err := readJSON(r, &req); err != nil {
			return nil, err
		}
		return a.tokens.IssueToken(r.Context(), req)
	})
	call("POST /v1/tokens/inspect", a.withID(func(ctx context.Context, id string) (any, error) { return a.tokens.Inspect(ctx, id) }))
	call("POST /v1/tokens/revoke", a.withID(func(ctx context.Context, id string) (any, error) { return a.tokens.Revoke(ctx, id) }))
	call("GET /v1/keys", func(r *http.Request) (any, error) { return a.tokens.ListKeys(r.Context()) })
	call("POST /v1/keys/rotate", func(r *http.Request) (any, error) { return a.tokens.Rotate(r.Context()) })
	call("POST /v1/keys/remove", a.withID(func(ctx context.Context, id string) (any, error) { return a.tokens.RemoveKey(ctx, id) }))

	call("GET /v1/sites", func(*http.Request) (any, error) { return a.node.Sites(), nil })
	call("GET /v1/sites/{host}", func(r *http.Request) (any, error) {
		spec, ok := a.node.SiteSpec(r.PathValue("host"))
		if !ok {
			return nil, &Error{Status: http.StatusNotFound, Code: "no_such_site", Message: "no site " + r.PathValue("host")}
		}
		return spec, nil
	})
	call("POST /v1/sites", a.applySites)
	call("DELETE /v1/sites/{host}", func(r *http.Request) (any, error) {
		known, err := a.node.DeleteSite(r.Context(), r.PathValue("host"))
		if err == nil && !known {
			err = &Error{Status: http.StatusNotFound, Code: "no_such_site", Message: "no site " + r.PathValue("host")}
		}
		return struct{}{}, err
	})
	call("GET /v1/certificates", func(*http.Request) (any, error) { return a.node.Certificates(), nil })
	call("POST /v1/certificates/{host}/retry", func(r *http.Request) (any, error) {
		return struct{}{}, a.node.RetryCertificate(r.Context(), r.PathValue("host"))
	})
	mux.Handle("/", guard.protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &Error{Status: http.StatusNotFound, Code: "no_such_call", Message: "no call " + r.Method + " " + r.URL.Path})
	})))
	return mux
}

type api struct {
	node   Node
	tokens Tokens
}

func (a *api) readyz(w http.ResponseWriter, _ *http.Request) {
	if err := a.node.Ready(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

// idBody names one token or key. It travels in the body because a token's text
// must not appear in a URL.
type idBody struct {
	ID string `json:"id"`
}

func (a *api) withID(f func(ctx context.Context, id string) (any, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var body idBody
		if err := readJSON(r, &body); err != nil {
			return nil, err
		}
		if body.ID == "" {
			return nil, &Error{Status: http.StatusBadRequest, Code: "bad_request", Message: "id is missing"}
		}
		return f(r.Context(), body.ID)
	}
}

// applySites takes YAML or JSON, one site a document, and applies all or, if one
// has a fault, none. With ?dry_run=1 it only says whether they are sound.
func (a *api) applySites(r *http.Request) (any, error) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, &Error{Status: http.StatusBadRequest, Code: "bad_request", Message: err.Error()}
	}
	specs, err := site.ParseAll(text)
	if err != nil {
		return nil, &Error{Status: http.StatusUnprocessableEntity, Code: "bad_site", Message: err.Error()}
	}
	if r.URL.Query().Get("dry_run") == "" {
		if err := a.node.ApplySites(r.Context(), specs); err != nil {
			return nil, err
		}
	}
	return specs, nil
}

func readJSON(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return &Error{Status: http.StatusBadRequest, Code: "bad_request", Message: strings.TrimPrefix(err.Error(), "json: ")}
	}
	return nil
}

func asError(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, store.ErrNotFound):
		return &Error{Status: http.StatusNotFound, Code: "not_found", Message: err.Error()}
	case errors.Is(err, store.ErrCorrupt):
		return &Error{Status: http.StatusInternalServerError, Code: "store_damaged", Message: err.Error()}
	}
	return &Error{Status: http.StatusUnprocessableEntity, Code: "refused", Message: err.Error()}
}
