package oracle

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
)

// Log is where apps note what they saw. Several apps may share one; all methods
// may be called concurrently.
type Log struct {
	file *os.File // nil if only in memory

	mu   sync.Mutex // guards what follows
	seen Seen
	err  error // of the file
}

// Seen is what apps saw, by request id.
type Seen map[string]*Sight

// Sight is one request as apps saw it.
type Sight struct {
	Times int    // how often it arrived
	Whole int    // how often its body arrived to its end
	Bytes int64  // of the last whole body
	Hash  string // of the last whole body
	Apps  string // who saw it, separated by commas
}

// NewLog is a log in memory.
func NewLog() *Log { return &Log{seen: Seen{}} }

// OpenLog is a log that is also appended to a file, line by line at once, so that
// the app may be killed at any time. Several processes may append to one file.
func OpenLog(path string) (*Log, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open oracle log: %w", err)
	}
	return &Log{file: file, seen: Seen{}}, nil
}

// Arrived notes the head of a request.
func (l *Log) Arrived(app, id string) {
	l.note(func(s Seen) string {
		s.arrived(app, id)
		return fmt.Sprintf("a %s %s\n", id, app)
	})
}

// Body notes that the request's body was read to its end.
func (l *Log) Body(id string, n int64, hash string) {
	l.note(func(s Seen) string {
		s.body(id, n, hash)
		return fmt.Sprintf("b %s %d %s\n", id, n, hash)
	})
}

func (l *Log) note(f func(Seen) string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := f(l.seen)
	if l.file == nil {
		return
	}
	if _, err := l.file.WriteString(line); err != nil && l.err == nil {
		l.err = err
	}
}

// Seen is a copy of what was seen so far.
func (l *Log) Seen() Seen {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(Seen, len(l.seen))
	for id, s := range l.seen {
		c := *s
		out[id] = &c
	}
	return out
}

// Close closes the file, if there is one, and returns the first error of writing
// to it.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return errors.Join(l.err, l.file.Close())
}

// ReadLogs is what the files of OpenLog say together. A file that does not exist
// says nothing.
func ReadLogs(paths ...string) (Seen, error) {
	seen := Seen{}
	for _, path := range paths {
		file, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read oracle log: %w", err)
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			if err = seen.line(lines.Text()); err != nil {
				break
			}
		}
		err = errors.Join(err, lines.Err(), file.Close())
		if err != nil {
			return nil, fmt.Errorf("read oracle log %s: %w", path, err)
		}
	}
	return seen, nil
}

func (s Seen) line(text string) error {
	f := strings.Fields(text)
	switch {
	case len(f) == 3 && f[0] == "a":
		s.arrived(f[2], f[1])
		return nil
	case len(f) == 4 && f[0] == "b":
		n, err := strconv.ParseInt(f[2], 10, 64)
		if err == nil {
			s.body(f[1], n, f[3])
			return nil
		}
	}
	return fmt.Errorf("%q is not a line of the log", text)
}

func (s Seen) at(id string) *Sight {
	if s[id] == nil {
		s[id] = new(Sight)
	}
	return s[id]
}

func (s Seen) arrived(app, id string) {
	sight := s.at(id)
	if sight.Times++; sight.Times > 1 {
		sight.Apps += ","
	}
	sight.Apps += app
}

func (s Seen) body(id string, n int64, hash string) {
	sight := s.at(id)
	sight.Whole++
	sight.Bytes, sight.Hash = n, hash
}
