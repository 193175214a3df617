package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// otherProcess is what this test binary does when it is started as another
// process; see TestMain.
func otherProcess(role, dir string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d, err := OpenDir(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	switch role {
	case "increment":
		err = increment(ctx, d, perProcess)
	case "write":
		err = writeForEver(ctx, d)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

const perProcess = 40

// increment counts the entry b/counter up n times.
func increment(ctx context.Context, d *Dir, n int) error {
	for done := 0; done < n; {
		e, err := d.Get(ctx, "b", "counter")
		if errors.Is(err, ErrNotFound) {
			_, err = d.Create(ctx, "b", "counter", []byte("1"))
		} else if err == nil {
			v, _ := strconv.Atoi(string(e.Value))
			_, err = d.Update(ctx, "b", "counter", []byte(strconv.Itoa(v+1)), e.Revision)
		}
		switch {
		case err == nil:
			done++
		case !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists):
			return err
		}
	}
	return nil
}

func counter(t *testing.T, d *Dir) int {
	t.Helper()
	e, err := d.Get(t.Context(), "b", "counter")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(string(e.Value))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// writeForEver writes keys in turn and prints each number once it is acknowledged.
func writeForEver(ctx context.Context, d *Dir) error {
	for i := 0; ; i++ {
		if _, err := d.Put(ctx, "b", "k"+strconv.Itoa(i%7), bytes.Repeat([]byte(strconv.Itoa(i)+" "), 500)); err != nil {
			return err
		}
		fmt.Println(i)
	}
}

func startOther(t *testing.T, role, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_ROLE="+role, "STORE_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

func TestProcessesDoNotLoseUpdates(t *testing.T) {
	d := newDir(t)
	one, _ := startOther(t, "increment", d.Path())
	two, _ := startOther(t, "increment", d.Path())
	if err := increment(t.Context(), d, perProcess); err != nil {
		t.Error(err)
	}
	if err := errors.Join(one.Wait(), two.Wait()); err != nil {
		t.Fatal(err)
	}
	if got, want := counter(t, d), 3*perProcess; got != want {
		t.Fatalf("three processes counted %d, want %d", got, want)
	}
}

// Fault B14, short form: whatever was acknowledged before kill -9 is there after
// it, whole, and the next writer is not hindered.
func TestAcknowledgedWritesSurviveKill(t *testing.T) {
	d := newDir(t)
	for round := range 8 {
		cmd, out := startOther(t, "write", d.Path())
		last := -1
		for last < 15+7*round && out.Scan() {
			last, _ = strconv.Atoi(out.Text())
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for out.Scan() { // acknowledged between our last read and its death
			last, _ = strconv.Atoi(out.Text())
		}
		_ = cmd.Wait()

		for i := max(0, last-6); i <= last; i++ {
			e, err := d.Get(t.Context(), "b", "k"+strconv.Itoa(i%7))
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := bytes.Cut(e.Value, []byte(" "))
			// The write after the last acknowledged one may have come through.
			if got, _ := strconv.Atoi(string(first)); got != i && got != last+1 {
				t.Fatalf("round %d: write %d was acknowledged last, but key %s holds write %d", round, last, e.Key, got)
			}
		}
		must(t)(openDir(t, d.Path()).Put(t.Context(), "b", "after", nil))
	}
}
