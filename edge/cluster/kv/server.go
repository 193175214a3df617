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
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// bucketName is the one key-value bucket that holds everything, streamName the stream
// it is and subjectPrefix what its subjects begin with.
const (
	bucketName    = "wormhole"
	streamName    = "KV_" + bucketName
	subjectPrefix = "$KV." + bucketName + "."
)

// madeFile says that the bucket in this directory was made once, so that a
// directory that lost it is damage and not a new store.
const madeFile = "made"

// maxMessage is the largest message: a value of store.MaxValue and its headers.
const maxMessage = 2 << 20

// Server hosts the network's store: a JetStream server that listens nowhere, or one
// of three (StartReplica), which listen on loopback for each other. Peers reach it
// through Serve, over connections that somebody else has authenticated.
type Server struct {
	dir     string
	logger  *slog.Logger
	replica *Replica       // nil for a server that is alone
	door    *inProcessOnly // nil for a server that is alone

	wg   sync.WaitGroup
	once sync.Once

	mu    sync.Mutex     // guards below
	nats  *server.Server // nil while its disk takes nothing, and when closed
	held  bool
	ended bool // by Close
	conns map[*clientConn]struct{}
}

func newServer(dir string, logger *slog.Logger) *Server {
	return &Server{dir: dir, logger: logger, conns: map[*clientConn]struct{}{}}
}

// tendInterval is the time between two looks at the server's disk.
const tendInterval = time.Second

var errOutOfOrder = errors.New("the store is out of order: its disk takes nothing")

// StartServer opens the store in dir, and makes it if the directory is new. A new
// one gives revisions above floor.
func StartServer(dir string, floor uint64, logger *slog.Logger) (*Server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store server: %w", err)
	}
	s := newServer(dir, logger)
	if err := s.takesWrites(); err != nil {
		if _, statErr := os.Stat(filepath.Join(dir, madeFile)); statErr != nil {
			return nil, fmt.Errorf("store server: its disk takes nothing: %w", err)
		}
		logger.Error("the network's store takes no writes; it is opened when its disk does", "err", err)
		return s, nil
	}
	var err error
	if s.nats, err = s.start(); err != nil {
		return nil, err
	}
	if err := s.ensureBucket(floor); err != nil {
		s.Close()
		return nil, fmt.Errorf("store server: %w", err)
	}
	return s, nil
}

// start opens what is on disk.
func (s *Server) start() (*server.Server, error) {
	opts := &server.Options{
		ServerName: "store", DontListen: true, JetStream: true, StoreDir: s.dir,
		// The default writes to disk every two minutes: an acknowledged write must be there.
		SyncAlways: true,
		NoSigs:     true, NoSystemAccount: false, MaxPayload: maxMessage, DisableShortFirstPing: true,
		PingInterval: 5 * time.Second, MaxPingsOut: 2,
	}
	if s.replica != nil {
		opts = s.replica.options(s.dir, s.door)
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("store server: %w", err)
	}
	if s.door != nil {
		s.door.server.Store(ns)
	}
	ns.SetLoggerV2(natsLog{s.logger.With("part", "store")}, false, false, false)
	ns.Start()
	if !ns.ReadyForConnections(10 * time.Second) {
		ns.Shutdown()
		ns.WaitForShutdown()
		return nil, errors.New("store server: not ready after 10 s")
	}
	return ns, nil
}

// Tend looks after the server until ctx ends or the server is closed. JetStream
// writes nothing more after its disk was full or read-only once, and lets writers
// wait: Tend closes it then, so that they are refused at once, and opens it again
// when the disk takes something.
func (s *Server) Tend(ctx context.Context) {
	tick := time.NewTicker(tendInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		ns, ended := s.nats, s.ended
		s.mu.Unlock()
		switch {
		case ended:
			return
		case ns == nil && s.takesWrites() == nil:
			s.reopen()
		case ns != nil:
			if health := ns.Healthz(s.health()); health.StatusCode != 200 {
				s.logger.Error("the network's store takes no writes; it is opened again when its disk does", "err", health.Error)
				s.mu.Lock()
				s.nats = nil
				s.mu.Unlock()
				ns.Shutdown()
				ns.WaitForShutdown()
			}
		}
	}
}

// health is what Tend looks at. One of three that is behind the others is in order.
func (s *Server) health() *server.HealthzOptions {
	if s.replica != nil {
		return &server.HealthzOptions{JSEnabledOnly: true}
	}
	return nil
}

