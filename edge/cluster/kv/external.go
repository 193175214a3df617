package kv

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// External is a NATS cluster that somebody else runs, in place of a server of ours.
// It is not changed after it was made.
type External struct {
	// URLs are its servers: nats://, tls:// or ws(s)://, with user and password or a
	// token if it wants them.
	URLs []string
	// CredsFile is a file of NATS credentials, CAFile a PEM of who certifies the
	// servers; empty is none, and the system's.
	CredsFile, CAFile string
}

// Check returns what is wrong with the settings, without asking anybody.
func (e *External) Check() error {
	var faults []error
	for _, text := range e.URLs {
		u, err := url.Parse(text)
		switch {
		case err != nil: // its text may hold a password
			faults = append(faults, errors.New("one of the URLs cannot be parsed"))
		case u.Host == "" || !strings.Contains(" nats tls ws wss ", " "+u.Scheme+" "):
			faults = append(faults, fmt.Errorf("%q is not nats://HOST:PORT or tls://HOST:PORT", u.Redacted()))
		}
	}
	for _, path := range []string{e.CredsFile, e.CAFile} {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		_ = f.Close()
	}
	return errors.Join(faults...)
}

// String names the servers without credentials.
func (e *External) String() string {
	var out []string
	for _, text := range e.URLs {
		if u, err := url.Parse(text); err == nil {
			u.User = nil
			out = append(out, u.String())
		}
	}
	return strings.Join(out, ",")
}

// Connect connects with what the settings say and with more.
func (e *External) Connect(more ...nats.Option) (*nats.Conn, error) {
	options := []nats.Option{nats.Name("wormhole edge")}
	if e.CredsFile != "" {
		options = append(options, nats.UserCredentials(e.CredsFile))
	}
	if e.CAFile != "" {
		options = append(options, nats.RootCAs(e.CAFile))
	}
	return nats.Connect(strings.Join(e.URLs, ","), append(options, more...)...)
}

// Prepare finds out whether bus and store can live there, and makes the bucket if
// there is none and it may be made. Its errors say what to do.
func (e *External) Prepare(ctx context.Context, mayMake bool) error {
	fail := func(err error, format string, args ...any) error {
		return fmt.Errorf("the NATS servers %s: %s: %w", e, fmt.Sprintf(format, args...), err)
	}
	conn, err := e.Connect(nats.Timeout(3 * time.Second))
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return fail(err, "they refuse the credentials: put user and password into the URL, or name a file with --nats-creds-file")
	case err != nil:
		return fail(err, "none can be reached")
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	js, err := jetstream.New(conn)
	if err != nil {
		return fail(err, "no JetStream")
	}
	if _, err := js.AccountInfo(ctx); errors.Is(err, jetstream.ErrJetStreamNotEnabled) ||
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) || errors.Is(err, nats.ErrNoResponders) {
		return fail(err, "JetStream is off, for the servers or for this account: the store needs it (nats-server --jetstream)")
	} else if err != nil {
		return fail(err, "JetStream does not answer")
	}
	stream, err := js.Stream(ctx, streamName)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound) && !mayMake:
		return fail(err, "they held the network's store and do not any more: restore it there, or restore a backup of the network")
	case errors.Is(err, jetstream.ErrStreamNotFound):
		if err := e.make(ctx, js); err != nil {
			return fail(err, "the bucket %s cannot be made", bucketName)
		}
	case err != nil:
		return fail(err, "the bucket %s cannot be read", bucketName)
	default:
		if c := stream.CachedInfo().Config; c.Storage != jetstream.FileStorage || c.MaxAge != 0 || c.MaxMsgsPerSubject < 1 {
			return fail(errors.New("want file storage, no expiry and a history of 1"), "the bucket %s is not made for this", bucketName)
		}
	}
	return nil
}

// make makes the bucket. Edges that begin at the same time are in each other's way, as
// is an election among the servers: what they call an error of their own is tried again
// for a few seconds, unless another edge has made the bucket meanwhile.
func (e *External) make(ctx context.Context, js jetstream.JetStream) error {
	for end := time.Now().Add(5 * time.Second); ; {
		err := e.makeOnce(ctx, js)
		var api *jetstream.APIError
		if !errors.As(err, &api) || api.Code < 500 || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(250 * time.Millisecond):
		}
		if _, gone := js.Stream(ctx, streamName); gone == nil {
			return nil
		}
	}
}

// makeOnce makes the bucket on three servers, or on one if there are no three.
func (e *External) makeOnce(ctx context.Context, js jetstream.JetStream) error {
	err := createBucket(ctx, js, 3, 0)
	var api *jetstream.APIError
	if errors.As(err, &api) && (api.ErrorCode == errReplicasNotSupported || api.ErrorCode == errNoPeers || api.ErrorCode == errInsufficient) {
		err = createBucket(ctx, js, 1, 0)
	}
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil // another edge was quicker
	}
	return err
}

// Error codes of the server that nats.go has no names for: replicas on a server that
// is alone, and on fewer servers than replicas.
const (
	errReplicasNotSupported jetstream.ErrorCode = 10074
	errNoPeers              jetstream.ErrorCode = 10005
	errInsufficient         jetstream.ErrorCode = 10023
)
