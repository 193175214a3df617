package admin

import (
	"context"
	"net/http"
	"time"

	"wormhole/edge/cluster"
)

// Clustered is what the API asks of an edge that may be one of several.
type Clustered interface {
	// Cluster describes the network of edges, nil if this edge runs alone.
	Cluster() *cluster.Status
	// JoinToken makes a token with which another machine may join.
	JoinToken(ttl time.Duration) (raw string, expires time.Time, err error)
	// LeaveCluster makes an edge a member no more; this one if node is empty.
	LeaveCluster(ctx context.Context, node string) error
	// PromoteCluster moves the network's store to three edges: the one that holds it,
	// and those that are named by node, region or address.
	PromoteCluster(ctx context.Context, edges []string) (*cluster.Promotion, error)
	// ReplaceInCluster has another edge hold the network's store in place of one of the
	// three that do; both are named as for PromoteCluster.
	ReplaceInCluster(ctx context.Context, lost, come string) (*cluster.Replacement, error)
}

// PromoteRequest asks to move the store.
type PromoteRequest struct {
	Edges []string `json:"edges"`
}

// ReplaceRequest asks to have New hold the store in place of Lost.
type ReplaceRequest struct {
	Lost string `json:"lost"`
	New  string `json:"new"`
}

// JoinTokenRequest asks for a join token; TTL in JSON is nanoseconds, 0 the default.
type JoinTokenRequest struct {
	TTL time.Duration `json:"ttl,omitempty"`
}

// JoinToken is a new join token. It is shown here and never again.
type JoinToken struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// clusterCalls are the calls about the network of edges.
func clusterCalls(call func(pattern string, f func(*http.Request) (any, error)), c Clustered) {
	call("GET /v1/cluster", func(*http.Request) (any, error) {
		s := c.Cluster()
		if s == nil {
			return nil, &Error{Status: http.StatusNotFound, Code: "no_cluster", Message: "this edge runs alone"}
		}
		return s, nil
	})
	call("POST /v1/cluster/join-token", func(r *http.Request) (any, error) {
		var req JoinTokenRequest
		if err := readJSON(r, &req); err != nil {
			return nil, err
		}
		raw, expires, err := c.JoinToken(req.TTL)
		return JoinToken{raw, expires}, err
	})
	call("POST /v1/cluster/leave", func(r *http.Request) (any, error) {
		var body idBody
		if err := readJSON(r, &body); err != nil {
			return nil, err
		}
		return struct{}{}, c.LeaveCluster(r.Context(), body.ID)
	})
	call("POST /v1/cluster/promote", func(r *http.Request) (any, error) {
		var body PromoteRequest
		if err := readJSON(r, &body); err != nil {
			return nil, err
		}
		// It goes on if the operator goes: half of it is of no use.
		return c.PromoteCluster(context.WithoutCancel(r.Context()), body.Edges)
	})
	call("POST /v1/cluster/replace", func(r *http.Request) (any, error) {
		var body ReplaceRequest
		if err := readJSON(r, &body); err != nil {
			return nil, err
		}
		return c.ReplaceInCluster(r.Context(), body.Lost, body.New)
	})
}
