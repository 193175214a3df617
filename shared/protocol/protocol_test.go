package protocol

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// oneWrite fails a second Write.
type oneWrite struct {
	t *testing.T
	n int
}

func (w *oneWrite) Write(p []byte) (int, error) {
	if w.n++; w.n > 1 {
		w.t.Error("more than one Write for a frame")
	}
	return len(p), nil
}

func TestAFrameIsOneWrite(t *testing.T) {
	if err := WriteMessage(&oneWrite{t: t}, TypeHello, &Hello{Token: "t"}); err != nil {
		t.Fatal(err)
	}
}

func TestOversizeIsRefusedBeforeTheWire(t *testing.T) {
	var wire bytes.Buffer
	for name, m := range map[string]struct {
		t Type
		v any
	}{
		"hello":   {TypeHello, &Hello{Token: strings.Repeat("x", MaxHello)}},
		"message": {TypeEdges, bytes.Repeat([]byte{'x'}, MaxMessage+1)},
	} {
		if err := WriteMessage(&wire, m.t, m.v); !errors.Is(err, ErrTooLarge) || wire.Len() > 0 {
			t.Errorf("%s: error = %v with %d bytes written, want ErrTooLarge and none", name, err, wire.Len())
		}
	}
}

func TestReadMessageStopsAtItsLimit(t *testing.T) {
	frame := append([]byte{byte(TypeHello), 0, 0x20, 0}, make([]byte, 0x2000)...)
	r := bytes.NewReader(frame)
	if _, _, err := ReadMessage(r, 0x1fff); !errors.Is(err, ErrTooLarge) || r.Len() != 0x2000 {
		t.Errorf("error = %v with %d bytes left, want ErrTooLarge with the payload unread", err, r.Len())
	}
}

func TestTruncatedFramesAreNotEOF(t *testing.T) {
	frame := []byte{byte(TypeReady), 0, 0, 2, '{', '}'}
	for n := range frame {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, _, err := ReadMessage(bytes.NewReader(frame[:n]), MaxMessage); !errors.Is(err, want) {
			t.Errorf("after %d bytes: error = %v, want %v", n, err, want)
		}
	}
}

func TestStreamHeadersAreStrict(t *testing.T) {
	for name, wire := range map[string]string{
		"kind 0":             "\x00\x00\x03\x00\x00\x00",
		"too long":           "\x01\x04\x00",
		"no fields":          "\x01\x00\x00",
		"field past the end": "\x01\x00\x03\x05ab",
		"third field gone":   "\x01\x00\x02\x00\x00",
		"control character":  "\x01\x00\x04\x01\n\x00\x00",
		"space":              "\x01\x00\x04\x01 \x00\x00",
		"not ASCII":          "\x01\x00\x04\x01\xff\x00\x00",
	} {
		if h, err := ReadStreamHeader(strings.NewReader(wire)); err == nil {
			t.Errorf("%s: read %+v, want an error", name, h)
		}
	}
	for name, h := range map[string]StreamHeader{
		"no kind":   {},
		"long":      {Kind: KindHTTP, Client: strings.Repeat("x", 256)},
		"line feed": {Kind: KindHTTP, RequestID: "a\nb"},
	} {
		if b, err := AppendStreamHeader([]byte("before"), h); !errors.Is(err, ErrMalformed) || string(b) != "before" {
			t.Errorf("%s: appended %q and %v, want ErrMalformed", name, b, err)
		}
	}
}

func TestTheLongestStreamHeaderFits(t *testing.T) {
	long := strings.Repeat("x", 255)
	want := StreamHeader{Kind: KindTLS, Port: long, Client: long, RequestID: long}
	b, err := AppendStreamHeader(nil, want)
	if err != nil || len(b) > MaxStreamHeader {
		t.Fatalf("%d bytes and %v, want at most %d", len(b), err, MaxStreamHeader)
	}
	if got, err := ReadStreamHeader(bytes.NewReader(b)); err != nil || got != want {
		t.Errorf("read %+v and %v", got, err)
	}
}

func TestLaterFieldsOfAStreamHeaderAreSkipped(t *testing.T) {
	r := strings.NewReader("\x01\x00\x07\x00\x00\x02id\x01zbody")
	h, err := ReadStreamHeader(r)
	if err != nil || h.RequestID != "id" || r.Len() != 4 {
		t.Errorf("read %+v and %v with %d bytes left", h, err, r.Len())
	}
}

func TestPermanentCodes(t *testing.T) {
	for code, want := range map[Code]bool{
		CodeTokenExpired: true, CodeHostForbidden: true, CodeBadHello: true,
		CodeBusy: false, CodeDraining: false, CodeTokenNotYetValid: false, CodeInternal: false, "unknown": false,
	} {
		if got := code.Permanent(); got != want {
			t.Errorf("%s: permanent = %v, want %v", code, got, want)
		}
	}
}

func FuzzStreamHeader(f *testing.F) {
	b, _ := AppendStreamHeader(nil, StreamHeader{Kind: KindTCP, Port: "p", Client: "192.0.2.1:1", RequestID: "r"})
	f.Add(b)
	f.Add([]byte("\x01\x00\x07\x00\x00\x02id\x01z"))
	f.Add([]byte("\x01\xff\xff"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		h, err := ReadStreamHeader(bytes.NewReader(wire))
		if err != nil {
			return
		}
		b, err := AppendStreamHeader(nil, h)
		if err != nil {
			t.Fatalf("a header that was read cannot be written: %+v: %v", h, err)
		}
		if again, err := ReadStreamHeader(bytes.NewReader(b)); err != nil || again != h {
			t.Fatalf("read %+v, then %+v and %v", h, again, err)
		}
	})
}

func FuzzMessage(f *testing.F) {
	for _, m := range messages() {
		var wire bytes.Buffer
		if err := WriteMessage(&wire, m.t, m.v); err != nil {
			f.Fatal(err)
		}
		f.Add(wire.Bytes())
	}
	f.Add([]byte{99, 0, 0, 1, 'x'})
	f.Fuzz(func(t *testing.T, wire []byte) {
		typ, payload, err := ReadMessage(bytes.NewReader(wire), MaxMessage)
		if err != nil {
			return
		}
		v := map[Type]any{
			TypeHello: new(Hello), TypeWelcome: new(Welcome), TypeReject: new(Reject), TypeReady: new(Ready),
			TypeDrain: new(Drain), TypeToken: new(TokenRefresh), TypeEdges: new(Edges), TypeGoAway: new(GoAway),
			TypeTokenAck: new(TokenAck),
		}[typ]
		switch {
		case v != nil:
			if Decode(payload, v) != nil {
				return
			}
			// What was understood can be said again; invalid UTF-8 may make it longer.
			if err := WriteMessage(io.Discard, typ, v); err != nil && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("%+v cannot be written: %v", v, err)
			}
		case typ == TypeStreamEnd:
			if end, err := DecodeStreamEnd(payload); err == nil && !bytes.Equal(end.Encode(), payload[:streamEndLen]) {
				t.Fatalf("%x decodes to %+v", payload, end)
			}
		case typ == TypeBeat || typ == TypeBeatAck:
			if seq, err := DecodeBeat(payload); err == nil && !bytes.Equal(AppendBeat(seq), payload) {
				t.Fatalf("%x decodes to %d", payload, seq)
			}
		}
	})
}
