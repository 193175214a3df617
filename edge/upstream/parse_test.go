package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

func TestHeadEndFindsTheEmptyLineFromAnywhere(t *testing.T) {
	for _, text := range []string{"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", "HTTP/1.1 200 OK\nA: b\n\n", "A: b\r\n\n", "\r\n", "\n"} {
		seen := 0
		for n := range text {
			end, next := headEnd([]byte(text[:n]), seen)
			if end != 0 {
				t.Errorf("%q: end %d found in the first %d bytes", text, end, n)
			}
			seen = next
		}
		if end, _ := headEnd([]byte(text+"more\r\n\r\n"), seen); end != len(text) {
			t.Errorf("%q: end %d, want %d", text, end, len(text))
		}
	}
}

func TestHeadKeepsEndToEndFieldsOnly(t *testing.T) {
	var h head
	err := parseHead("HTTP/1.1 207 Multi Status\r\nconnection: x-gone, Upgrade\r\nX-Gone: 1\r\nX-Kept:  a\tb \r\n"+
		"upgrade: websocket\r\nKeep-Alive: timeout=7, max=3\r\nProxy-Authenticate: x\r\nset-cookie: a\r\nSet-Cookie: b\r\n\r\n", &h)
	if err != nil {
		t.Fatal(err)
	}
	want := []Field{{"X-Kept", "a\tb"}, {"Set-Cookie", "a"}, {"Set-Cookie", "b"}}
	if h.status != 207 || h.upgrade != "websocket" || h.keepAlive != 7 || h.closes || len(h.fields) != len(want) {
		t.Fatalf("got %+v", h)
	}
	for i, f := range want {
		if h.fields[i] != f {
			t.Errorf("field %d: got %v, want %v", i, h.fields[i], f)
		}
	}
}

// readChunked decodes a whole chunked body with the parser under test.
func readChunked(src io.Reader) (body []byte, trailers []Field, rest []byte, err error) {
	rd := &reader{src: src, buffers: new(Buffers)}
	var c chunks
	for {
		switch err := c.step(rd); {
		case err == nil && c.state == chunkDone:
			return body, c.trailers, bytes.Clone(rd.buffered()), nil
		case err == nil:
			b := rd.buffered()
			if int64(len(b)) > c.left {
				b = b[:c.left]
			}
			if len(b) > 0 {
				body = append(body, b...)
				rd.skip(len(b))
				c.took(len(b))
				continue
			}
		case err != errMore: //nolint:errorlint // never wrapped
			return body, nil, nil, err
		}
		if err := rd.fill(MaxHead); err != nil {
			return body, nil, nil, err
		}
	}
}

func TestChunksSurviveAnySplit(t *testing.T) {
	const raw = "5\r\nhello\r\nA ;x=\"y\"\r\n0123456789\r\n1\r\n!\r\n000\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\nrest"
	for name, src := range map[string]io.Reader{
		"whole": strings.NewReader(raw), "bytes": iotest.OneByteReader(strings.NewReader(raw)), "halves": iotest.HalfReader(strings.NewReader(raw)),
	} {
		body, trailers, _, err := readChunked(src)
		if err != nil || string(body) != "hello0123456789!" || len(trailers) != 1 || trailers[0] != (Field{"X-Sum", "1"}) {
			t.Errorf("%s: got %q %v %v", name, body, trailers, err)
		}
	}
}

func TestPieceFramesInPlace(t *testing.T) {
	for _, n := range []int{1, 15, 16, 4096, 30_000} {
		buf := bytes.Repeat([]byte("x"), 18+n+2)
		body, _, _, err := readChunked(io.MultiReader(bytes.NewReader(piece(buf, 18, n, true)), strings.NewReader("0\r\n\r\n")))
		if err != nil || len(body) != n {
			t.Errorf("%d bytes: got %d %v", n, len(body), err)
		}
	}
}

// FuzzHead compares with net/http: whatever this parser accepts, net/http reads as
// the same answer.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HTTP/1.0 404\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 200 OK\nA: b\n\n",
		"HTTP/1.1 200 OK\r\nConnection: close, a\r\nA: b\r\nKeep-Alive: timeout=5\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		end, _ := headEnd(data, 0)
		if end == 0 {
			return
		}
		var h head
		if parseHead(string(data[:end]), &h) != nil {
			return
		}
		if h.chunked && h.length >= 0 || h.status < 100 || h.status > 999 {
			t.Fatalf("accepted %+v", h)
		}
		for _, field := range h.fields {
			if !validName(field.Name) || !validValue(field.Value) {
				t.Fatalf("accepted field %q", field)
			}
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data[:end])), nil)
		if err != nil {
			t.Fatalf("accepted what net/http refuses: %v", err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != h.status {
			t.Fatalf("status %d, net/http reads %d", h.status, resp.StatusCode)
		}
		bodyless := h.status < 200 || h.status == 204 || h.status == 304
		if !bodyless && h.length >= 0 && resp.ContentLength != h.length {
			t.Fatalf("length %d, net/http reads %d", h.length, resp.ContentLength)
		}
		if !bodyless && h.chunked != (len(resp.TransferEncoding) == 1) {
			t.Fatalf("chunked %v, net/http reads %v", h.chunked, resp.TransferEncoding)
		}
	})
}

// FuzzChunked compares with net/http as well, and the parser with itself on other
// splits.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{"5\r\nhello\r\n0\r\n\r\n", "1;a=b\r\nx\r\n0\r\nA: b\r\n\r\n", "a \r\n0123456789\r\n0\r\n\r\nrest", "0\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		body, _, _, err := readChunked(bytes.NewReader(data))
		again, _, _, errAgain := readChunked(iotest.OneByteReader(bytes.NewReader(data)))
		if !bytes.Equal(body, again) || (err == nil) != (errAgain == nil) {
			t.Fatalf("depends on the split: %q %v, %q %v", body, err, again, errAgain)
		}
		if err != nil {
			if errors.Is(err, errMore) {
				t.Fatal("errMore leaked")
			}
			return
		}
		raw := io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), bytes.NewReader(data))
		resp, err := http.ReadResponse(bufio.NewReader(raw), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		want, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Equal(body, want) {
			t.Fatalf("read %q, net/http %q %v", body, want, err)
		}
	})
}

// FuzzRequest: whatever goes into a request, what comes out is one request.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/", "a.test", "X-A", "b", []byte(""))
	f.Add("POST", "/%2f?x", "a.test:80", "Connection", "x", []byte("body"))
	f.Fuzz(func(t *testing.T, method, target, host, name, value string, body []byte) {
		r := &Request{Method: method, Target: target, Host: host, Header: http.Header{name: {value}}, Body: body}
		b, err := r.appendHead(nil)
		if err != nil {
			return
		}
		raw := bufio.NewReader(bytes.NewReader(append(b, body...)))
		got, err := http.ReadRequest(raw)
		if err != nil {
			if strings.Contains(err.Error(), "invalid URL escape") || strings.Contains(err.Error(), "parse") {
				return // net/http looks into the target; framing is not affected
			}
			t.Fatalf("%q: %v", b, err)
		}
		if got.Method != method {
			t.Fatalf("%q became method %q", method, got.Method)
		}
		if method == "CONNECT" {
			return
		}
		if n, err := io.Copy(io.Discard, got.Body); err != nil || n != int64(len(body)) {
			t.Fatalf("%q: body of %d bytes, want %d: %v", b, n, len(body), err)
		}
		if raw.Buffered() > 0 {
			t.Fatalf("%q: %d bytes are left for a second request", b, raw.Buffered())
		}
	})
}
