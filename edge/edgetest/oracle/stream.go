package oracle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// conversation is one open stream: next exchanges one message. errAltered means
// that it was not the right one.
type conversation struct {
	next func(ctx context.Context, i int) error
	end  func()
}

var errAltered = errors.New("a message is missing or altered")

// ErrLooksComplete is how an event stream ended that was cut without its client
// being told so.
var ErrLooksComplete = errors.New("the event stream ended as if it were complete")

// startStreams opens the streams of the plan, each kept by a goroutine of its own
// that ends with l.ctx.
func (l *Load) startStreams() {
	each := func(n int, clients []*Client, kind Kind, open func(context.Context, *Client, string) (*conversation, error)) {
		for i := range n {
			c := clients[i%len(clients)]
			l.wg.Go(func() { l.keepStream(kind, c, open) })
		}
	}
	each(l.plan.WebSockets, l.plan.WebSocketClients, WebSocket, l.openWebSocket)
	each(l.plan.Events, l.plan.EventClients, SSE, l.openEvents)
	if l.plan.Chats > 0 {
		shared := map[*Client]*grpc.ClientConn{}
		for _, c := range l.plan.ChatClients {
			conn, err := c.dialGRPC()
			if err != nil {
				l.note(Result{ID: newID(), Kind: GRPC, Proto: c.proto, Due: l.Elapsed(), Fault: err.Error()})
				continue
			}
			shared[c] = conn
		}
		each(l.plan.Chats, l.plan.ChatClients, GRPC, func(ctx context.Context, c *Client, id string) (*conversation, error) {
			return openChat(ctx, shared[c], id)
		})
		l.wg.Go(func() {
			<-l.ctx.Done()
			time.Sleep(100 * time.Millisecond) // the streams say goodbye first
			for _, conn := range shared {
				_ = conn.Close()
			}
		})
	}
}

// keepStream opens a stream, exchanges messages until it ends, and opens it anew
// if the plan says so.
func (l *Load) keepStream(kind Kind, c *Client, open func(context.Context, *Client, string) (*conversation, error)) {
	for l.ctx.Err() == nil {
		r := Result{ID: newID(), Kind: kind, Proto: c.proto, Due: l.Elapsed()}
		ctx, cancel := context.WithCancel(l.ctx)
		limit := time.AfterFunc(l.plan.Patience, cancel) // of the opening, first message included
		conv, err := open(ctx, c, r.ID)
		if err == nil {
			err = conv.next(ctx, 0)
		}
		limit.Stop()
		r.Took = l.Elapsed() - r.Due
		if err != nil && l.ctx.Err() != nil {
			cancel()
			return // neither good nor bad: we left
		}
		if err != nil {
			r.Fault = "cannot open: " + cause(err)
			l.note(r)
			cancel()
			if !l.plan.Reopen || !l.sleep(250*time.Millisecond) {
				return
			}
			continue
		}
		l.note(r)
		l.open.Add(1)
		e := Ending{ID: r.ID, Kind: kind, Proto: c.proto, Opened: r.Due, Messages: 1}
		for ; ; e.Messages++ {
			if !l.sleep(l.plan.Every) {
				break
			}
			if err = conv.next(ctx, e.Messages); err != nil {
				break
			}
			if e.Messages == 1 {
				l.talking.Add(1)
			}
		}
		e.Ended = l.Elapsed()
		e.ByUs = l.ctx.Err() != nil
		e.Altered = errors.Is(err, errAltered)
		if !e.ByUs {
			e.Err = err
		}
		l.open.Add(-1)
		l.mu.Lock()
		l.endings = append(l.endings, e)
		l.mu.Unlock()
		conv.end()
		cancel()
		if !l.plan.Reopen {
			return
		}
	}
}

// sleep waits and reports whether the load goes on.
func (l *Load) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.ctx.Done():
		return false
	}
}

func (l *Load) openWebSocket(ctx context.Context, c *Client, id string) (*conversation, error) {
	conn, _, err := websocket.Dial(ctx, c.url+"/ws", &websocket.DialOptions{
		HTTPClient: c.http, HTTPHeader: http.Header{IDHeader: {id}},
	})
	if err != nil {
		return nil, err
	}
	return &conversation{
		next: func(ctx context.Context, i int) error {
			said := fmt.Sprintf("%s %d %s", id, i, strings.Repeat("x", 64))
			if err := conn.Write(ctx, websocket.MessageText, []byte(said)); err != nil {
				return err
			}
			_, heard, err := conn.Read(ctx)
			if err == nil && string(heard) != said {
				return errAltered
			}
			return err
		},
		end: func() { _ = conn.CloseNow() },
	}, nil
}

func (l *Load) openEvents(ctx context.Context, c *Client, id string) (*conversation, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/sse?ms=%d", c.url, l.plan.Every.Milliseconds()), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set(IDHeader, id)
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get(AppHeader) == "" {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	lines := bufio.NewScanner(resp.Body)
	return &conversation{
		next: func(_ context.Context, i int) error {
			for lines.Scan() {
				if lines.Text() == "" {
					continue
				}
				if lines.Text() != fmt.Sprintf("data: %d", i) {
					return errAltered
				}
				return nil
			}
			if err := lines.Err(); err != nil {
				return err
			}
			return ErrLooksComplete
		},
		end: func() { _ = resp.Body.Close() },
	}, nil
}

// dialGRPC prepares one connection for gRPC streams.
func (c *Client) dialGRPC() (*grpc.ClientConn, error) {
	_, authority, _ := strings.Cut(c.url, "://")
	return grpc.NewClient("passthrough:///"+authority,
		grpc.WithTransportCredentials(credentials.NewTLS(c.tlsConfig())),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.dial(ctx) }),
		grpc.WithDisableRetry())
}

func openChat(ctx context.Context, conn *grpc.ClientConn, id string) (*conversation, error) {
	if conn == nil {
		return nil, errors.New("no gRPC connection")
	}
	s, err := conn.NewStream(metadata.AppendToOutgoingContext(ctx, IDHeader, id),
		&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, chatMethod)
	if err != nil {
		return nil, err
	}
	return &conversation{
		next: func(_ context.Context, i int) error {
			said := fmt.Sprintf("%s %d", id, i)
			sendErr := s.SendMsg(wrapperspb.Bytes([]byte(said)))
			heard := new(wrapperspb.BytesValue)
			// After a failed send the status is what receiving says.
			if err := s.RecvMsg(heard); err != nil {
				return err
			}
			if sendErr != nil {
				return sendErr
			}
			if string(heard.Value) != said {
				return errAltered
			}
			return nil
		},
		end: func() { _ = s.CloseSend() },
	}, nil
}
