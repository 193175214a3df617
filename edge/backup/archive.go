// Package backup puts everything durable of an edge, or of the network it belongs
// to, into one file, and makes a data directory of such a file again.
//
// # The file
//
// Lines of text: the first names the format, the second is a Header, each further
// one an entry of the store or a file of the data directory, as JSON. The last line
// is the SHA-256 of all before it. Whatever does not fit is refused as a whole. The
// file holds private keys: it has mode 0600, and with a passphrase it is wrapped in
// age's format (age-encryption.org/v1), which the age program opens too.
package backup

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"wormhole/edge/cluster/store"
)

const (
	magic     = "wormhole-backup/1"
	magicAny  = "wormhole-backup/"
	sumPrefix = "sha256 "
	// maxLine is above what a value of store.MaxValue needs in base64.
	maxLine = 2 << 20
	maxFile = 64 << 10
)

// ErrNotBackup says that a file is no backup, or not what was written.
var ErrNotBackup = errors.New("not a usable backup")

// Header says what a backup is of.
type Header struct {
	Created time.Time `json:"created"`
	// Node is the edge that a restored directory becomes.
	Node string `json:"node"`
	// Edge is the version of the program that wrote it.
	Edge string `json:"edge_version,omitempty"`
	// Revision is the highest revision of the network's store, 0 of an edge alone.
	Revision uint64 `json:"revision,omitempty"`
}

// Archive is a backup in memory.
type Archive struct {
	Header
	Entries []Entry
	// Files are those of the data directory, by name: see FileNames.
	Files map[string][]byte
}

// Entry is one of the store.
type Entry struct {
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
	Value  []byte `json:"value"`
}

type file struct {
	Name string `json:"file"`
	Text []byte `json:"text"`
}

// FileNames are the files of a data directory that a backup may hold: its authority
// for names that no public CA certifies.
func FileNames() []string { return []string{"ca/ca-key.pem"} }

// Source is a store that can be read whole.
type Source interface {
	Buckets() ([]string, error)
	List(ctx context.Context, bucket string) ([]store.Entry, error)
}

// Read takes everything out of a store. A damaged entry is an error that names all
// of them: a backup without them would look whole.
func Read(ctx context.Context, s Source) (entries []Entry, revision uint64, err error) {
	names, err := s.Buckets()
	if err != nil {
		return nil, 0, err
	}
	slices.Sort(names)
	var faults []error
	for _, name := range names {
		list, err := s.List(ctx, name)
		if err != nil {
			faults = append(faults, err)
		}
		for _, e := range list {
			entries = append(entries, Entry{name, e.Key, e.Value})
			revision = max(revision, e.Revision)
		}
	}
	return entries, revision, errors.Join(faults...)
}

// Write writes the archive. It does not close w.
func (a *Archive) Write(w io.Writer) error {
	buffered := bufio.NewWriter(w)
	sum := sha256.New()
	out := io.MultiWriter(buffered, sum)
	enc := json.NewEncoder(out) // ends each value with a line feed
	if _, err := fmt.Fprintln(out, magic); err != nil {
		return err
	}
	if err := enc.Encode(a.Header); err != nil {
		return err
	}
	for _, e := range a.Entries {
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.Files)) {
		if err := enc.Encode(file{name, a.Files[name]}); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(buffered, "%s%x\n", sumPrefix, sum.Sum(nil)); err != nil {
		return err
	}
	return buffered.Flush()
}

// Parse reads what Write wrote. Its errors are ErrNotBackup, or of r.
func Parse(r io.Reader) (*Archive, error) {
	fail := func(format string, args ...any) (*Archive, error) {
		return nil, fmt.Errorf("%w: %s", ErrNotBackup, fmt.Sprintf(format, args...))
	}
	lines := &lineReader{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	first, err := lines.next()
	switch {
	case err != nil && !errors.Is(err, errLine):
		return nil, err
	case string(first) == magic:
	case strings.HasPrefix(string(first), magicAny) && len(first) < 40:
		return fail("it is of the format %s, and this program knows %s", first, magic)
	default:
		return fail("it does not begin like one")
	}
	a := &Archive{Files: map[string][]byte{}}
	text, err := lines.next()
	if err != nil {
		return fail("it ends after its first line")
	}
	if err := decode(text, &a.Header); err != nil {
		return fail("line 2: %v", err)
	}
	if !validNode(a.Node) {
		return fail("it names no edge")
	}
	seen := map[[2]string]bool{}
	for n := 3; ; n++ {
		before := lines.sum.Sum(nil)
		text, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return fail("it ends after line %d, without its checksum: it was cut off", n-1)
		case errors.Is(err, errLine):
			return fail("line %d: %v", n, err)
		case err != nil:
			return nil, err
		}
		if want, ok := strings.CutPrefix(string(text), sumPrefix); ok {
			if want != hex.EncodeToString(before) {
				return fail("its checksum is wrong: it was damaged or altered")
			}
			if _, err := lines.next(); !errors.Is(err, io.EOF) {
				return fail("something follows its end")
			}
			return a, nil
		}
		if err := a.line(text, seen); err != nil {
			return fail("line %d: %v", n, err)
		}
	}
}

func (a *Archive) line(text []byte, seen map[[2]string]bool) error {
	if bytes.HasPrefix(text, []byte(`{"file":`)) {
		var f file
		if err := decode(text, &f); err != nil {
			return err
		}
		if !slices.Contains(FileNames(), f.Name) || len(f.Text) > maxFile || a.Files[f.Name] != nil {
			return fmt.Errorf("a file %.40q does not belong here", f.Name)
		}
		a.Files[f.Name] = f.Text
		return nil
	}
	var e Entry
	if err := decode(text, &e); err != nil {
		return err
	}
	if err := store.CheckKey(e.Bucket, e.Key); err != nil {
		return err
	}
	if len(e.Value) > store.MaxValue {
		return fmt.Errorf("a value of %d bytes is too large", len(e.Value))
	}
	id := [2]string{e.Bucket, e.Key}
	if seen[id] {
		return fmt.Errorf("%s/%s is there twice", e.Bucket, e.Key)
	}
	seen[id] = true
	a.Entries = append(a.Entries, e)
	return nil
}

// decode is strict: what this version does not know, it would lose.
func decode(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if dec.More() {
		return errors.New("more than one value")
	}
	return nil
}

var errLine = errors.New("a line has no end or is too long")

// lineReader yields lines without their end and sums up all it has read.
type lineReader struct {
	r   *bufio.Reader
	sum hash.Hash
}

func (l *lineReader) next() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxLine, errors.Is(err, io.EOF) && len(line) > 0:
			return nil, errLine
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return nil, err
		}
		l.sum.Write(line)
		return line[:len(line)-1], nil
	}
}

// validNode reports whether s is a node's id: 16 hexadecimal digits.
func validNode(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 8 && strings.ToLower(s) == s
}
