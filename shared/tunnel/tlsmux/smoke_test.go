package tlsmux

import (
	"io"
	"testing"
)

func TestSmoke(t *testing.T) {
	agent, edge := pair(t, Options{}, Options{})
	go func() {
		st, err := agent.Accept(t.Context())
		if err != nil {
			t.Error(err)
			return
		}
		b, err := io.ReadAll(st)
		if err != nil {
			t.Error(err)
		}
		st.Write(b)
		st.CloseWrite()
		st.Close()
	}()
	st, err := edge.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 8<<20)
	go func() {
		st.Write(big)
		st.CloseWrite()
	}()
	b, err := io.ReadAll(st)
	if err != nil || len(b) != len(big) {
		t.Fatal(len(b), err)
	}
	st.Close()
	if n := edge.Streams(); n != 0 {
		t.Fatal(n)
	}
}
