package bus

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"wormhole/edge/cluster/identity"
	"wormhole/edge/cluster/store"
)

const (
	subject        = "wormhole.bus" // in a mesh of ours; with others' servers the network's name follows
	digestInterval = 2 * time.Second
	gather         = 5 * time.Millisecond // for changes that come together
	askInterval    = 250 * time.Millisecond
	routeLook      = 100 * time.Millisecond

	// guardLeast is how many rows must vanish at once for the guard to mind.
	guardLeast = 10
)

// Config of a Bus.
type Config struct {
	Network string
	// Epoch is higher at each start of this node.
	Epoch uint64
	// Listen is where the mesh listens, Advertise how others reach that (empty: as
	// it is), Routes the others' addresses that are known.
	Listen, Advertise string
	Routes            []string
	// Connect connects to servers that somebody else runs, in place of a mesh.
	Connect func(...nats.Option) (*nats.Conn, error)
	// GuardHold is how long a sudden loss of most rows of an edge is not believed;
	// default 10 s.
	GuardHold time.Duration
}

// Listener hears what changes. The functions are called one at a time, must return
// soon and must not call Doubt or Drop.
type Listener struct {
	// Route: node reaches pattern in this state, Gone meaning not at all.
	Route func(pattern, node string, state State)
	// Node: a digest of node came.
	Node func(node string, info Info)
	// Entry: another edge wrote this to the store.
	Entry func(bucket string, e store.Entry)
}

// Bus is this edge's place on the bus. All methods may be called concurrently.
type Bus struct {
	cfg     Config
	id      *identity.Identity
	allow   func(node string) error
	hear    Listener
	logger  *slog.Logger
	mesh    *mesh
	table   *table
	subject string
	chunk   int           // rows in one message
	late    time.Duration // digestInterval; tests shorten it
	start   time.Time     // what ages count from: no route may depend on the wall clock

	changed chan struct{} // capacity 1: own rows changed
	asked   chan struct{} // capacity 1: somebody wants a snapshot
	speak   chan struct{} // capacity 1: a digest is due

	own struct {
		sync.Mutex
		info    Info
		seq     uint64
		hash    uint64
		rows    map[string]State
		pending map[string]State
	}

	malformed atomic.Uint64

	apply sync.Mutex // one message, Doubt or Drop at a time; guards peers' contents
	mu    sync.Mutex // guards the map itself
	peers map[string]*peer
}

// peer is what is known of another edge. Its fields but heard are guarded by
// Bus.apply.
type peer struct {
	node  string
	cert  string
	key   ed25519.PublicKey
	epoch uint64
	seq   uint64
	hash  uint64
	rows  map[string]State
	asked time.Time
	guard time.Time // since when a loss is not believed; zero: there is none
	parts *parts    // of a snapshot that is coming

	info  atomic.Pointer[Info]
	heard atomic.Int64 // time since Bus.start
}

// parts gathers a snapshot.
type parts struct {
	seq  uint64
	next uint16
	of   uint16
	rows map[string]State
}

// Open starts the mesh. conf is for its routes.
func Open(cfg Config, id *identity.Identity, conf *tls.Config, allow func(node string) error, hear Listener, logger *slog.Logger) (*Bus, error) {
	if cfg.GuardHold <= 0 {
		cfg.GuardHold = 10 * time.Second
	}
	b := &Bus{
		cfg: cfg, id: id, allow: allow, hear: hear, logger: logger, table: newTable(), late: digestInterval, start: time.Now(),
		changed: make(chan struct{}, 1), asked: make(chan struct{}, 1), speak: make(chan struct{}, 1),
		peers: map[string]*peer{}, subject: subject, chunk: maxChunk,
	}
	b.own.rows, b.own.pending = map[string]State{}, map[string]State{}
	var err error
	if cfg.Connect != nil {
		// Others may use the same servers, and take messages of 1 MiB only.
		b.subject, b.chunk = subject+"."+cfg.Network, maxChunk/4
		b.mesh, err = joinMesh(cfg.Connect, func() { nudge(b.speak) })
		return b, err
	}
	b.mesh, err = openMesh(cfg.Network, id.Node(), cfg.Listen, cfg.Advertise, cfg.Routes, conf, logger)
	return b, err
}

