package oracle

import (
	"encoding/json"
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
	Test   string // who gave it; Verdict fills it in
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
// appends the row as a line of JSON to the file that WORMHOLE_FAULTS_ROWS names.
func (r Row) Verdict(tb testing.TB) {
	tb.Helper()
	tb.Logf("ROW %s", r)
	if !r.OK {
		tb.Errorf("%s: %s, want %s", r.ID, r.Figure, r.Limit)
	}
	path := os.Getenv("WORMHOLE_FAULTS_ROWS")
	if !Long() || path == "" {
		return
	}
	r.Test = tb.Name()
	line, err := json.Marshal(r)
	if err != nil {
		tb.Errorf("rows of faults: %v", err)
		return
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintf(file, "%s\n", line)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		tb.Errorf("rows of faults: %v", err)
	}
}
