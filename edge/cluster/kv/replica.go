package kv

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Replicas is how many servers hold a store that is replicated.
const Replicas = 3

// Replica says how a server takes part in a store that three hold. It is the same
// at every start.
type Replica struct {
	// Name is this server among the three, Network what all of them say alike.
	Name, Network string
	// Secret is what the three show each other; whoever knows it is one of them.
	Secret string
	// Routes are three addresses, of loopback, that lead to the three servers, this
	// one among them. What they lead to may change while the server runs.
	Routes []string
}

// StartReplica starts one of the three servers of a replicated store, with its part
// of it in dir. It does not wait for the others, and makes no bucket: see Begin.
func StartReplica(dir string, r Replica, logger *slog.Logger) (*Server, error) {
	if len(r.Routes) != Replicas || r.Secret == "" {
		return nil, errors.New("store server: a replica needs three routes and a secret")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store server: %w", err)
	}
	s := newServer(dir, logger)
	s.replica, s.door = &r, &inProcessOnly{secret: rand.Text()}
	if err := s.takesWrites(); err != nil {
		logger.Error("this edge's part of the network's store takes no writes; it is opened when its disk does", "err", err)
		return s, nil
	}
	var err error
	s.nats, err = s.start()
	return s, err
}

// options of one of three servers, which asks door who comes.
func (r *Replica) options(dir string, door *inProcessOnly) *server.Options {
	user := url.UserPassword("store", r.Secret)
	// A server that knows itself among the routes waits for all three, and not for
	// two, before it begins a store. It finds out which one that is by dialling it.
	var routes []*url.URL
	for _, addr := range r.Routes {
		routes = append(routes, &url.URL{Scheme: "nats-route", User: user, Host: addr})
	}
	return &server.Options{
		ServerName: r.Name, JetStream: true, StoreDir: dir, SyncAlways: true,
		// Without a listener for clients there would be no routes either. Nobody who
		// comes by way of it is let in.
		Host: "127.0.0.1", Port: server.RANDOM_PORT, CustomClientAuthentication: door,
		NoSigs: true, MaxPayload: maxMessage, DisableShortFirstPing: true,
		PingInterval: 5 * time.Second, MaxPingsOut: 2,
		Cluster: server.ClusterOpts{
			Name: r.Network, Host: "127.0.0.1", Port: server.RANDOM_PORT, Username: "store", Password: r.Secret, AuthTimeout: 5,
			// Servers tell each other where they listen, which is of use on their own
			// machine only: nobody answers there, and the routes above are kept.
			Advertise: "127.0.0.1:1",
			PoolSize:  -1, PingInterval: time.Second, MaxPingsOut: 3,
			Compression: server.CompressionOpts{Mode: server.CompressionOff},
		},
		Routes: routes,
	}
}

// inProcessOnly lets in whoever comes through Server.InProcessConn, and as the
// servers' operator who knows a secret of this process besides.
type inProcessOnly struct {
	secret string
	server atomic.Pointer[server.Server]
}

const operator = "operator"

// Check implements server.Authentication.
func (d *inProcessOnly) Check(c server.ClientAuthentication) bool {
	addr := c.RemoteAddress()
	if addr == nil || addr.Network() != "pipe" {
		return false
	}
	if opts := c.GetOpts(); opts.Username == operator {
		ns := d.server.Load()
		if ns == nil || subtle.ConstantTimeCompare([]byte(opts.Password), []byte(d.secret)) != 1 {
			return false
		}
		c.RegisterUser(&server.User{Username: operator, Account: ns.SystemAccount()})
	}
	return true
}

// RouteAddr is where one of three servers waits for the other two; empty while it
// does not run.
func (s *Server) RouteAddr() string {
	if ns := s.current(); ns != nil && s.replica != nil {
		if a := ns.ClusterAddr(); a != nil {
			return a.String()
		}
	}
	return ""
}