// Addr is where the mesh listens.
func (b *Bus) Addr() string { return b.mesh.addr() }

// SetRoutes replaces the addresses of the other edges' meshes.
func (b *Bus) SetRoutes(addrs []string) error { return b.mesh.setRoutes(addrs) }

// Run speaks and listens until ctx ends.
func (b *Bus) Run(ctx context.Context) error {
	if err := b.mesh.subscribe(b.subject, b.receive); err != nil {
		return err
	}
	tick := time.NewTicker(b.late)
	defer tick.Stop()
	look := time.NewTicker(routeLook)
	defer look.Stop()
	routes := 0
	b.sayDigest()
	for {
		select {
		case <-b.changed:
			select {
			case <-time.After(GatherFor(len(b.all()))):
			case <-ctx.Done():
			}
			b.sayChanges()
		case <-b.asked:
			b.saySnapshot()
		case <-b.speak:
			b.sayDigest()
		case <-tick.C:
			b.sayDigest()
		case <-look.C:
			// Whoever has just been linked should not wait for the next digest.
			if n := b.mesh.routes(); n > routes {
				b.sayDigest()
				routes = n
			} else {
				routes = n
			}
		case <-ctx.Done():
			b.sayChanges()
			_ = b.mesh.conn.FlushTimeout(time.Second)
			return nil
		}
	}
}

// Close ends the mesh.
func (b *Bus) Close() error {
	b.mesh.close()
	return nil
}

// Describe replaces what this edge says of itself, and says it at once.
func (b *Bus) Describe(change func(*Info)) {
	b.own.Lock()
	change(&b.own.info)
	b.own.Unlock()
	nudge(b.speak)
}

// SetRow says how this edge reaches pattern now. It does not block.
func (b *Bus) SetRow(pattern string, state State) {
	b.own.Lock()
	defer b.own.Unlock()
	current := b.own.rows[pattern]
	if queued, ok := b.own.pending[pattern]; ok {
		current = queued
	}
	if current == state {
		return
	}
	b.own.pending[pattern] = state
	nudge(b.changed)
}

