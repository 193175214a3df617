package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// healthTimeout bounds one question to an agent.
const healthTimeout = time.Second

// answerHealth tells everybody who connects whether the agent serves, until ctx
// ends: one line, "ok" or the reason why not.
func answerHealth(ctx context.Context, l net.Listener, health func() string) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		line := health()
		if line == "" {
			line = "ok"
		}
		_ = conn.SetDeadline(time.Now().Add(healthTimeout))
		_, _ = io.WriteString(conn, line+"\n")
		_ = conn.Close()
	}
}

// probe asks the agents that run here, and returns the exit status: 0 if every
// one of them serves, 1 if one does not or none is found.
func probe(w io.Writer) int {
	asked, status := 0, 0
	for _, who := range agentsHere() {
		answer, err := askAgent(who)
		if errors.Is(err, errNoAgent) {
			continue
		}
		asked++
		if err != nil {
			answer = err.Error()
		}
		if answer != "ok" {
			status = 1
		}
		_, _ = fmt.Fprintf(w, "wormhole %s: %s\n", who.name, answer)
	}
	if asked == 0 {
		_, _ = fmt.Fprintln(w, "wormhole: no agent runs here")
		return 1
	}
	return status
}

// errNoAgent says that nobody listens where an agent might.
var errNoAgent = errors.New("no agent there")

// candidate is where an agent might listen.
type candidate struct {
	name string // for people
	addr string // of a unix socket
	pid  int    // who must answer; 0 if anybody may
}

func askAgent(who candidate) (string, error) {
	conn, err := net.DialTimeout("unix", who.addr, healthTimeout)
	if err != nil {
		return "", errNoAgent
	}
	defer func() { _ = conn.Close() }()
	if who.pid != 0 && peerPid(conn) != who.pid {
		return "", errNoAgent // somebody else has taken the name
	}
	_ = conn.SetDeadline(time.Now().Add(healthTimeout))
	line, err := io.ReadAll(io.LimitReader(conn, 4<<10))
	if err != nil || len(line) == 0 {
		return "", errors.New("the agent does not answer")
	}
	return strings.TrimSpace(string(line)), nil
}
