package bus

import (
	"testing"
	"time"

	"wormhole/edge/cluster/identity"
)

// Fault B9, from inside: a member with a good certificate signs whatever it likes. It
// may say nonsense of itself, but nothing of others, and nothing that breaks who
// hears it.
func FuzzReceive(f *testing.F) {
	ca := newCA(f)
	self, good, evil := newID(f, ca, nodeID(1)), newID(f, ca, nodeID(2)), newID(f, ca, nodeID(3))
	seal := func(id *identity.Identity, m *message) []byte {
		m.cert = id.Certificate()
		raw, err := encode(m, id.Sign)
		if err != nil {
			f.Fatal(err)
		}
		return raw
	}
	fine := seal(good, &message{kind: kindDelta, epoch: 1, seq: 1, rows: []row{{"good.example.com", Ready}, {"*.good.example.com", Suspect | H2C}}})
	header := 2 + 8 + 8
	add := func(m *message) {
		m.epoch = 1
		raw := seal(evil, m)
		body := raw[header+2+len(evil.Certificate()) : len(raw)-64]
		f.Add(byte(m.kind), m.epoch, m.seq, body)
	}
	add(&message{kind: kindDelta, seq: 1, rows: []row{{"evil.example.com", Ready}, {"good.example.com", Gone}}})
	add(&message{kind: kindSnapshot, seq: 2, of: 1, rows: []row{{"good.example.com", Ready}}})
	add(&message{kind: kindSnapshot, seq: 2, index: 3, of: 7, rows: manyRows(3)})
	add(&message{kind: kindDigest, seq: 1 << 63, hash: 1, count: maxRows, info: Info{Addr: "x:1", Hostname: "..", Sees: map[string]int64{"": -1}}})
	add(&message{kind: kindAsk, node: nodeID(1)})
	add(&message{kind: kindEntry, bucket: "tokens"})
	f.Fuzz(func(t *testing.T, k byte, epoch, seq uint64, body []byte) {
		b := &Bus{
			id: self, allow: anybody, hear: deaf(), logger: quiet, table: newTable(), start: time.Now(), peers: map[string]*peer{},
			asked: make(chan struct{}, 1), cfg: Config{GuardHold: time.Second}, mesh: nil,
		}
		b.receive(fine)
		if len(b.Reach("good.example.com")) != 1 {
			t.Fatal("the good message was not taken")
		}
		if kind(k) == kindDigest || kind(k) == kindDelta && seq != 1 {
			seq = 0 // a gap is asked about, which needs a mesh
		}
		raw := []byte{version, k}
		for _, v := range []uint64{epoch, seq} {
			for i := 56; i >= 0; i -= 8 {
				raw = append(raw, byte(v>>i))
			}
		}
		cert := evil.Certificate()
		raw = append(append(raw, byte(len(cert)>>8), byte(len(cert))), cert...)
		raw = append(raw, body...)
		if len(raw) > maxMessage {
			return
		}
		raw = append(raw, evil.Sign(raw)...)
		m, _, _, err := decode(raw)
		if err == nil && m.kind == kindDigest && (m.hash != 0 || m.count != 0) {
			return // differs from what is known, and is asked about
		}
		before := b.Len()
		b.receive(raw)
		for _, pattern := range []string{"good.example.com", "*.good.example.com"} {
			found := false
			for _, r := range b.Reach(pattern) {
				found = found || r.Node == nodeID(2)
			}
			if !found {
				t.Fatalf("the row of another edge for %s is gone", pattern)
			}
		}
		if err != nil && (b.Len() != before || b.malformed.Load() != 1) {
			t.Fatalf("%d rows and %d refusals after a malformed message, %d rows before", b.Len(), b.malformed.Load(), before)
		}
		if p := b.peer(nodeID(3)); p != nil && len(p.rows) > maxRows {
			t.Fatal("too many rows were taken")
		}
	})
}
