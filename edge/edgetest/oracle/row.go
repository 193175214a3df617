package oracle

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// Long reports whether the long forms of the fault catalogue were asked for.
func Long() bool { return os.Getenv("WORMHOLE_FAULTS") == "long" }

// Row is one line of the table of faults.
type Row struct {
	ID     string // as in the catalogue: A1
	Done   string // what was done
	Figure string // what came out
	Limit  string // what may come out
	OK     bool
}

// String is the row as a line of the table.
func (r Row) String() string {
	verdict := "ok"
	if !r.OK {
		verdict = "FAILED"
	}
	return "| " + strings.Join([]string{r.ID, r.Done, r.Figure, r.Limit, verdict}, " | ") + " |"
}

// Verdict logs the row, fails the test unless it is ok, and in the long form
// appends the row to the file that WORMHOLE_FAULTS_TABLE names.
func (r Row) Verdict(tb testing.TB) {
	tb.Helper()
	tb.Logf("ROW %s", r)
	if !r.OK {
		tb.Errorf("%s: %s, want %s", r.ID, r.Figure, r.Limit)
	}
	path := os.Getenv("WORMHOLE_FAULTS_TABLE")
	if !Long() || path == "" {
		return
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintln(file, r)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		tb.Errorf("table of faults: %v", err)
	}
}
