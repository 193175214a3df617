package ingress

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// An app must not be sent a GET with a chunked body because HTTP/3 does not say in a
// request's head that it has none.
func TestRequestsOverHTTP3HaveABodyOnlyIfOneComes(t *testing.T) {
	r := start(t, Config{}, Handlers{Visitor: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		length := r.ContentLength
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d %q %v", length, body, err)
	})})
	client := r.client("h3")
	for _, c := range []struct {
		method string
		body   io.Reader
		want   string
	}{
		{http.MethodGet, nil, `0 "" <nil>`},
		{http.MethodDelete, nil, `0 "" <nil>`},
		{http.MethodGet, strings.NewReader("said"), `4 "said" <nil>`},
		{http.MethodGet, io.MultiReader(strings.NewReader("said")), `-1 "said" <nil>`},
		{http.MethodPost, io.MultiReader(strings.NewReader("")), `-1 "" <nil>`},
		{http.MethodGet, &late{text: "said", after: 2 * endTime}, `-1 "said" <nil>`},
	} {
		req, err := http.NewRequest(c.method, "https://a.test/", c.body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(got) != c.want {
			t.Errorf("%s with %T: the handler saw %s (%v), want %s", c.method, c.body, got, err, c.want)
		}
	}
}

// late is a body that takes its time.
type late struct {
	text  string
	after time.Duration
}

func (l *late) Read(p []byte) (int, error) {
	if l.text == "" {
		return 0, io.EOF
	}
	time.Sleep(l.after)
	n := copy(p, l.text)
	l.text = l.text[n:]
	return n, nil
}
