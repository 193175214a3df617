package oracle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
)

// Header fields of the oracle.
const (
	IDHeader  = "Oracle-Id"  // of a request: its id
	AppHeader = "Oracle-App" // of an answer: the app that gave it
)

// App is the app's end: an http.Handler that logs every request and answers so
// that the client can check it.
//
//	GET  /get?n=N       Content of the id, N bytes; &ms=M waits before;
//	                    &halt=H stops after H bytes until the client leaves
//	POST /post          length and hash of the body, with any method; &ms=M waits before
//	GET  /ws            a WebSocket that echoes
//	GET  /sse?ms=M      an event every M milliseconds, numbered from 0
//	                    the gRPC method Chat echoes
type App struct {
	name string
	log  *Log
	grpc *grpc.Server
	mux  *http.ServeMux

	leaving context.Context // ends when Serve begins to stop: ends what never ends by itself
	leave   context.CancelFunc
}

// NewApp makes an app that answers under a name and notes in log what it saw.
func NewApp(name string, log *Log) *App {
	a := &App{name: name, log: log, grpc: newChatServer(), mux: http.NewServeMux()}
	a.leaving, a.leave = context.WithCancel(context.Background())
	a.mux.HandleFunc("GET /get", a.get)
	a.mux.HandleFunc("/post", a.post)
	a.mux.HandleFunc("GET /ws", a.chat)
	a.mux.HandleFunc("GET /sse", a.events)
	return a
}

// ServeHTTP answers one request. gRPC needs HTTP/2.
func (a *App) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(AppHeader, a.name)
	if id := r.Header.Get(IDHeader); id != "" {
		a.log.Arrived(a.name, id)
	}
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		a.grpc.ServeHTTP(w, r)
		return
	}
	a.mux.ServeHTTP(w, r)
}

// Serve answers on l, over HTTP/1.1 and unencrypted HTTP/2, until ctx ends. Then
// it ends event streams and WebSockets, lets requests finish for grace, and returns
// nil.
func (a *App) Serve(ctx context.Context, l net.Listener, grace time.Duration) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: a, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 75 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }() // ends with Shutdown, and is waited for
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	within, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	a.leave()
	if server.Shutdown(within) != nil {
		_ = server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (a *App) get(w http.ResponseWriter, r *http.Request) {
	if !pause(r, "ms") {
		return
	}
	body := Content(r.Header.Get(IDHeader), number(r, "n"))
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if halt := number(r, "halt"); halt > 0 && halt < len(body) {
		_, _ = w.Write(body[:halt])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(body) // the client sees what is missing
}

func (a *App) post(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // nobody is left to answer to
	}
	hash := hex.EncodeToString(sum.Sum(nil))
	a.log.Body(r.Header.Get(IDHeader), n, hash)
	if !pause(r, "ms") {
		return
	}
	fmt.Fprintf(w, "%d %s\n", n, hash)
}

func (a *App) chat(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow()
	for {
		kind, message, err := conn.Read(a.leaving)
		if err != nil {
			return
		}
		if conn.Write(a.leaving, kind, message) != nil {
			return
		}
	}
}

func (a *App) events(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	for i := 0; ; i++ {
		if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil {
			return
		}
		_ = control.Flush()
		if !pause(r, "ms") || a.leaving.Err() != nil {
			return
		}
	}
}

// pause waits as many milliseconds as the query's key says, and reports whether
// the client is still there.
func pause(r *http.Request, key string) bool {
	ms := number(r, key)
	if ms == 0 {
		return true
	}
	t := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

func number(r *http.Request, key string) int {
	n, _ := strconv.Atoi(r.URL.Query().Get(key))
	return max(n, 0)
}
