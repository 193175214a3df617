package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

func TestPathsAnswerAsTheirCommentSays(t *testing.T) {
	server := httptest.NewServer(handler("statler"))
	defer server.Close()
	for _, c := range []struct {
		method, path, body, want string
		status                   int
	}{
		{http.MethodGet, "/", "", "You have reached statler\n", 200},
		{http.MethodGet, "/anything", "", "You have reached statler\n", 200},
		{http.MethodGet, "/slow?ms=1", "", "You have reached statler, slowly\n", 200},
		{http.MethodPost, "/echo", "here and back", "here and back", 200},
		{http.MethodPost, "/upload", "abc", "3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n", 200},
		{http.MethodGet, "/bytes?n=3", "", "\x00\x01\x02", 200},
		{http.MethodGet, "/bytes?n=3&chunked=1", "", "\x00\x01\x02", 200},
		{http.MethodGet, "/status?code=418", "", "", 418},
		{http.MethodGet, "/status?code=99999", "", "", 400},
	} {
		t.Run(c.path, func(t *testing.T) {
			status, body := call(t, server.URL+c.path, c.method, c.body)
			if status != c.status || body != c.want {
				t.Errorf("got %d %q, want %d %q", status, body, c.status, c.want)
			}
		})
	}
	if _, body := call(t, server.URL+"/sse?n=2&ms=1", http.MethodGet, ""); strings.Count(body, "\ndata: ") != 2 {
		t.Errorf("two events wanted, got %q", body)
	}
}

func TestWebSocketEchoes(t *testing.T) {
	server := httptest.NewServer(handler("x"))
	defer server.Close()
	conn, _, err := websocket.Dial(t.Context(), server.URL+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte("ping")); err != nil {
		t.Fatal(err)
	}
	kind, message, err := conn.Read(t.Context())
	if err != nil || kind != websocket.MessageBinary || !bytes.Equal(message, []byte("ping")) {
		t.Errorf("got %v %q, %v", kind, message, err)
	}
}

func TestEndsWhenTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, func(string) string { return "0" }); err != nil {
		t.Errorf("run: %v", err)
	}
}

func call(t *testing.T, url, method, body string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}
