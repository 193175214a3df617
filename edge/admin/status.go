package admin

import (
	"time"

	"wormhole/edge/cluster"
)

// Status is what one edge says of itself.
type Status struct {
	Node      string            `json:"node"`
	Hostname  string            `json:"hostname,omitempty"`
	Region    string            `json:"region,omitempty"`
	Version   string            `json:"version"`
	State     string            `json:"state"` // "serving" or "draining"
	Started   time.Time         `json:"started"`
	Addresses map[string]string `json:"addresses"` // by door: http, https, admin
	DataDir   string            `json:"data_dir"`
	CA        string            `json:"ca_file,omitempty"` // PEM of the internal authority
	Sites     int               `json:"sites"`
	Cluster   *cluster.Status   `json:"cluster,omitempty"` // nil for an edge that runs alone
	RawTCP    []RawTCP          `json:"raw_tcp,omitempty"`
	Backends  []Backend         `json:"backends"`
}

// RawTCP is a port of the edge that belongs to one site.
type RawTCP struct {
	Host        string `json:"host"`
	Address     string `json:"address"` // where it listens, or should
	Connections int64  `json:"connections"`
	Error       string `json:"error,omitempty"` // why it does not listen
}

// Backend is one live tunnel and the app behind it.
type Backend struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Hosts    []string          `json:"hosts"`
	State    string            `json:"state"` // "ready", "not_ready", "suspect", "ejected", "draining"
	InFlight int64             `json:"in_flight"`
	Streams  int               `json:"streams"`
	Kinds    []string          `json:"kinds,omitempty"` // what its token lets it take: http, tcp
	Carrier  string            `json:"carrier"`
	Remote   string            `json:"remote"`
	TokenID  string            `json:"token_id"`
	Instance string            `json:"instance"`
	Tags     map[string]string `json:"tags,omitempty"`
	Release  string            `json:"release,omitempty"`
	Branch   string            `json:"branch,omitempty"`
	Version  string            `json:"version,omitempty"`
	Since    time.Time         `json:"since"`
	LastBeat time.Time         `json:"last_beat"`
}

// Site is one site as the operator sees it.
type Site struct {
	Host       string `json:"host"`
	Configured bool   `json:"configured"` // by `edge site apply`, not only by a registration
	Backends   int    `json:"backends"`
	InFlight   int64  `json:"in_flight"`
}

// Certificate is one host that the edge has a certificate for, in a file or from the
// CA, or orders one.
type Certificate struct {
	Host      string     `json:"host"`
	Issuer    string     `json:"issuer,omitempty"`
	Serial    string     `json:"serial,omitempty"` // hexadecimal
	NotBefore *time.Time `json:"not_before,omitempty"`
	NotAfter  *time.Time `json:"not_after,omitempty"`
	State     string     `json:"state"` // "waiting", "ordering", "valid", "failed", "blocked", "removed"
	LastError string     `json:"last_error,omitempty"`
	NextTry   *time.Time `json:"next_try,omitempty"` // the next order, or the renewal
}
