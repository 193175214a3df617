package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"wormhole/edge/cluster/store"
)

const pass = "correct horse battery"

func sample() *Archive {
	return &Archive{
		Header: Header{Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Node: "00112233445566ff", Edge: "dev", Revision: 41},
		Entries: []Entry{
			{"hosts", "app.example.com", nil},
			{"keys", "ring", []byte(`{"network":"n"}`)},
			{"tokens", "t1", bytes.Repeat([]byte{0, 255}, 500)},
		},
		Files: map[string][]byte{"ca/ca-key.pem": []byte("-----BEGIN")},
	}
}

func written(t testing.TB, a *Archive) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := a.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sealedBytes(t testing.TB, a *Archive) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := seal(&b, pass, 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Write(w), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	a := sample()
	for name, text := range map[string][]byte{"plain": written(t, a), "sealed": sealedBytes(t, a)} {
		got, err := Open(bytes.NewReader(text), pass)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, a) {
			t.Errorf("%s: got %+v, want %+v", name, got, a)
		}
	}
}

func TestEveryCutAndEveryChangedByteIsRefused(t *testing.T) {
	text := written(t, sample())
	for n := range len(text) {
		if _, err := Parse(bytes.NewReader(text[:n])); !errors.Is(err, ErrNotBackup) && n > 0 {
			t.Fatalf("cut at %d of %d: %v", n, len(text), err)
		} else if err == nil {
			t.Fatalf("cut at %d of %d is taken", n, len(text))
		}
		altered := slices.Clone(text)
		altered[n] ^= 1
		if _, err := Parse(bytes.NewReader(altered)); err == nil {
			t.Fatalf("byte %d changed is taken", n)
		}
	}
	if _, err := Parse(bytes.NewReader(append(slices.Clone(text), 'x'))); err == nil {
		t.Error("what follows the end is taken")
	}
}

func TestASealedBackupIsOpenedByItsPassphraseAlone(t *testing.T) {
	text := sealedBytes(t, sample())
	if bytes.Contains(text, []byte("ring")) {
		t.Error("it can be read")
	}
	if _, err := Open(bytes.NewReader(text), ""); !errors.Is(err, ErrSealed) {
		t.Errorf("without a passphrase: %v", err)
	}
	if _, err := Open(bytes.NewReader(text), "another passphrase"); !errors.Is(err, ErrPassphrase) {
		t.Errorf("with another: %v", err)
	}
	text[len(text)-1] ^= 1
	if _, err := Open(bytes.NewReader(text), pass); !errors.Is(err, ErrNotBackup) {
		t.Errorf("altered: %v", err)
	}
	if _, err := Seal(&bytes.Buffer{}, "short"); err == nil {
		t.Error("a short passphrase is taken")
	}
}

