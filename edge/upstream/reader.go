package upstream

import (
	"errors"
	"io"
)

// errMore says that what is buffered does not suffice to go on.
var errMore = errors.New("more bytes needed")

// reader buffers a stream so that heads and chunk lines can be parsed in place and
// pieces of a body handed out without a copy. Its buffer is borrowed while an
// exchange runs; instead of it, a stream may lend what it has received.
type reader struct {
	src     io.Reader
	lender  Lender // src too, or nil
	buffers *Buffers
	buf     *[]byte // nil while nothing is buffered and no exchange runs
	lent    []byte  // by the lender, or nil
	r, w    int     // lent[r:w] is buffered, or (*buf)[r:w] if nothing is lent
}

func (rd *reader) buffered() []byte {
	if rd.lent != nil {
		return rd.lent[rd.r:rd.w]
	}
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
	if rd.lent != nil {
		rd.keep()
	}
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

// lend replaces what is buffered, which must have been read to its end, by what the
// stream lends. It reports whether that is anything; if not, and there is no error,
// there is something to fill with.
func (rd *reader) lend() (bool, error) {
	rd.giveBack()
	b, err := rd.lender.Lend()
	if len(b) == 0 || err != nil {
		return false, err
	}
	if rd.buf != nil { // or it would lie idle for as long as the client takes
		rd.buffers.giveBack(rd.buf)
		rd.buf = nil
	}
	rd.lent, rd.r, rd.w = b, 0, len(b)
	return true, nil
}

// keep copies what was lent and not read.
func (rd *reader) keep() {
	rest := rd.buffered()
	if rd.buf == nil || len(*rd.buf) < len(rest) {
		if rd.buf != nil {
			rd.buffers.giveBack(rd.buf)
		}
		if rd.buf = rd.buffers.borrowSmall(); len(*rd.buf) < len(rest) {
			rd.buffers.giveBack(rd.buf)
			rd.buf = rd.buffers.borrowLarge()
		}
	}
	n := copy(*rd.buf, rest)
	rd.giveBack()
	rd.w = n
}

// giveBack ends a loan; what is buffered is lost.
func (rd *reader) giveBack() {
	rd.r, rd.w = 0, 0
	if rd.lent != nil {
		rd.lent = nil
		rd.lender.GiveBack()
	}
}

// ready reports whether something is buffered or could be at once.
func (rd *reader) ready() bool {
	return rd.r < rd.w || rd.lender != nil && rd.lender.Ready()
}

// widen replaces a small buffer that is empty by a large one, for a body that is
// worth it.
func (rd *reader) widen() {
	if rd.r == rd.w && rd.lent == nil && (rd.buf == nil || cap(*rd.buf) < largeBuffer) {
		rd.release()
		rd.buf = rd.buffers.borrowLarge()
	}
}

// release gives the buffer back; what is buffered is lost.
func (rd *reader) release() {
	rd.giveBack()
	if rd.buf != nil {
		rd.buffers.giveBack(rd.buf)
		rd.buf = nil
	}
}
