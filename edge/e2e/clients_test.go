package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"wormhole/edge/edgetest"
)

const host = "app.example.com"

// serve puts an app behind a fresh edge and waits until it is live.
func serve(t *testing.T, app http.Handler) *edgetest.Node {
	t.Helper()
	n := edgetest.StartNode(t)
	edgetest.StartAgent(t, edgetest.AgentConfig{Token: n.Token(t, host), Endpoint: edgetest.App(t, app)}, n)
	n.AwaitBackends(t, 1)
	return n
}

func TestCurlSpeaksHTTP1AndHTTP2(t *testing.T) {
	n := serve(t, edgetest.Named("statler"))
	_, port, _ := net.SplitHostPort(n.Addr("https"))
	for flag, version := range map[string]string{"--http1.1": "1.1", "--http2": "2"} {
		out, err := exec.Command("curl", "-sS", flag, "--max-time", "10", "--cacert", n.CAFile(),
			"--resolve", host+":"+port+":127.0.0.1", "-w", "%{http_version} %{http_code}",
			"https://"+net.JoinHostPort(host, port)+"/").CombinedOutput()
		if err != nil {
			t.Fatalf("curl %s: %v\n%s", flag, err, out)
		}
		if want := "You have reached statler\n" + version + " 200"; string(out) != want {
			t.Errorf("curl %s printed %q, want %q", flag, out, want)
		}
	}
}

func TestPlainHTTPIsRedirectedForKnownSitesOnly(t *testing.T) {
	n := serve(t, edgetest.Named("statler"))
	ask := func(h string) *http.Response {
		req, _ := http.NewRequest(http.MethodGet, "http://"+n.Addr("http")+"/a?b=c", nil)
		req.Host = h
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	if resp := ask(host); resp.StatusCode != http.StatusPermanentRedirect || !strings.HasPrefix(resp.Header.Get("Location"), "https://"+host) || !strings.HasSuffix(resp.Header.Get("Location"), "/a?b=c") {
		t.Errorf("known site: %s to %q, want 308 to https with the same path", resp.Status, resp.Header.Get("Location"))
	}
	if resp := ask("unknown.example.com"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("unknown site: %s, want 404", resp.Status)
	}
}

func TestEveryProtocolReachesTheApp(t *testing.T) {
	n := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Host, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Real-Ip"))
	}))
	for _, proto := range []string{"h1", "h2", "h3"} {
		resp, err := n.Client(t, proto).Get("https://" + host + "/")
		if err != nil {
			t.Fatalf("%s: %v", proto, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if got, want := string(body), host+" https 127.0.0.1"; got != want {
			t.Errorf("%s: app saw %q, want %q", proto, got, want)
		}
	}
}

func TestWebSocketIsTransparent(t *testing.T) {
	n := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow() // the test judges what the client saw
		c.SetReadLimit(-1)
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if string(data) == "bye" {
				_ = c.Close(4321, "as asked")
				return
			}
			if err := c.Write(r.Context(), kind, data); err != nil {
				return
			}
		}
	}))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "wss://"+host+"/", &websocket.DialOptions{HTTPClient: n.Client(t, "h1")})
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadLimit(-1)
	for _, size := range []int{0, 1, 125, 126, 65535, 65536, 16 << 20} {
		sent := strings.Repeat("x", size)
		if err := c.Write(ctx, websocket.MessageBinary, []byte(sent)); err != nil {
			t.Fatal(err)
		}
		_, got, err := c.Read(ctx)
		if err != nil || string(got) != sent {
			t.Fatalf("echo of %d bytes: got %d bytes, err %v", size, len(got), err)
		}
	}
	if err := c.Write(ctx, websocket.MessageText, []byte("bye")); err != nil {
		t.Fatal(err)
	}
	_, _, err = c.Read(ctx)
	var ce websocket.CloseError
	if !errors.As(err, &ce) || ce.Code != 4321 || ce.Reason != "as asked" {
		t.Errorf("close was %v, want code 4321 as the app sent it", err)
	}
}

func TestD14EventsArriveWhenTheAppWritesThem(t *testing.T) {
	wrote := make(chan time.Time, 16)
	gone := make(chan struct{})
	n := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		for i := range 5 {
			wrote <- time.Now()
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
		<-r.Context().Done()
		close(gone)
	}))
	resp, err := n.Client(t, "h2").Get("https://" + host + "/events")
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(resp.Body)
	for i := 0; i < 5 && lines.Scan(); {
		if !strings.HasPrefix(lines.Text(), "data: ") {
			continue
		}
		if late := time.Since(<-wrote); late > 50*time.Millisecond {
			t.Errorf("event %d arrived %s after the app wrote it, want 50 ms at most", i, late)
		}
		i++
	}
	resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(2 * time.Second):
		t.Error("the app did not learn within 2 s that the client is gone")
	}
}