// Begin makes the bucket of a replicated store, whose revisions are above floor, as
// soon as all three servers are there. One of the three is asked once.
func (s *Server) Begin(ctx context.Context, floor uint64) error {
	var last error
	for {
		err := s.with(ctx, func(js jetstream.JetStream) error {
			once, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			return createBucket(once, js, Replicas, floor)
		})
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the three servers did not come together: %w", errors.Join(ctx.Err(), last))
		}
	}
}

// Whole reports whether the server has all that the other two have.
func (s *Server) Whole() bool {
	ns := s.current()
	return ns != nil && ns.Healthz(nil).StatusCode == 200
}

// with gives f a connection of its own to the server, which Hold does not end.
func (s *Server) with(ctx context.Context, f func(jetstream.JetStream) error) error {
	conn, err := nats.Connect("", nats.InProcessServer(unheld{s}), nats.Timeout(5*time.Second), nats.NoReconnect())
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(copyPending))
	if err != nil {
		return err
	}
	return errors.Join(f(js), ctx.Err())
}

type unheld struct{ s *Server }

func (u unheld) InProcessConn() (net.Conn, error) {
	if ns := u.s.current(); ns != nil {
		return ns.InProcessConn()
	}
	return nil, errOutOfOrder
}

// Leads reports whether this server leads the others of a replicated store.
func (s *Server) Leads() bool {
	ns := s.current()
	return ns != nil && s.replica != nil && ns.JetStreamIsLeader()
}

// ErrFollower is Keep's answer of a server that does not lead the others.
var ErrFollower = errors.New("another server of the store leads")

// Keep has the servers of a replicated store give up all but the three that are
// named, and reports whether that is so. It is for the one that leads them; others
// return ErrFollower. The three but late must be there; late may come afterwards, and
// gets a copy then.
func (s *Server) Keep(ctx context.Context, names []string, late string) (bool, error) {
	ns := s.current()
	switch {
	case s.replica == nil || ns == nil:
		return false, errOutOfOrder
	case !ns.JetStreamIsLeader():
		return false, ErrFollower
	}
	info, err := ns.Jsz(nil)
	if err != nil {
		return false, err
	} else if info.Meta == nil {
		return false, ErrFollower
	}
	there, kept := map[string]bool{ns.NodeName(): true}, map[string]bool{}
	for _, p := range info.Meta.Replicas {
		there[p.Peer] = !p.Offline
	}
	for _, name := range names {
		kept[peerID(name)] = true
		if name != late && !there[peerID(name)] {
			return false, fmt.Errorf("the server %s of the store is not there", name)
		}
	}
	for peer := range there {
		if kept[peer] {
			continue
		}
		if err := s.remove(ctx, peer); err != nil {
			return false, fmt.Errorf("give up a server of the store: %w", err)
		}
		s.logger.Info("a server of the network's store was given up", "remote", peer)
	}
	return true, nil
}

// remove has the servers give up one of them for good.
func (s *Server) remove(ctx context.Context, peer string) error {
	conn, err := nats.Connect("", nats.InProcessServer(unheld{s}), nats.Timeout(5*time.Second), nats.NoReconnect(),
		nats.UserInfo(operator, s.door.secret))
	if err != nil {
		return err
	}
	defer conn.Close()
	ask, err := json.Marshal(server.JSApiMetaServerRemoveRequest{Peer: peer})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	msg, err := conn.RequestWithContext(ctx, server.JSApiRemoveServer, ask)
	if err != nil {
		return err
	}
	var said server.JSApiMetaServerRemoveResponse
	if err := json.Unmarshal(msg.Data, &said); err != nil {
		return err
	} else if said.Error != nil {
		return said.Error
	}
	return nil
}

// peerID is how the servers call the one with a name among themselves.
func peerID(name string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum := sha256.Sum256([]byte(name))
	id := sum[:8]
	for i, b := range id {
		id[i] = digits[int(b)%len(digits)]
	}
	return string(id)
}

