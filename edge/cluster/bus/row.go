package bus

import (
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"wormhole/edge/cluster/store"
	"wormhole/shared/hostname"
)

// A message on the bus, all integers big endian:
//
//	version u8 = 1 | kind u8 | epoch u64 | seq u64
//	certificate: length u16, DER of the sender's node certificate
//	body, by kind
//	signature: 64 bytes, Ed25519 over all that precedes
//
// The sender is whom the certificate names. Bodies:
//
//	delta     rows
//	digest    hash u64 | count u32 | length u16, info as JSON
//	snapshot  index u16 | of u16 | rows
//	ask       node: 16 bytes, whose snapshot is wanted
//	entry     bucket: length u8 | key: length u16 | revision u64 | value, the rest
//
// rows are: count u16, then each: state u8 | pattern: length u8.
const version = 1

type kind uint8

const (
	kindDelta    kind = 1
	kindDigest   kind = 2
	kindSnapshot kind = 3
	kindAsk      kind = 4
	kindEntry    kind = 5
)

// Bounds of what is read.
const (
	maxMessage = 2<<20 - 1024
	maxRows    = 1 << 20 // of one node
	maxChunk   = 4096    // rows in one message
	maxInfo    = 16 << 10
	maxCert    = 4 << 10
)

// State is what a row says of a site at a node.
type State uint8

// The states. Gone appears in deltas only.
const (
	Gone    State = 0
	Ready   State = 1 // it has a backend that takes requests
	Suspect State = 2 // its backends are in doubt

	// H2C is added to a state when the backends speak HTTP/2 without TLS.
	H2C State = 4
)

// Live is the state without what the backends speak.
func (s State) Live() State { return s &^ H2C }

func (s State) valid() bool { return s == Gone || s.Live() == Ready || s.Live() == Suspect }

// Info describes a node in its digests.
type Info struct {
	Region string `json:"region,omitempty"`
	// Addr is where other edges and agents reach its public door, host:port.
	Addr string `json:"addr"`
	// Mesh is where its mesh listens.
	Mesh string `json:"mesh,omitempty"`
	// Version is the edge's own.
	Version  string `json:"version,omitempty"`
	Draining bool   `json:"draining,omitempty"`
	// Hostname is the edge's own name, Addrs its public addresses, and DNS says that it
	// answers queries: what DNS answers are made of.
	Hostname string       `json:"hostname,omitempty"`
	Addrs    []netip.Addr `json:"addrs,omitempty"`
	DNS      bool         `json:"dns,omitempty"`
	// Store is what it says of the network's store, for the package cluster.
	Store json.RawMessage `json:"store,omitempty"`
	// Sees is which nodes it hears, with the age of the last word in milliseconds.
	Sees map[string]int64 `json:"sees,omitempty"`
}

type row struct {
	pattern string
	state   State
}

// message is one decoded message. Signature and sender are checked by the caller.
type message struct {
	kind  kind
	epoch uint64
	seq   uint64
	cert  []byte

	rows  []row // delta, snapshot
	index uint16
	of    uint16

	hash  uint64 // digest
	count uint32
	info  Info

	node string // ask

	bucket string // entry
	entry  store.Entry
}

var errMalformed = errors.New("malformed bus message")

// encode writes m and signs it.
func encode(m *message, sign func([]byte) []byte) ([]byte, error) {
	b := make([]byte, 0, 512)
	b = append(b, version, byte(m.kind))
	b = binary.BigEndian.AppendUint64(b, m.epoch)
	b = binary.BigEndian.AppendUint64(b, m.seq)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.cert)))
	b = append(b, m.cert...)
	switch m.kind {
	case kindDelta:
		b = appendRows(b, m.rows)
	case kindSnapshot:
		b = binary.BigEndian.AppendUint16(b, m.index)
		b = binary.BigEndian.AppendUint16(b, m.of)
		b = appendRows(b, m.rows)
	case kindDigest:
		b = binary.BigEndian.AppendUint64(b, m.hash)
		b = binary.BigEndian.AppendUint32(b, m.count)
		info, err := json.Marshal(m.info)
		if err != nil {
			return nil, err
		}
		if len(info) > maxInfo {
			m.info.Sees = nil // a mesh so large needs another view
			if info, err = json.Marshal(m.info); err != nil || len(info) > maxInfo {
				return nil, errors.New("bus: the description of this node is too long")
			}
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(info)))
		b = append(b, info...)
	case kindAsk:
		b = append(b, m.node...)
	case kindEntry:
		b = append(b, byte(len(m.bucket)))
		b = append(b, m.bucket...)
		b = binary.BigEndian.AppendUint16(b, uint16(len(m.entry.Key)))
		b = append(b, m.entry.Key...)
		b = binary.BigEndian.AppendUint64(b, m.entry.Revision)
		b = append(b, m.entry.Value...)
	}
	if len(b)+ed25519.SignatureSize > maxMessage {
		return nil, fmt.Errorf("bus: a message of %d bytes is too long", len(b))
	}
	return append(b, sign(b)...), nil
}

