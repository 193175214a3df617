package tlsmux

import (
	"context"
	"io"
	"testing"
	"time"

	"wormhole/shared/tunnel"
)

func TestQuietEndsWithWhateverArrives(t *testing.T) {
	for name, arrive := range map[string]func(tunnel.Stream){
		"a byte":  func(s tunnel.Stream) { _, _ = s.Write([]byte("x")) },
		"an END":  func(s tunnel.Stream) { _ = s.CloseWrite() },
		"a reset": func(s tunnel.Stream) { s.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			agent, edge := pair(t, Options{}, Options{})
			mine, err := edge.Open(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer mine.Close()
			if _, err := mine.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			theirs, err := agent.Accept(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			var b [5]byte
			if _, err := io.ReadFull(theirs, b[:]); err != nil {
				t.Fatal(err)
			}
			q := mine.(interface{ Quiet() bool })
			if !q.Quiet() {
				t.Fatal("not quiet although nothing has arrived")
			}
			arrive(theirs)
			deadline := time.Now().Add(5 * time.Second)
			for q.Quiet() {
				if time.Now().After(deadline) {
					t.Fatal("still quiet")
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}