func TestForeignFilesAreRefused(t *testing.T) {
	resum := func(text string) string { return text + sumPrefix + hexSum(text) + "\n" } // a checksum that is right
	head := magic + "\n" + `{"created":"2026-01-02T03:04:05Z","node":"00112233445566ff"}` + "\n"
	for what, text := range map[string]string{
		"nothing":           "",
		"another file":      "PK\x03\x04 a zip",
		"a later format":    resum("wormhole-backup/2\n{}\n"),
		"no node":           resum(magic + "\n" + `{"created":"2026-01-02T03:04:05Z","node":"../../etc"}` + "\n"),
		"unknown field":     resum(head + `{"bucket":"b","key":"k","value":"","more":1}` + "\n"),
		"a file outside":    resum(head + `{"file":"../../etc/passwd","text":"eA=="}` + "\n"),
		"an unknown file":   resum(head + `{"file":"admin.credential","text":"eA=="}` + "\n"),
		"a bad key":         resum(head + `{"bucket":"b","key":"../x","value":""}` + "\n"),
		"a bad bucket":      resum(head + `{"bucket":"../b","key":"x","value":""}` + "\n"),
		"twice the same":    resum(head + strings.Repeat(`{"bucket":"b","key":"k","value":""}`+"\n", 2)),
		"a huge line":       resum(head + strings.Repeat("x", maxLine+1) + "\n"),
		"two values a line": resum(head + `{"bucket":"b","key":"k","value":""}{}` + "\n"),
	} {
		if a, err := Parse(strings.NewReader(text)); err == nil {
			t.Errorf("%s is taken: %+v", what, a)
		} else if text != "" && !errors.Is(err, ErrNotBackup) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Parse(strings.NewReader(resum(head))); err != nil {
		t.Errorf("the sound one of these: %v", err)
	}
}

func TestRestoreFillsAnEmptyDirectory(t *testing.T) {
	a, dir := sample(), t.TempDir()
	if aside, err := a.Restore(t.Context(), Target{DataDir: dir}); err != nil || aside != "" {
		t.Fatalf("aside %q, %v", aside, err)
	}
	s, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, e := range a.Entries {
		if got, err := s.Get(t.Context(), e.Bucket, e.Key); err != nil || !bytes.Equal(got.Value, e.Value) {
			t.Errorf("%s/%s: %q, %v", e.Bucket, e.Key, got.Value, err)
		}
	}
	if got, err := s.Get(t.Context(), FloorBucket, FloorKey); err != nil || string(got.Value) != "41" {
		t.Errorf("floor %q, %v", got.Value, err)
	}
	for name, want := range map[string]string{"node.id": a.Node + "\n", "ca/ca-key.pem": "-----BEGIN"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", name, text, err)
		}
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, info.Mode().Perm())
		}
	}
	again, revision, err := Read(t.Context(), s)
	if err != nil || revision == 0 || len(again) != len(a.Entries)+1 {
		t.Errorf("read back %d entries, %v", len(again), err)
	}
}

func TestRestoreLeavesAFullDirectoryAlone(t *testing.T) {
	dir, storeDir := t.TempDir(), filepath.Join(t.TempDir(), "store")
	if _, err := sample().Restore(t.Context(), Target{DataDir: dir, StoreDir: storeDir}); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir) + tree(t, storeDir)
	other := sample()
	other.Node = "ffffffffffffffff"
	for _, target := range []Target{{DataDir: dir}, {DataDir: t.TempDir(), StoreDir: storeDir}} {
		if _, err := other.Restore(t.Context(), target); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("%+v: %v", target, err)
		}
	}
	if after := tree(t, dir) + tree(t, storeDir); after != before {
		t.Errorf("it changed from\n%s\nto\n%s", before, after)
	}
	aside, err := other.Restore(t.Context(), Target{DataDir: dir, StoreDir: storeDir, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(aside, "node.id")); err != nil || string(text) != "00112233445566ff\n" {
		t.Errorf("set aside: %q, %v", text, err)
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "node.id")); string(text) != "ffffffffffffffff\n" {
		t.Errorf("restored: %q", text)
	}
	if list, _ := filepath.Glob(storeDir + ".before-restore-*"); len(list) != 1 {
		t.Errorf("the old store was not set aside: %v", list)
	}
	s, err := store.OpenDir(storeDir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Get(t.Context(), "keys", "ring"); err != nil {
		t.Error(err)
	}
}

func TestABackupWithoutDamagedEntriesIsNotTaken(t *testing.T) {
	dir := t.TempDir()
	if _, err := sample().Restore(t.Context(), Target{DataDir: dir}); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "store", "tokens", "[^.]*"))
	if len(files) == 0 {
		t.Fatal("no file to damage")
	}
	if err := os.WriteFile(files[0], []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := Read(context.Background(), s); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("a damaged entry: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(written(f, sample()))
	f.Add([]byte(magic + "\n{}\n"))
	f.Add([]byte("wormhole-backup/9\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := Parse(bytes.NewReader(text))
		if err != nil {
			return
		}
		again, err := Parse(bytes.NewReader(written(t, a)))
		if err != nil || len(again.Entries) != len(a.Entries) || again.Node != a.Node {
			t.Errorf("not the same again: %v", err)
		}
	})
}

func hexSum(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		b.WriteString(path + " " + hexSum(string(text)) + "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
