// Command oracleapp is the oracle's app as a process of its own, for real agents to
// wrap. It listens on PORT, answers under ORACLE_NAME and appends what it saw to
// the file ORACLE_LOG, which several processes may share. SIGTERM lets requests
// finish.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"wormhole/edge/edgetest/oracle"
)

// grace is short because the agent has drained before it stops the app: what is
// still there, such as gRPC streams, does not end by itself.
const grace = 500 * time.Millisecond

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "oracleapp:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, env func(string) string) error {
	log, err := oracle.OpenLog(env("ORACLE_LOG"))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", env("PORT")))
	if err != nil {
		return errors.Join(err, log.Close())
	}
	return errors.Join(oracle.NewApp(env("ORACLE_NAME"), log).Serve(ctx, listener, grace), log.Close())
}