func appendRows(b []byte, rows []row) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(rows)))
	for _, r := range rows {
		b = append(b, byte(r.state), byte(len(r.pattern)))
		b = append(b, r.pattern...)
	}
	return b
}

// decode reads what encode wrote, and refuses all else as a whole. signed is what
// the signature is over.
func decode(raw []byte) (m *message, signed, signature []byte, err error) {
	if len(raw) > maxMessage || len(raw) < 20+ed25519.SignatureSize {
		return nil, nil, nil, errMalformed
	}
	signed, signature = raw[:len(raw)-ed25519.SignatureSize], raw[len(raw)-ed25519.SignatureSize:]
	r := reader{b: signed}
	if r.u8() != version {
		return nil, nil, nil, fmt.Errorf("%w: of another version", errMalformed)
	}
	m = &message{kind: kind(r.u8()), epoch: r.u64(), seq: r.u64()}
	m.cert = r.bytes(int(r.u16()), maxCert)
	switch m.kind {
	case kindDelta:
		m.rows = r.rows(true)
	case kindSnapshot:
		m.index, m.of = r.u16(), r.u16()
		if m.index >= m.of {
			r.bad = true
		}
		m.rows = r.rows(false)
	case kindDigest:
		m.hash, m.count = r.u64(), r.u32()
		info := r.bytes(int(r.u16()), maxInfo)
		if !r.bad && json.Unmarshal(info, &m.info) != nil || m.count > maxRows {
			r.bad = true
		}
	case kindAsk:
		m.node = string(r.bytes(16, 16))
	case kindEntry:
		m.bucket = string(r.bytes(int(r.u8()), store.MaxBucket))
		m.entry.Key = string(r.bytes(int(r.u16()), store.MaxKey))
		m.entry.Revision = r.u64()
		m.entry.Value = r.bytes(len(r.b), store.MaxValue)
		if !r.bad && store.CheckKey(m.bucket, m.entry.Key) != nil {
			r.bad = true
		}
	default:
		return nil, nil, nil, fmt.Errorf("%w: of kind %d", errMalformed, m.kind)
	}
	if r.bad || len(r.b) != 0 {
		return nil, nil, nil, errMalformed
	}
	return m, signed, signature, nil
}

// reader cuts pieces off b; bad stays set once one was not there.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) bytes(n, most int) []byte {
	if r.bad || n > most || n > len(r.b) {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8 {
	if b := r.bytes(1, 1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.bytes(2, 2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.bytes(4, 4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.bytes(8, 8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) rows(mayBeGone bool) []row {
	n := int(r.u16())
	if n > maxChunk || n*3 > len(r.b) {
		r.bad = true
		return nil
	}
	rows := make([]row, 0, n)
	for range n {
		state := State(r.u8())
		pattern := string(r.bytes(int(r.u8()), 255))
		if r.bad || !state.valid() || state == Gone && !mayBeGone {
			r.bad = true
			return nil
		}
		// A name that is not canonical could be matched by nothing, or by two.
		if canonical, err := hostname.CanonicalPattern(pattern); err != nil || canonical != pattern {
			r.bad = true
			return nil
		}
		rows = append(rows, row{pattern, state})
	}
	return rows
}

// hashRow is what a row adds (by exclusive or) to the hash of all rows of a node.
// FNV-1a: it must be the same in every process, and meets no hostile input, since
// rows are signed by who wrote them.
func hashRow(pattern string, state State) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := range len(pattern) {
		h = (h ^ uint64(pattern[i])) * prime
	}
	h = (h ^ uint64(state)) * prime
	return h ^ h>>29
}

// shards is how many pieces the table of routes is cut into.
const shards = 256
