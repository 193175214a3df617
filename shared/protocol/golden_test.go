package protocol

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the wire bytes in testdata")

// messages holds one value of every message, all fields set.
func messages() []struct {
	name string
	t    Type
	v    any
} {
	return []struct {
		name string
		t    Type
		v    any
	}{
		{"hello", TypeHello, &Hello{
			Token: "eyJ0", Instance: "00112233445566778899aabbccddeeff", Tunnel: "t1",
			Hosts: []string{"a.example", "*.b.example"}, Name: "web-1", Tags: map[string]string{"region": "fra", "tier": "1"},
			Release: "42", Branch: "main", ReleaseDescription: "Fix the door", Version: "1.2.3", AppProtocol: "h2c", Ready: true,
		}},
		{"welcome", TypeWelcome, &Welcome{
			Tunnel: "t1", Node: "n1", Region: "fra", Hosts: []string{"a.example"},
			Edges: []Edge{{Node: "n1", Region: "fra", Addr: "edge1.example:443"}}, Version: "1.2.3", MaxStreams: 1024,
			Connections: 4,
		}},
		{"reject", TypeReject, &Reject{Code: CodeBusy, Reason: "too many hellos", RetryAfterMillis: 1500}},
		{"ready", TypeReady, &Ready{Ready: false, Reason: "port 8000 is closed"}},
		{"drain", TypeDrain, &Drain{Reason: "SIGTERM"}},
		{"drain_ack", TypeDrainAck, nil},
		{"beat", TypeBeat, AppendBeat(0x0102030405060708)},
		{"beat_ack", TypeBeatAck, AppendBeat(0x0102030405060708)},
		{"token", TypeToken, &TokenRefresh{Token: "eyJ1"}},
		{"edges", TypeEdges, &Edges{Edges: []Edge{{Node: "n2", Addr: "192.0.2.1:443"}}}},
		{"go_away", TypeGoAway, &GoAway{Reason: "upgrade", Code: CodeDraining, DelayMillis: 250, DeadlineMillis: 30000}},
		{"stream_end", TypeStreamEnd, StreamEnd{Stream: 6, Delivered: 1 << 40, Clean: true}.Encode()},
		{"token_ack", TypeTokenAck, &TokenAck{Reject: &Reject{Code: CodeTokenExpired, Reason: "expired"}}},
	}
}

// golden compares got with the bytes of a file in testdata, as hex.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	if *update {
		if err := os.WriteFile(path, []byte(hex.Dump(got)), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if hex.Dump(got) != string(want) {
		t.Errorf("wire bytes of %s changed:\ngot\n%swant\n%s", name, hex.Dump(got), want)
	}
}

func TestWireBytesOfMessages(t *testing.T) {
	for _, m := range messages() {
		t.Run(m.name, func(t *testing.T) {
			var wire bytes.Buffer
			if err := WriteMessage(&wire, m.t, m.v); err != nil {
				t.Fatal(err)
			}
			golden(t, m.name, wire.Bytes())

			wire.WriteString("next frame")
			gotType, payload, err := ReadMessage(&wire, MaxMessage)
			if err != nil || gotType != m.t {
				t.Fatalf("read type %d and %v, want %d", gotType, err, m.t)
			}
			if wire.String() != "next frame" {
				t.Errorf("reading the frame left %q", wire.String())
			}
			switch want := m.v.(type) {
			case nil:
				if len(payload) != 0 {
					t.Errorf("payload = %x, want none", payload)
				}
			case []byte:
				if !bytes.Equal(payload, want) {
					t.Errorf("payload = %x, want %x", payload, want)
				}
			default:
				got := reflect.New(reflect.TypeOf(m.v).Elem()).Interface()
				if err := Decode(payload, got); err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("decoded %+v and %v, want %+v", got, err, want)
				}
			}
		})
	}
}

func TestWireBytesOfStreamHeaders(t *testing.T) {
	for name, h := range map[string]StreamHeader{
		"stream_header_http": {Kind: KindHTTP, RequestID: "01JD0000000000000000000000"},
		"stream_header_tcp":  {Kind: KindTCP, Port: "ssh", Client: "[2001:db8::1]:50000", RequestID: "r1"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := AppendStreamHeader(nil, h)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, b)
			r := bytes.NewReader(append(b, "body"...))
			got, err := ReadStreamHeader(r)
			if err != nil || got != h || r.Len() != 4 {
				t.Errorf("read %+v and %v, %d bytes left; want %+v and 4", got, err, r.Len(), h)
			}
		})
	}
}
