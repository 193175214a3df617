package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// Bounds of the metrics' door. A scraper asks one short question at a time.
const (
	metricsConnections = 8
	metricsHead        = 8 << 10 // bytes of a request's head
	metricsTimeout     = 5 * time.Second
)

// answerMetrics answers GET /metrics until ctx ends, and returns when every answer
// is given. It speaks as much HTTP as that takes (one request a connection, no
// bodies), because net/http would be a large part of the agent.
func answerMetrics(ctx context.Context, l net.Listener, exposition func() string) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var answers sync.WaitGroup
	defer answers.Wait()
	free := make(chan struct{}, metricsConnections)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		select {
		case free <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		answers.Go(func() {
			defer func() { <-free }()
			defer func() { _ = conn.Close() }()
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			_ = conn.SetDeadline(time.Now().Add(metricsTimeout))
			answerScrape(conn, exposition)
		})
	}
}

// answerScrape reads one request and answers it.
func answerScrape(conn io.ReadWriter, exposition func() string) {
	method, path, ok := readRequest(conn)
	status, kind, allow := "200 OK", "text/plain; charset=utf-8", ""
	switch {
	case !ok:
		status = "400 Bad Request"
	case method != "GET" && method != "HEAD":
		status, allow = "405 Method Not Allowed", "Allow: GET, HEAD\r\n"
	case path != "/metrics":
		status = "404 Not Found"
	}
	body := status + "\n"
	if status == "200 OK" {
		kind, body = "text/plain; version=0.0.4; charset=utf-8", exposition()
	}
	head := fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%sConnection: close\r\n\r\n", status, kind, len(body), allow)
	if method == "HEAD" {
		body = ""
	}
	_, _ = io.WriteString(conn, head+body)
}

// readRequest reads a request's head to its end, so that closing the connection
// does not reset it, and returns the method and the path without its query.
func readRequest(r io.Reader) (method, path string, ok bool) {
	lines := bufio.NewReader(io.LimitReader(r, metricsHead))
	first, err := lines.ReadString('\n')
	for line := first; err == nil && strings.TrimRight(line, "\r\n") != ""; {
		line, err = lines.ReadString('\n')
	}
	if err != nil {
		return "", "", false
	}
	words := strings.Split(strings.TrimRight(first, "\r\n"), " ")
	if len(words) != 3 || words[0] == "" || !strings.HasPrefix(words[2], "HTTP/1.") || !strings.HasPrefix(words[1], "/") {
		return "", "", false
	}
	path, _, _ = strings.Cut(words[1], "?")
	return words[0], path, true
}
