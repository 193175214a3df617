package tunnel

// Sink takes bytes from who must not wait.
type Sink interface {
	// Offer takes all of p, or nothing where that would have to wait; then, and where
	// the bytes cannot be sent at all, a Write says why. It keeps nothing of p.
	Offer(p []byte) bool
	// Flush sees to it that what Offer took is sent. It must follow, and does not wait.
	Flush()
}

// Direct is an optional side of a Stream, for who passes on what comes and looks at
// none of it.
type Direct interface {
	Sink
	// PassTo has what arrives while a Read waits offered to sink, by the goroutine that
	// receives it; the Read goes on waiting. That saves a wake-up and a copy of every
	// short message. What sink does not take, what is long, and the stream's end, come
	// from Read. Bytes keep their order if who reads from the stream writes them to the
	// same place before the next Read, and nobody else writes there.
	PassTo(sink Sink)
}

// DirectOf returns that side of s, nil if it has none.
func DirectOf(s Stream) Direct {
	switch s := s.(type) {
	case Direct:
		return s
	case interface{ Direct() Direct }:
		return s.Direct()
	}
	return nil
}
