package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// alpnControl is what edges offer to ask each other about the store.
const alpnControl = "wormhole-store-control/1"

// maxQuestion bounds a question and an answer, in bytes.
const maxQuestion = 16 << 10

// Operations of a question.
const (
	opPrepare = "prepare" // start a part of the store in Plan
	opOutcome = "outcome" // what became of the store ID
	opPromote = "promote" // move the store to Edges
	opReady   = "ready"   // whether all is there to hold the store ID together with Edges
	opPart    = "part"    // what it takes to hold a part of the store ID, in place of another
)

// question is what an edge asks another, and answer what it says: a JSON object each.
type question struct {
	Op    string   `json:"op"`
	Plan  *plan    `json:"plan,omitempty"`
	ID    string   `json:"id,omitempty"`
	Edges []string `json:"edges,omitempty"`
}

type answer struct {
	Refused string `json:"refused,omitempty"`
	// Placement is where the store is; Gone says that the one that was asked for will
	// never be.
	Placement Placement  `json:"placement"`
	Gone      bool       `json:"gone,omitempty"`
	Moved     *Promotion `json:"moved,omitempty"`
	// Whole says that the server of the store here has everything.
	Whole     bool     `json:"whole,omitempty"`
	Unreached []string `json:"unreached,omitempty"` // of Edges
	Plan      *plan    `json:"plan,omitempty"`
}

// ask asks node, and waits for its answer until ctx ends.
func (c *Cluster) ask(ctx context.Context, node string, q question) (answer, error) {
	var a answer
	conn, err := c.dialEdge(ctx, node, alpnControl)
	if err != nil {
		return a, fmt.Errorf("the edge %s cannot be asked: %w", node, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(conn).Encode(q); err != nil {
		return a, fmt.Errorf("the edge %s cannot be asked: %w", node, err)
	}
	if err := json.NewDecoder(io.LimitReader(conn, maxQuestion)).Decode(&a); err != nil {
		return a, fmt.Errorf("the edge %s did not answer: %w", node, errors.Join(ctx.Err(), err))
	}
	if a.Refused != "" {
		return a, errors.New(a.Refused)
	}
	return a, nil
}

// serveControl answers one question.
func (c *Cluster) serveControl(ctx context.Context, conn *tls.Conn) {
	defer conn.Close()
	node, err := c.id.Peer(conn.ConnectionState())
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	var q question
	if json.NewDecoder(io.LimitReader(conn, maxQuestion)).Decode(&q) != nil {
		return
	}
	a, err := c.answer(ctx, node, q)
	if err != nil {
		a.Refused = err.Error()
	}
	_ = conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_ = json.NewEncoder(conn).Encode(a)
}

func (c *Cluster) answer(ctx context.Context, node string, q question) (a answer, err error) {
	switch q.Op {
	case opPrepare:
		err = c.prepare(node, q.Plan)
	case opOutcome:
		a.Placement, _ = c.placed()
		c.mu.Lock()
		a.Gone = a.Placement.ID != q.ID && c.begun != q.ID
		c.mu.Unlock()
	case opPromote:
		a.Moved, err = c.Promote(ctx, q.Edges)
	case opReady:
		a, err = c.isReady(ctx, q)
	case opPart:
		a.Plan, err = c.share(ctx, node, q)
	default:
		err = fmt.Errorf("this edge does not know how to %.20s: its version is too old", q.Op)
	}
	return a, err
}

// prepare starts this edge's part of a store that host plans.
func (c *Cluster) prepare(host string, p *plan) error {
	known, _ := c.placed()
	switch {
	case p == nil || !p.valid() || p.Host != host || !slices.Contains(p.Nodes, c.cfg.Node):
		return errors.New("the plan is not proper")
	case c.cfg.External != nil:
		return errors.New("this edge uses a NATS cluster of its own")
	case p.Generation <= known.Generation || !slices.Contains(c.holders(), host):
		return fmt.Errorf("as the edge %s knows it, %s does not hold the store", c.cfg.Node, host)
	}
	s, err := c.openPart(*p)
	if err != nil {
		return fmt.Errorf("the edge %s cannot hold a part of the store: %w", c.cfg.Node, err)
	}
	c.await(s)
	return nil
}
