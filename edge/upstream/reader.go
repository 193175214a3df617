package upstream

import (
	"errors"
	"io"
)

// errMore says that what is buffered does not suffice to go on.
var errMore = errors.New("more bytes needed")

// reader buffers a stream so that heads and chunk lines can be parsed in place and
// pieces of a body handed out without a copy. Its buffer is borrowed while an
// exchange runs.
type reader struct {
	src     io.Reader
	buffers *Buffers
	buf     *[]byte // nil while nothing is buffered and no exchange runs
	r, w    int     // (*buf)[r:w] is buffered
}

func (rd *reader) buffered() []byte {
	if rd.buf == nil {
		return nil
	}
	return (*rd.buf)[rd.r:rd.w]
}

func (rd *reader) skip(n int) { rd.r += n }

// fill reads once more from the source. It moves what is buffered to the front and,
// when that fills the buffer, grows it up to limit bytes; slices handed out before
// are invalid then. It returns errTooLong
// when the limit is reached.
func (rd *reader) fill(limit int) error {
	if rd.buf == nil {
		rd.buf = rd.buffers.borrowSmall()
	}
	if rd.r > 0 {
		copy(*rd.buf, (*rd.buf)[rd.r:rd.w])
		rd.w -= rd.r
		rd.r = 0
	}
	if rd.w == len(*rd.buf) {
		if rd.w >= limit {
			return errTooLong
		}
		grown := make([]byte, min(2*rd.w, limit))
		copy(grown, *rd.buf)
		rd.buffers.giveBack(rd.buf)
		rd.buf = &grown
	}
	for range 8 {
		n, err := rd.src.Read((*rd.buf)[rd.w:])
		rd.w += n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// widen replaces a small buffer that is empty by a large one, for a body that is
// worth it.
func (rd *reader) widen() {
	if rd.r == rd.w && (rd.buf == nil || cap(*rd.buf) < largeBuffer) {
		rd.release()
		rd.buf = rd.buffers.borrowLarge()
	}
}

// release gives the buffer back; what is buffered is lost.
func (rd *reader) release() {
	rd.r, rd.w = 0, 0
	if rd.buf != nil {
		rd.buffers.giveBack(rd.buf)
		rd.buf = nil
	}
}
