package main

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"wormhole/edge/node"
)

// upgradeOnSignal upgrades the node in place at SIGUSR2, until stop is called.
func upgradeOnSignal(n *node.Node, logger *slog.Logger) (stop func()) {
	// The path as it is now: later a new file may stand there.
	path, pathErr := os.Executable()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range signals {
			err := pathErr
			if err == nil {
				err = n.Upgrade(path, os.Args[1:])
			}
			if err != nil {
				logger.Error("upgrade failed, going on as before", "err", err)
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}
