package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"wormhole/edge/site"
	"wormhole/edge/upstream/upstreamtest"
)

// calls is a gRPC service written by hand: Echo is unary, Chat a stream both ways.
func calls(canceled chan<- struct{}) *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "test.Calls",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Echo",
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				in := new(wrapperspb.StringValue)
				if err := decode(in); err != nil {
					return nil, err
				}
				if in.GetValue() == "fail" {
					return nil, status.Error(codes.DataLoss, "as asked")
				}
				_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "yes"))
				return in, nil
			},
		}},
		Streams: []grpc.StreamDesc{{
			StreamName: "Chat", ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, s grpc.ServerStream) error {
				for {
					in := new(wrapperspb.StringValue)
					err := s.RecvMsg(in)
					if errors.Is(err, io.EOF) {
						return nil
					}
					if err != nil {
						<-s.Context().Done()
						close(canceled)
						return err
					}
					if err := s.SendMsg(in); err != nil {
						return err
					}
				}
			},
		}},
	}
}

func TestD13GRPCPasses(t *testing.T) {
	e := newEdge(t, func(r *site.Rules) { r.AppProtocol = "h2c" })
	o, l := upstreamtest.NewListener(t)
	canceled := make(chan struct{})
	server := grpc.NewServer()
	server.RegisterService(calls(canceled), struct{}{})
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-served })
	b := e.add("a", o)

	creds := credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}) // the edge's certificate is not the topic
	conn, err := grpc.NewClient("passthrough:///"+e.server.Listener.Addr().String(),
		grpc.WithTransportCredentials(creds), grpc.WithAuthority(host))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	var trailer metadata.MD
	out := new(wrapperspb.StringValue)
	if err := conn.Invoke(ctx, "/test.Calls/Echo", wrapperspb.String("hello"), out, grpc.Trailer(&trailer)); err != nil || out.GetValue() != "hello" {
		t.Fatalf("unary: got %q %v", out.GetValue(), err)
	}
	if got := trailer.Get("x-trailer"); len(got) != 1 || got[0] != "yes" {
		t.Errorf("trailer: got %v", trailer)
	}
	err = conn.Invoke(ctx, "/test.Calls/Echo", wrapperspb.String("fail"), out) // trailers only
	if s := status.Convert(err); s.Code() != codes.DataLoss || s.Message() != "as asked" {
		t.Errorf("trailers only: got %v", err)
	}
	if err := conn.Invoke(ctx, "/test.Calls/None", wrapperspb.String("x"), out); status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown method: got %v", err)
	}

	chatCtx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	chat, err := conn.NewStream(chatCtx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Calls/Chat")
	if err != nil {
		t.Fatal(err)
	}
	for range 100 { // one at a time: nothing may wait for more
		if err := chat.SendMsg(wrapperspb.String("ping")); err != nil {
			t.Fatal(err)
		}
		if err := chat.RecvMsg(out); err != nil || out.GetValue() != "ping" {
			t.Fatalf("stream: got %q %v", out.GetValue(), err)
		}
	}
	hangUp()
	select {
	case <-canceled:
	case <-time.After(time.Second):
		t.Error("the app did not see the cancellation within 1 s")
	}
	waitFor(t, "no load left", func() bool { return b.InFlight() == 0 })

	o.Refuse(errors.New("tunnel is gone"))
	o.Kill()
	waitFor(t, "unavailable", func() bool {
		err := conn.Invoke(ctx, "/test.Calls/Echo", wrapperspb.String("x"), out)
		return status.Code(err) == codes.Unavailable
	})
}