func TestGRPCStreamsAndTrailersPass(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	cancelled := make(chan struct{})
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Chat", ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, s grpc.ServerStream) error {
				_ = s.SetHeader(metadata.Pairs("greeting", "hello"))
				s.SetTrailer(metadata.Pairs("farewell", "bye"))
				for {
					m := new(wrapperspb.BytesValue)
					if err := s.RecvMsg(m); errors.Is(err, io.EOF) {
						return nil
					} else if err != nil {
						close(cancelled)
						return err
					}
					if string(m.Value) == "fail" {
						return status.Error(codes.FailedPrecondition, "as asked")
					}
					if err := s.SendMsg(m); err != nil {
						return err
					}
				}
			},
		}},
	}, nil)
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)

	n := edgetest.StartNode(t)
	edgetest.StartAgent(t, edgetest.AgentConfig{Token: n.Token(t, host), Endpoint: "h2c://" + l.Addr().String()}, n)
	n.AwaitBackends(t, 1)

	conn, err := grpc.NewClient("passthrough:///"+host,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: edgetest.Roots(t, n.CAFile()), MinVersion: tls.VersionTLS12})),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", n.Addr("https"))
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	open := func(ctx context.Context) grpc.ClientStream {
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Chat")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	exchange := func(s grpc.ClientStream, text string) {
		in := wrapperspb.Bytes([]byte(text))
		if err := s.SendMsg(in); err != nil {
			t.Fatal(err)
		}
		out := new(wrapperspb.BytesValue)
		if err := s.RecvMsg(out); err != nil || string(out.Value) != text {
			t.Fatalf("echo of %d bytes: %d bytes, err %v", len(text), len(out.Value), err)
		}
	}

	s := open(ctx)
	for i := range 100 { // each answer is awaited before the next message: both directions are open at once
		exchange(s, fmt.Sprint("message ", i))
	}
	exchange(s, strings.Repeat("x", 1<<20))
	_ = s.CloseSend()
	if err := s.RecvMsg(new(wrapperspb.BytesValue)); !errors.Is(err, io.EOF) {
		t.Errorf("end of stream is %v, want EOF", err)
	}
	if got := s.Trailer().Get("farewell"); len(got) != 1 || got[0] != "bye" {
		t.Errorf("trailer farewell is %q", got)
	}

	s = open(ctx)
	_ = s.SendMsg(wrapperspb.Bytes([]byte("fail")))
	if err := s.RecvMsg(new(wrapperspb.BytesValue)); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "as asked" {
		t.Errorf("status is %v, want FailedPrecondition as the app sent it", err)
	}

	short, stop := context.WithCancel(ctx)
	s = open(short)
	exchange(s, "before the cancel")
	stop()
	select {
	case <-cancelled:
	case <-time.After(time.Second):
		t.Error("the app did not see the cancel within 1 s")
	}
}

// patterned is n bytes that differ from place to place.
type patterned struct{ at, n int64 }

func (p *patterned) Read(b []byte) (int, error) {
	if p.at == p.n {
		return 0, io.EOF
	}
	k := int(min(int64(len(b)), p.n-p.at))
	for i := range b[:k] {
		at := p.at + int64(i)
		b[i] = byte(at ^ at>>8 ^ at>>16 ^ at>>24)
	}
	p.at += int64(k)
	return k, nil
}

func TestAGibibyteEachWayArrivesWhole(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	want := sum(&patterned{n: size})
	n := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, _ = io.WriteString(w, sum(r.Body))
			return
		}
		_, _ = io.Copy(w, &patterned{n: size})
	}))
	for _, proto := range []string{"h1", "h2"} {
		client := n.Client(t, proto)
		resp, err := client.Get("https://" + host + "/")
		if err != nil {
			t.Fatal(err)
		}
		if got := sum(resp.Body); got != want {
			t.Errorf("%s: download has hash %s, want %s", proto, got, want)
		}
		resp.Body.Close()
		resp, err = client.Post("https://"+host+"/", "application/octet-stream", &patterned{n: size})
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(got) != want {
			t.Errorf("%s: app saw hash %s, want %s", proto, got, want)
		}
	}
}

func sum(r io.Reader) string {
	h := sha256.New()
	_, err := io.Copy(h, r)
	if err != nil {
		return err.Error()
	}
	return hex.EncodeToString(h.Sum(nil))
}
