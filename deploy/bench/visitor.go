package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"time"
)

// visitor is one HTTP/1.1 connection, with less memory around it than a client of
// net/http has.
type visitor struct {
	target *target
	conn   *tls.Conn
}

// visit opens a connection and asks once.
func (t *target) visit(ctx context.Context) (*visitor, error) {
	return t.visitWith(ctx, t.tlsConfig("http/1.1"))
}

func (t *target) visitWith(ctx context.Context, config *tls.Config) (*visitor, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	raw, err := t.place.DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, err
	}
	v := &visitor{target: t, conn: tls.Client(raw, config)}
	if err := v.conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	if err := v.ask(); err != nil {
		_ = v.close()
		return nil, err
	}
	return v, nil
}

// ask sends one small request and reads the answer.
func (v *visitor) ask() error {
	_ = v.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(v.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", smallPath, host); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReaderSize(v.conn, 1024), nil)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, response.Body)
	if err == nil && (response.StatusCode != http.StatusOK || n != smallSize) {
		err = fmt.Errorf("%s with %d bytes", response.Status, n)
	}
	return err
}

// close leaves without waiting for the other side. It may be called on nil.
func (v *visitor) close() error {
	if v == nil {
		return nil
	}
	return v.conn.NetConn().Close()
}
