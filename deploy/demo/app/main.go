// Command app is what the demo and the tests put behind a tunnel. It answers
// "You have reached ${SERVER_NAME}" on port 8000 (PORT overrides), and has a few
// paths that behave like the parts of real apps:
//
//	/slow?ms=N           answers after N milliseconds
//	/bytes?n=N           N bytes with a Content-Length; &chunked=1 without one
//	/upload              reads the body, answers its length and SHA-256
//	/echo                sends the body back as it comes
//	/headers             the request's line and headers as the app saw them
//	/status?code=N       answers with that status
//	/sse?n=N&ms=M        N events, M milliseconds apart
//	/ws                  a WebSocket that echoes
//	/exit?code=N         ends the process
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, then lets open requests finish.
func run(ctx context.Context, env func(string) string) error {
	port := env("PORT")
	if port == "" {
		port = "8000"
	}
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler(env("SERVER_NAME")), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 75 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		_ = server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// handler answers as the copy called name.
func handler(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "You have reached %s\n", name)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		if !pause(r.Context(), number(r, "ms", 1000)) {
			return
		}
		fmt.Fprintf(w, "You have reached %s, slowly\n", name)
	})
	mux.HandleFunc("/bytes", sendBytes)
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler) // the client is gone; there is nobody to answer
		}
		fmt.Fprintf(w, "%d %x\n", n, sum.Sum(nil))
	})
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s\nHost: %s\n", r.Method, r.RequestURI, r.Proto, r.Host)
		_ = r.Header.Write(w)
	})
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) {
		code := number(r, "code", http.StatusOK)
		if code < 200 || code > 599 {
			code = http.StatusBadRequest
		}
		w.WriteHeader(code)
	})
	mux.HandleFunc("/sse", sendEvents)
	mux.HandleFunc("/ws", echoMessages)
	mux.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) { os.Exit(number(r, "code", 0)) })
	return mux
}

func sendBytes(w http.ResponseWriter, r *http.Request) {
	left := number(r, "n", 1024)
	w.Header().Set("Content-Type", "application/octet-stream")
	if r.URL.Query().Get("chunked") == "" {
		w.Header().Set("Content-Length", strconv.Itoa(left))
	}
	block := make([]byte, 32<<10)
	for i := range block {
		block[i] = byte(i)
	}
	for left > 0 {
		n, err := w.Write(block[:min(left, len(block))])
		if err != nil {
			return
		}
		left -= n
	}
}

func echo(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex()
	w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	block := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(block)
		if n > 0 {
			if _, err := w.Write(block[:n]); err != nil {
				return
			}
			_ = control.Flush()
		}
		switch {
		case err == io.EOF:
			return
		case err != nil:
			panic(http.ErrAbortHandler) // a half echo must not look whole
		}
	}
}

func sendEvents(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	for i := range number(r, "n", 10) {
		if i > 0 && !pause(r.Context(), number(r, "ms", 1000)) {
			return
		}
		if _, err := fmt.Fprintf(w, "id: %d\ndata: %s\n\n", i, time.Now().Format(time.RFC3339Nano)); err != nil {
			return
		}
		_ = control.Flush()
	}
}

func echoMessages(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow()
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if err := conn.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}

// pause waits and says whether the client is still there.
func pause(ctx context.Context, milliseconds int) bool {
	select {
	case <-time.After(time.Duration(milliseconds) * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

// number reads a query parameter; what is no number, or negative, is the default.
func number(r *http.Request, key string, fallback int) int {
	n, err := strconv.Atoi(r.URL.Query().Get(key))
	if err != nil || n < 0 {
		return fallback
	}
	return n
}