// Copies are the servers, by name, that have all of the store now.
func (s *Server) Copies(ctx context.Context) (names []string, err error) {
	err = s.with(ctx, func(js jetstream.JetStream) error {
		stream, err := js.Stream(ctx, streamName)
		if err != nil {
			return err
		}
		c := stream.CachedInfo().Cluster
		if c == nil || c.Leader == "" {
			return errors.New("the servers of the store have no leader now")
		}
		names = append(names, c.Leader)
		for _, p := range c.Replicas {
			if p.Current && !p.Offline {
				names = append(names, p.Name)
			}
		}
		return nil
	})
	return names, err
}

// Note puts an entry into the store without a Store.
func (s *Server) Note(ctx context.Context, bucket, key string, value []byte) error {
	return s.with(ctx, func(js jetstream.JetStream) error {
		kv, err := js.KeyValue(ctx, bucketName)
		if err == nil {
			_, err = kv.Put(ctx, bucket+"."+key, value)
		}
		return err
	})
}

// copyPending bounds what is on its way while a store is copied, in values.
const copyPending = 32

// Last is the newest revision that the server has given.
func (s *Server) Last(ctx context.Context) (last uint64, err error) {
	err = s.with(ctx, func(js jetstream.JetStream) error {
		stream, err := js.Stream(ctx, streamName)
		if err == nil {
			last = stream.CachedInfo().State.LastSeq
		}
		return err
	})
	return last, err
}

// Copied is what a copy brought over so far: revisions by key. The zero value is
// nothing.
type Copied struct{ revisions map[string]uint64 }

// Len counts the entries.
func (c *Copied) Len() int { return len(c.revisions) }

// Copy brings the store of another server in step with this one, and notes in done
// what it did, so that a second copy only does the rest. Revisions become others.
// Every entry is on the disks of the other store when it returns nil.
func (s *Server) Copy(ctx context.Context, to *Server, done *Copied) error {
	if done.revisions == nil {
		done.revisions = map[string]uint64{}
	}
	return to.with(ctx, func(target jetstream.JetStream) error {
		return s.with(ctx, func(source jetstream.JetStream) error { return copyBucket(ctx, source, target, done.revisions) })
	})
}

func copyBucket(ctx context.Context, source, target jetstream.JetStream, done map[string]uint64) error {
	from, err := source.KeyValue(ctx, bucketName)
	if err != nil {
		return err
	}
	watch, err := from.WatchAll(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = watch.Stop() }()
	present := map[string]bool{}
	acks := map[string]jetstream.PubAckFuture{}
	revisions := map[string]uint64{}
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
read:
	for {
		select {
		case e, ok := <-watch.Updates():
			quiet.Reset(silence)
			switch {
			case !ok:
				return errors.New("the watch of the store ended")
			case e == nil:
				break read
			case e.Operation() != jetstream.KeyValuePut:
			case done[e.Key()] == e.Revision():
				present[e.Key()] = true
			default:
				present[e.Key()] = true
				ack, err := target.PublishAsync(subjectPrefix+e.Key(), e.Value(), jetstream.WithStallWait(silence))
				if err != nil {
					return err
				}
				acks[e.Key()], revisions[e.Key()] = ack, e.Revision()
			}
		case <-quiet.C:
			return errors.New("the store stops in the middle of telling its state")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for key, ack := range acks {
		select {
		case <-ack.Ok():
			done[key] = revisions[key]
		case err := <-ack.Err():
			return fmt.Errorf("copy %s: %w", key, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	to, err := target.KeyValue(ctx, bucketName)
	if err != nil {
		return err
	}
	for key := range done {
		if present[key] {
			continue
		}
		if err := to.Delete(ctx, key); err != nil {
			return fmt.Errorf("copy the deletion of %s: %w", key, err)
		}
		delete(done, key)
	}
	return nil
}