// takesWrites tries whether there is room for more than one value.
func (s *Server) takesWrites() error {
	f, err := os.CreateTemp(s.dir, ".room-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // the next try makes another
	_, err = f.Write(make([]byte, 2*maxMessage))
	return errors.Join(err, f.Sync(), f.Close())
}

func (s *Server) reopen() {
	ns, err := s.start()
	if err == nil { // one that was out of order at the start was not looked at yet
		s.mu.Lock()
		ended := s.ended
		if !ended {
			s.nats = ns
		}
		s.mu.Unlock()
		if ended {
			ns.Shutdown()
			ns.WaitForShutdown()
			return
		}
		if s.replica == nil {
			err = s.ensureBucket(0)
		}
		if err != nil {
			s.mu.Lock()
			s.nats = nil
			s.mu.Unlock()
			ns.Shutdown()
		}
	}
	if err != nil {
		s.logger.Error("the network's store cannot be opened again", "err", err)
		return
	}
	s.logger.Info("the network's store takes writes again")
}

func (s *Server) current() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nats
}

// ensureBucket makes the bucket of a new store. One that is gone from an old store
// is an error: an empty store must not take the place of a lost one.
func (s *Server) ensureBucket(floor uint64) error {
	conn, err := nats.Connect("", nats.InProcessServer(unheld{s}), nats.Timeout(5*time.Second))
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
	if err := createBucket(ctx, js, 1, floor); err != nil {
		return err
	}
	return markMade(made)
}

// createBucket makes the bucket as jetstream's CreateKeyValue does, which cannot be
// told where revisions begin: its stream with the settings that a KeyValue expects.
func createBucket(ctx context.Context, js jetstream.JetStream, replicas int, floor uint64) error {
	c := jetstream.StreamConfig{
		Name: streamName, Subjects: []string{subjectPrefix + ">"},
		MaxMsgsPerSubject: 1, MaxMsgSize: maxMessage, Storage: jetstream.FileStorage, Replicas: replicas,
		AllowRollup: true, DenyDelete: true, Discard: jetstream.DiscardNew,
		MaxMsgs: -1, MaxBytes: -1, MaxConsumers: -1, Duplicates: 2 * time.Minute,
		// Direct reads ask any replica, which may not have what was just written.
		AllowDirect: replicas == 1,
	}
	if floor > 0 {
		c.FirstSeq = floor + 1
	}
	_, err := js.CreateStream(ctx, c)
	return err
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
	inner, err := s.InProcessConn()
	if err != nil {
		return
	}
	defer inner.Close()
	s.wg.Add(1)
	defer s.wg.Done()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close(); _ = inner.Close() })
	defer stop()
	Splice(conn, inner)
}

// Splice copies both ways between two connections until either ends, and closes both.
func Splice(a, b net.Conn) {
	done := make(chan struct{})
	go func() { // ends when either connection does
		defer close(done)
		_, _ = io.Copy(b, a)
		_ = b.Close()
	}()
	_, _ = io.Copy(a, b)
	_ = a.Close()
	<-done
	_ = b.Close()
}

// InProcessConn is a connection for a client in this process.
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.held:
		return nil, errHeld
	case s.nats == nil:
		return nil, errOutOfOrder
	}
	conn, err := s.nats.InProcessConn()
	if err != nil {
		return nil, err
	}
	c := &clientConn{Conn: conn, server: s}
	s.conns[c] = struct{}{}
	return c, nil
}

var errHeld = errors.New("the store is being moved")

// clientConn is a client's, until it is closed.
type clientConn struct {
	net.Conn
	server *Server
}

func (c *clientConn) Close() error {
	c.server.mu.Lock()
	delete(c.server.conns, c)
	c.server.mu.Unlock()
	return c.Conn.Close()
}

// Hold ends the connections of all clients and takes none until Release. What was
// acknowledged to anybody is in the store when it returns.
func (s *Server) Hold() {
	s.mu.Lock()
	s.held = true
	conns := s.conns
	s.conns = map[*clientConn]struct{}{}
	s.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
}

// Release takes clients again.
func (s *Server) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
}

// Close ends the server and all connections. It is idempotent and waits.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		ns := s.nats
		s.nats, s.ended = nil, true
		s.mu.Unlock()
		if ns != nil {
			ns.Shutdown()
			ns.WaitForShutdown()
		}
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
	if strings.HasPrefix(format, "Error trying to connect to route") {
		l.Warnf(format, v...) // ordinary while a peer is away
		return
	}
	l.logger.Warn("nats", "err", fmt.Sprintf(format, v...))
}
func (l natsLog) Debugf(string, ...any) {}
func (l natsLog) Tracef(string, ...any) {}
