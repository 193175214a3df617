// Package gather writes what TLS makes of one large write with few system calls.
//
// crypto/tls cuts what it is given into records of 16 KiB and writes each by
// itself; then each goes through the kernel's network stack, and may wake the peer,
// by itself too.
package gather

import (
	"io"
	"sync"
)

// Limit is how many bytes are kept at most: four full records and their overhead.
const Limit = 66 << 10

// buffers lends memory while something is kept.
var buffers = sync.Pool{New: func() any { return new([Limit]byte) }}

// Writer passes writes on, and keeps them between Hold and Release to pass them on
// together. Its methods may be called concurrently; what one goroutine writes while
// another holds is kept as well, in order. W must be set before the first use.
type Writer struct {
	W io.Writer

	mu      sync.Mutex // guards what follows, and writes to W
	holding bool
	kept    *[Limit]byte // nil while nothing is kept
	n       int          // bytes kept
	err     error        // of a write that came later than its caller was told
	attempt attempt
}

// Hold keeps what is written from now on. Release must follow; there is no nesting.
func (w *Writer) Hold() {
	w.mu.Lock()
	w.holding = true
	w.mu.Unlock()
}

// Release passes on what is kept. Its error, and that of every write after it, is
// that of the first write that failed since Hold.
func (w *Writer) Release() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holding = false
	w.pass()
	return w.err
}

// ReleaseNow is Release for who must not wait: what the socket does not take at once
// goes out before whatever is written next, and with the next Release. all says that
// nothing is kept. If W is no socket, it takes nothing at once.
func (w *Writer) ReleaseNow() (all bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holding = false
	if w.kept == nil {
		return true, w.err
	}
	if w.err == nil {
		var n int
		n, w.err = w.attempt.write(w.W, w.kept[:w.n])
		w.n = copy(w.kept[:], w.kept[n:w.n])
	}
	if w.n == 0 || w.err != nil {
		w.drop()
	}
	return w.kept == nil, w.err
}

// Write implements io.Writer. While held it returns before p was written.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	if !w.holding {
		if w.pass(); w.err != nil { // what ReleaseNow has left
			return 0, w.err
		}
		return w.W.Write(p)
	}
	if w.n+len(p) > Limit {
		if w.pass(); w.err != nil {
			return 0, w.err
		}
		if len(p) > Limit {
			return w.W.Write(p)
		}
	}
	if w.kept == nil {
		w.kept = buffers.Get().(*[Limit]byte)
	}
	w.n += copy(w.kept[w.n:], p)
	return len(p), nil
}

// pass writes what is kept. The caller holds mu.
func (w *Writer) pass() {
	if w.kept == nil {
		return
	}
	if w.err == nil {
		_, w.err = w.W.Write(w.kept[:w.n])
	}
	w.drop()
}

// drop forgets what is kept. The caller holds mu.
func (w *Writer) drop() {
	buffers.Put(w.kept)
	w.kept, w.n = nil, 0
}
