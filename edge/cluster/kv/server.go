package kv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// bucketName is the one key-value bucket that holds everything.
const bucketName = "wormhole"

// madeFile says that the bucket in this directory was made once, so that a
// directory that lost it is damage and not a new store.
const madeFile = "made"

// maxMessage is the largest message: a value of store.MaxValue and its headers.
const maxMessage = 2 << 20

// Server hosts the network's store: a JetStream server that listens nowhere.
// Peers reach it through Serve, over connections that somebody else has
// authenticated.
type Server struct {
	nats *server.Server
	dir  string

	wg   sync.WaitGroup
	once sync.Once
}

// StartServer opens the store in dir, and makes it if the directory is new.
func StartServer(dir string, logger *slog.Logger) (*Server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store server: %w", err)
	}
	ns, err := server.NewServer(&server.Options{
		ServerName: "store", DontListen: true, JetStream: true, StoreDir: dir,
		// The default writes to disk every two minutes: an acknowledged write must be there.
		SyncAlways: true,
		NoSigs:     true, NoSystemAccount: false, MaxPayload: maxMessage, DisableShortFirstPing: true,
		PingInterval: 5 * time.Second, MaxPingsOut: 2,
	})
	if err != nil {
		return nil, fmt.Errorf("store server: %w", err)
	}
	ns.SetLoggerV2(natsLog{logger.With("part", "store")}, false, false, false)
	ns.Start()
	s := &Server{nats: ns, dir: dir}
	if !ns.ReadyForConnections(10 * time.Second) {
		s.Close()
		return nil, errors.New("store server: not ready after 10 s")
	}
	if err := s.ensureBucket(); err != nil {
		s.Close()
		return nil, fmt.Errorf("store server: %w", err)
	}
	return s, nil
}

// ensureBucket makes the bucket of a new store. One that is gone from an old store
// is an error: an empty store must not take the place of a lost one.
func (s *Server) ensureBucket() error {
	conn, err := nats.Connect("", nats.InProcessServer(s.nats), nats.Timeout(5*time.Second))
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	made := filepath.Join(s.dir, madeFile)
	_, err = js.KeyValue(ctx, bucketName)
	if err == nil {
		return markMade(made)
	}
	if !errors.Is(err, jetstream.ErrBucketNotFound) {
		return err
	}
	if _, statErr := os.Stat(made); statErr == nil {
		return fmt.Errorf("%s held the network's store and does not any more: restore it from a backup, or remove %s to begin an empty one", s.dir, made)
	}
	_, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: bucketName, History: 1, Storage: jetstream.FileStorage, MaxValueSize: maxMessage,
	})
	if err != nil {
		return err
	}
	return markMade(made)
}

func markMade(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Serve joins conn, an authenticated peer, to the server until either ends, and
// closes it.
func (s *Server) Serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	inner, err := s.nats.InProcessConn()
	if err != nil {
		return
	}
	defer inner.Close()
	s.wg.Add(1)
	defer s.wg.Done()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close(); _ = inner.Close() })
	defer stop()
	done := make(chan struct{})
	go func() { // ends when either connection does
		defer close(done)
		_, _ = io.Copy(inner, conn)
		_ = inner.Close()
	}()
	_, _ = io.Copy(conn, inner)
	_ = conn.Close()
	<-done
}

// InProcessConn is a connection for a client in this process.
func (s *Server) InProcessConn() (net.Conn, error) { return s.nats.InProcessConn() }

// Close ends the server and all connections. It is idempotent and waits.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
		s.wg.Wait()
	})
	return nil
}

// natsLog passes what the server says to a logger, one level lower: it repeats
// what the callers see as errors.
type natsLog struct{ logger *slog.Logger }

func (l natsLog) Noticef(format string, v ...any) {
	l.logger.Debug("nats", "err", fmt.Sprintf(format, v...))
}
func (l natsLog) Warnf(format string, v ...any) {
	l.logger.Debug("nats", "err", fmt.Sprintf(format, v...))
}
func (l natsLog) Fatalf(format string, v ...any) {
	l.logger.Error("nats", "err", fmt.Sprintf(format, v...))
}
func (l natsLog) Errorf(format string, v ...any) {
	l.logger.Warn("nats", "err", fmt.Sprintf(format, v...))
}
func (l natsLog) Debugf(string, ...any) {}
func (l natsLog) Tracef(string, ...any) {}
