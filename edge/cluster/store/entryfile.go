package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// An entry's file is one line of text, then the key, a line end and the value:
//
//	wormhole-entry/1 REVISION KEY-LENGTH VALUE-LENGTH SHA256\n
//	KEY\n
//	VALUE
//
// The hash covers everything but itself, so that a file that was truncated,
// damaged, or moved to the name of another key is recognised.
const entryMagic = "wormhole-entry/1"

// maxEntryFile bounds what is read of a file.
const maxEntryFile = 256 + MaxKey + MaxValue

func encodeEntry(e Entry) []byte {
	head := entryHead(e.Revision, len(e.Key), len(e.Value))
	sum := entrySum(head, e.Key, e.Value)
	b := make([]byte, 0, len(head)+2*len(sum)+len(e.Key)+len(e.Value)+3)
	b = append(b, head...)
	b = append(b, ' ')
	b = hex.AppendEncode(b, sum[:])
	b = append(b, '\n')
	b = append(b, e.Key...)
	b = append(b, '\n')
	return append(b, e.Value...)
}

func entryHead(revision uint64, key, value int) string {
	return fmt.Sprintf("%s %d %d %d", entryMagic, revision, key, value)
}

func entrySum(head, key string, value []byte) [sha256.Size]byte {
	h := sha256.New()
	_, _ = io.WriteString(h, head+"\n"+key+"\n") // a hash never fails to write
	_, _ = h.Write(value)
	return [sha256.Size]byte(h.Sum(nil))
}

// decodeEntry is the inverse of encodeEntry. The entry's value shares b.
func decodeEntry(b []byte) (Entry, error) {
	line, rest, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return Entry{}, errors.New("no first line")
	}
	f := strings.Split(string(line), " ")
	if len(f) != 5 || f[0] != entryMagic {
		return Entry{}, errors.New("not an entry's first line")
	}
	revision, err1 := strconv.ParseUint(f[1], 10, 64)
	keyLen, err2 := strconv.ParseUint(f[2], 10, 16)
	valueLen, err3 := strconv.ParseUint(f[3], 10, 32)
	if err := errors.Join(err1, err2, err3); err != nil {
		return Entry{}, errors.New("a number of the first line is wrong")
	}
	if want := keyLen + 1 + valueLen; uint64(len(rest)) != want {
		return Entry{}, fmt.Errorf("%d bytes follow the first line instead of %d", len(rest), want)
	}
	key, value := string(rest[:keyLen]), rest[keyLen+1:]
	head := entryHead(revision, len(key), len(value))
	sum := entrySum(head, key, value)
	if f[4] != hex.EncodeToString(sum[:]) || !bytes.HasPrefix(line, []byte(head)) || rest[keyLen] != '\n' {
		return Entry{}, errors.New("the checksum is wrong")
	}
	return Entry{Key: key, Value: value, Revision: revision}, nil
}

// readEntryFile reads the entry of a file whose name is that of key, or of
// whatever key the file holds if key is empty. It also returns the identity of
// the very file it read. An error is fs.ErrNotExist, a *CorruptError, or that of
// the read.
func readEntryFile(bucket, key, path string) (Entry, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return Entry{}, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Entry{}, nil, err
	}
	name := path[strings.LastIndexByte(path, os.PathSeparator)+1:]
	corrupt := func(why string) error {
		if key == "" {
			key = keyOfFile(name)
		}
		return &CorruptError{Bucket: bucket, Key: key, Path: path, Why: why}
	}
	if !info.Mode().IsRegular() {
		return Entry{}, info, corrupt("it is not a regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxEntryFile+1))
	if err != nil {
		return Entry{}, info, err
	}
	if len(b) > maxEntryFile {
		return Entry{}, info, corrupt("it is too large")
	}
	e, err := decodeEntry(b)
	if err != nil {
		return Entry{}, info, corrupt(err.Error())
	}
	if fileOfKey(e.Key) != name || key != "" && e.Key != key {
		return Entry{}, info, corrupt("it holds the entry of another key")
	}
	return e, info, nil
}

// longestName is the length from which a file's name is shortened; most file
// systems take 255 bytes.
const longestName = 200

// fileOfKey is the name of a key's file. It has no upper-case letters, for file
// systems that do not tell them apart, no separator, and begins with a dot only
// for files of the store itself.
func fileOfKey(key string) string {
	var b strings.Builder
	for i := range len(key) {
		switch c := key[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '=', c == '.':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	if b.Len() <= longestName {
		return b.String()
	}
	// "~" is in no other name. The full key is in the file.
	sum := sha256.Sum256([]byte(key))
	return b.String()[:longestName/2] + "~" + hex.EncodeToString(sum[:])
}

// keyOfFile recovers a key from the name of its file. Where that is not possible
// it returns the name, which then is no valid key.
func keyOfFile(name string) string {
	key, err := url.PathUnescape(name)
	if err != nil || fileOfKey(key) != name {
		return name
	}
	return key
}