// Push tells the others of an entry that was written to the store.
func (b *Bus) Push(bucket string, e store.Entry) {
	b.publish(&message{kind: kindEntry, bucket: bucket, entry: e})
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (b *Bus) publish(m *message) {
	m.cert, m.epoch = b.id.Certificate(), b.cfg.Epoch
	raw, err := encode(m, b.id.Sign)
	if err == nil {
		err = b.mesh.conn.Publish(b.subject, raw)
	}
	if err != nil {
		b.logger.Debug("bus message not sent", "err", err)
	}
}

func (b *Bus) sayChanges() {
	b.own.Lock()
	defer b.own.Unlock()
	rows := make([]row, 0, min(len(b.own.pending), b.chunk))
	send := func() {
		b.own.seq++
		b.publish(&message{kind: kindDelta, seq: b.own.seq, rows: rows})
		rows = rows[:0]
	}
	for pattern, state := range b.own.pending {
		if old := b.own.rows[pattern]; old == state {
			continue // changed and changed back
		} else if old != Gone {
			b.own.hash ^= hashRow(pattern, old)
		}
		if state == Gone {
			delete(b.own.rows, pattern)
		} else {
			b.own.hash ^= hashRow(pattern, state)
			b.own.rows[pattern] = state
		}
		if rows = append(rows, row{pattern, state}); len(rows) == b.chunk {
			send()
		}
	}
	if len(rows) > 0 {
		send()
	}
	clear(b.own.pending)
}

func (b *Bus) sayDigest() {
	sees := map[string]int64{}
	for node, age := range b.Heard() {
		sees[node] = age.Milliseconds()
	}
	b.own.Lock()
	defer b.own.Unlock()
	info := b.own.info
	info.Sees = sees
	b.publish(&message{kind: kindDigest, seq: b.own.seq, hash: b.own.hash, count: uint32(len(b.own.rows)), info: info})
}

func (b *Bus) saySnapshot() {
	b.own.Lock()
	defer b.own.Unlock()
	of := max(1, (len(b.own.rows)+b.chunk-1)/b.chunk)
	rows := make([]row, 0, min(len(b.own.rows), b.chunk))
	index := 0
	send := func() {
		b.publish(&message{kind: kindSnapshot, seq: b.own.seq, index: uint16(index), of: uint16(of), rows: rows})
		rows, index = rows[:0], index+1
	}
	for pattern, state := range b.own.rows {
		if rows = append(rows, row{pattern, state}); len(rows) == b.chunk {
			send()
		}
	}
	if len(rows) > 0 || index == 0 {
		send()
	}
}

// receive takes one message from the mesh.
func (b *Bus) receive(raw []byte) {
	m, signed, signature, err := decode(raw)
	if err != nil {
		b.refuse(err)
		return
	}
	b.apply.Lock()
	defer b.apply.Unlock()
	p, err := b.sender(m, signed, signature)
	if err != nil {
		b.refuse(err)
		return
	}
	if p == nil || m.epoch < p.epoch {
		return // our own, or of a life that is over
	}
	if m.kind == kindAsk {
		if m.node == b.id.Node() {
			nudge(b.asked)
		}
		return
	}
	if m.kind == kindEntry {
		b.hear.Entry(m.bucket, m.entry)
		return
	}
	p.heard.Store(int64(time.Since(b.start)))
	if m.epoch > p.epoch {
		b.replace(p, nil) // it began anew, so that nothing of its old rows holds
		p.epoch, p.seq, p.parts, p.guard = m.epoch, 0, nil, time.Time{}
	}
	switch m.kind {
	case kindDelta:
		b.delta(p, m)
	case kindDigest:
		info := m.info
		p.info.Store(&info)
		b.hear.Node(p.node, info)
		if m.seq > p.seq || m.seq == p.seq && (m.hash != p.hash || int(m.count) != len(p.rows)) {
			b.ask(p)
		}
	case kindSnapshot:
		b.snapshot(p, m)
	}
}

func (b *Bus) refuse(err error) {
	if n := b.malformed.Add(1); n&(n-1) == 0 { // 1, 2, 4, 8…
		b.logger.Warn("bus message refused", "count", n, "err", err)
	}
}

// sender finds who signed a message, nil for ourselves.
func (b *Bus) sender(m *message, signed, signature []byte) (*peer, error) {
	for _, p := range b.all() {
		if p.cert == string(m.cert) {
			if err := b.allow(p.node); err != nil {
				return nil, err
			}
			if !ed25519.Verify(p.key, signed, signature) {
				return nil, errors.New("bus message with a wrong signature")
			}
			return p, nil
		}
	}
	node, key, err := b.id.Verify(m.cert)
	if err != nil {
		return nil, err
	}
	if node == b.id.Node() {
		return nil, nil
	}
	if err := b.allow(node); err != nil {
		return nil, err
	}
	if !ed25519.Verify(key, signed, signature) {
		return nil, errors.New("bus message with a wrong signature")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.peers[node]
	if p == nil {
		p = &peer{node: node, rows: map[string]State{}}
		b.peers[node] = p
	}
	p.cert, p.key = string(m.cert), key
	return p, nil
}

func (b *Bus) delta(p *peer, m *message) {
	switch {
	case m.seq <= p.seq:
		return
	case m.seq > p.seq+1:
		b.ask(p)
		return
	}
	p.seq = m.seq
	for _, r := range m.rows {
		b.set(p, r.pattern, r.state)
	}
	if len(p.rows) > maxRows {
		b.refuse(errors.New("an edge has more rows than are possible"))
		b.replace(p, nil)
	}
}

// guards reports whether the loss of going rows of p is not to be believed yet.
func (b *Bus) guards(p *peer, going int) bool {
	info := p.info.Load()
	if going < guardLeast || 2*going <= len(p.rows) || info != nil && info.Draining {
		return false
	}
	if p.guard.IsZero() {
		p.guard = time.Now()
		b.logger.Error("most sites of an edge vanished at once, keeping what is known", "node", p.node, "count", going, "of", len(p.rows))
	}
	return time.Since(p.guard) < b.cfg.GuardHold
}

func (b *Bus) ask(p *peer) {
	if time.Since(p.asked) < askInterval {
		return // the next digest asks again
	}
	p.asked = time.Now()
	b.publish(&message{kind: kindAsk, node: p.node})
}

func (b *Bus) snapshot(p *peer, m *message) {
	if m.index == 0 {
		p.parts = &parts{seq: m.seq, of: m.of, rows: map[string]State{}}
	}
	s := p.parts
	if s == nil || s.seq != m.seq || s.of != m.of || s.next != m.index || len(s.rows)+len(m.rows) > maxRows {
		p.parts = nil
		return
	}
	s.next++
	for _, r := range m.rows {
		s.rows[r.pattern] = r.state
	}
	if s.next < s.of {
		return
	}
	p.parts = nil
	if s.seq < p.seq {
		return
	}
	p.seq = s.seq
	going := 0
	for pattern := range p.rows {
		if s.rows[pattern] == Gone {
			going++
		}
	}
	if b.guards(p, going) {
		for pattern, state := range s.rows {
			b.set(p, pattern, state)
		}
		return // the next digest differs, and asks again
	}
	p.guard = time.Time{}
	b.replace(p, s.rows)
}

// replace makes rows all that p has.
func (b *Bus) replace(p *peer, rows map[string]State) {
	for pattern := range p.rows {
		if rows[pattern] == Gone {
			b.set(p, pattern, Gone)
		}
	}
	for pattern, state := range rows {
		b.set(p, pattern, state)
	}
}

func (b *Bus) set(p *peer, pattern string, state State) {
	old := p.rows[pattern]
	if old == state {
		return
	}
	if old != Gone {
		p.hash ^= hashRow(pattern, old)
	}
	if state == Gone {
		delete(p.rows, pattern)
	} else {
		p.rows[pattern] = state
		p.hash ^= hashRow(pattern, state)
	}
	b.table.set(pattern, p.node, state)
	b.hear.Route(pattern, p.node, state)
}

// Doubt forgets that node reaches pattern, because it said itself that it does
// not. If it does after all, its next digest brings the row back.
func (b *Bus) Doubt(pattern, node string) {
	b.apply.Lock()
	defer b.apply.Unlock()
	if p := b.peer(node); p != nil {
		b.set(p, pattern, Gone)
	}
}

// Drop forgets all rows of an edge that is gone. When it speaks again they come
// back.
func (b *Bus) Drop(node string) {
	b.apply.Lock()
	defer b.apply.Unlock()
	if p := b.peer(node); p != nil {
		b.replace(p, nil)
		p.heard.Store(0)
	}
}

func (b *Bus) peer(node string) *peer {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.peers[node]
}

func (b *Bus) all() []*peer {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*peer, 0, len(b.peers))
	for _, p := range b.peers {
		out = append(out, p)
	}
	return out
}

// Heard says how long ago each edge was last heard.
func (b *Bus) Heard() map[string]time.Duration {
	out := map[string]time.Duration{}
	for _, p := range b.all() {
		if at := p.heard.Load(); at != 0 {
			out[p.node] = time.Since(b.start) - time.Duration(at)
		}
	}
	return out
}

// Info is what node last said of itself.
func (b *Bus) Info(node string) (Info, bool) {
	if p := b.peer(node); p != nil {
		if info := p.info.Load(); info != nil {
			return *info, true
		}
	}
	return Info{}, false
}

// Reach returns the routes of pattern; nil if no other edge has it.
func (b *Bus) Reach(pattern string) []Route { return b.table.get(pattern) }

// ReachBelow is Reach for the pattern "*." + parent.
func (b *Bus) ReachBelow(parent string) []Route { return b.table.getBelow(parent) }

// Len counts the patterns that other edges reach.
func (b *Bus) Len() int { return int(b.table.size.Load()) }

// Patterns yields them all, in no order.
func (b *Bus) Patterns(yield func(string) bool) { b.table.all(yield) }
