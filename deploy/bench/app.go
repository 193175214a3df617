package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	smallPath, smallSize = "/small", 300
	kibPath, kibSize     = "/kib", 1 << 10
	bulkPath, bulkSize   = "/bulk", 10 << 20
	uploadPath           = "/upload"
	endlessPath          = "/endless"
)

// serveApp is the app behind every target, in a process of its own.
func serveApp(ctx context.Context, addr string) error {
	server := &http.Server{Addr: addr, Handler: appHandler(), IdleTimeout: 5 * time.Minute}
	stopped := make(chan struct{})
	go func() { // ends with ctx
		defer close(stopped)
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}

func appHandler() http.Handler {
	mux := http.NewServeMux()
	for path, size := range map[string]int{smallPath: smallSize, kibPath: kibSize, bulkPath: bulkSize} {
		body := pattern(size)
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{"application/octet-stream"}
			w.Header()["Content-Length"] = []string{fmt.Sprint(size)}
			_, _ = w.Write(body)
		})
	}
	mux.HandleFunc(endlessPath, func(w http.ResponseWriter, _ *http.Request) {
		for block, err := pattern(64<<10), error(nil); err == nil; {
			_, err = w.Write(block)
		}
	})
	mux.HandleFunc(uploadPath, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.CopyBuffer(onlyWriter{io.Discard}, r.Body, make([]byte, 64<<10))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintln(w, n)
	})
	return mux
}

// onlyWriter hides io.Discard's ReadFrom, which reads in 8 KiB steps.
type onlyWriter struct{ io.Writer }

// pattern is size bytes that no cache or compressor can mistake for others.
func pattern(size int) []byte {
	b := make([]byte, size)
	x := uint32(size)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}
