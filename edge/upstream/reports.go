package upstream

import (
	"context"
	"sync"
	"time"

	"wormhole/shared/protocol"
	"wormhole/shared/tunnel"
)

// Reports are the open streams of one session whose ends the other side reports on
// the control stream. All methods may be called concurrently.
type Reports struct {
	session tunnel.Session

	mu      sync.Mutex // guards streams
	streams map[uint64]*Reported
}

// NewReports makes an empty book for the streams of session.
func NewReports(session tunnel.Session) *Reports {
	return &Reports{session: session, streams: map[uint64]*Reported{}}
}

// Track enters a stream that was just opened, before anything is written on it. Its
// Close takes it out.
func (r *Reports) Track(s tunnel.Stream) *Reported {
	t := &Reported{Stream: s, reports: r, ended: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streams[s.ID()] = t
	return t
}

// Find is the open stream with that id, or nil.
func (r *Reports) Find(id uint64) *Reported {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.streams[id]
}

// Note takes in a report. One of a stream that is not open is dropped, and of several
// of one stream the first counts.
func (r *Reports) Note(end protocol.StreamEnd) {
	if s := r.Find(end.Stream); s != nil {
		s.once.Do(func() {
			s.end = end
			close(s.ended)
		})
	}
}

// Reported is a stream together with the other side's report of its end.
type Reported struct {
	tunnel.Stream
	reports *Reports

	once  sync.Once
	ended chan struct{} // closed when end is set
	end   protocol.StreamEnd
}

// Begin writes the header and reads the answer, and rest (may be nil) reads what
// follows an OK. A refusal is a *Refused. When ctx ends, everything fails.
func (s *Reported) Begin(ctx context.Context, header []byte, rest func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := s.Write(header); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := s.Read(answer[:]); err != nil {
		return err
	}
	if a := protocol.Answer(answer[0]); a != protocol.AnswerOK {
		return &Refused{Answer: a}
	}
	if rest != nil {
		if err := rest(); err != nil {
			return err
		}
	}
	if !stop() {
		return ctx.Err()
	}
	return nil
}

// Delivered returns how many bytes after the header were handed to the app, once it
// was reported, and false if ctx ends or the session dies first.
func (s *Reported) Delivered(ctx context.Context) (uint64, bool) {
	select {
	case <-s.ended:
		return s.end.Delivered, true
	default:
	}
	select {
	case <-s.ended:
		return s.end.Delivered, true
	case <-s.reports.session.Done():
		return 0, false
	case <-ctx.Done():
		return 0, false
	}
}

// Lender returns the side of the stream that lends, nil if it has none.
func (s *Reported) Lender() Lender {
	l, _ := s.Stream.(Lender)
	return l
}

// Direct returns the side of the stream that passes bytes on, nil if it has none.
func (s *Reported) Direct() tunnel.Direct { return tunnel.DirectOf(s.Stream) }

// Ended implements Reporter.
func (s *Reported) Ended(ctx context.Context) (protocol.StreamEnd, bool) {
	if _, ok := s.Delivered(ctx); !ok {
		return protocol.StreamEnd{}, false
	}
	return s.end, true
}

// Close releases the stream; see tunnel.Stream.
func (s *Reported) Close() error {
	s.reports.mu.Lock()
	delete(s.reports.streams, s.ID())
	s.reports.mu.Unlock()
	return s.Stream.Close()
}
