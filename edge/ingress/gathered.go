package ingress

import (
	"net/http"
)

// gathered is the answer to a request of HTTP/1.1 over TLS. What its handler writes
// at once goes to the socket at once, and not in records of 16 KiB. There is one for
// each connection, as that carries one request at a time.
type gathered struct {
	http.ResponseWriter
	c    *conn
	held bool // between Hold and Release
}

// worth is from what size on a write is gathered: that of a TLS record.
const worth = 16 << 10

// gatherH1 returns what the handler of r is to write to.
func gatherH1(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	if r.TLS == nil || r.ProtoMajor != 1 {
		return w // nobody cuts it, or others write on the connection meanwhile
	}
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		return w
	}
	c.h1 = gathered{ResponseWriter: w, c: c}
	return &c.h1
}

// Hold keeps what is written until Release, or until it is much: more follows at once.
func (g *gathered) Hold() {
	if !g.held {
		g.held = true
		g.c.Hold()
	}
}

// Release sends what Hold has kept. A failed write may be told by it, and not by the
// Write that was given the bytes.
func (g *gathered) Release() error {
	if !g.held {
		return nil
	}
	g.held = false
	return g.c.Release()
}

// Write implements io.Writer. When it returns, p is on its way, unless it is held.
func (g *gathered) Write(p []byte) (int, error) {
	if g.held || len(p) <= worth {
		return g.ResponseWriter.Write(p)
	}
	g.c.Hold()
	n, err := g.ResponseWriter.Write(p)
	if late := g.c.Release(); err == nil && late != nil {
		return 0, late
	}
	return n, err
}

// Flush implements http.Flusher.
func (g *gathered) Flush() { _ = http.NewResponseController(g.ResponseWriter).Flush() }

// Unwrap is for http.ResponseController.
func (g *gathered) Unwrap() http.ResponseWriter { return g.ResponseWriter }
