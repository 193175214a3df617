package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"wormhole/shared/cores"
	"wormhole/shared/memory"
	"wormhole/shared/notify"
	"wormhole/shared/token"
	"wormhole/wormhole/agent"
	"wormhole/wormhole/forward"
	"wormhole/wormhole/process"
)

// defaultPort is where the app is taken to be when nothing says otherwise.
const defaultPort = "5000"

// withdrawal is how long an agent whose app has ended gives its tunnels to pass on
// what the app said last.
const withdrawal = time.Second

// service is the running agent, with or without an app of its own.
type service struct {
	cfg     *config
	logger  *slog.Logger
	forward *forward.Forwarder
	agent   *agent.Agent
	metrics net.Listener   // nil unless metrics are served
	manager notify.Manager // who started this process; nobody if it has an app to answer for
	expires atomic.Int64   // Unix time in seconds when the token does; 0 never
	started time.Time

	background sync.WaitGroup
	cancel     context.CancelFunc // ends what is in the background
	refused    chan error         // Run of the agent ended by itself
	firstReady chan struct{}      // closed when the app is ready for the first time
	unready    chan struct{}      // told when the app ceases to be ready
}

// serve runs until the app has ended or a signal says so, and returns the exit
// status.
func serve(cfg *config, logger *slog.Logger) int {
	s := &service{
		cfg:        cfg,
		logger:     logger,
		started:    time.Now(),
		refused:    make(chan error, 1),
		firstReady: make(chan struct{}),
		unready:    make(chan struct{}, 1),
	}
	s.forward = forward.New(forward.Config{
		Endpoint:        s.endpoint(),
		MaxStreams:      cfg.maxStreams,
		ReadyPath:       cfg.readyPath,
		HealthInterval:  cfg.healthInterval,
		HealthTimeout:   cfg.healthTimeout,
		HealthThreshold: cfg.healthThreshold,
	})
	if cfg.rootCAs == nil || cfg.proxy != nil || strings.HasPrefix(cfg.endpoint.String(), "https") {
		provideRoots()
	}
	var err error
	s.agent, err = agent.New(agent.Config{
		Edges:              cfg.edges,
		Token:              cfg.token,
		Hosts:              cfg.hosts,
		Name:               cfg.name,
		Tags:               cfg.tags,
		Release:            cfg.release.id,
		ReleaseDescription: cfg.release.description,
		Branch:             cfg.release.branch,
		Version:            buildVersion(),
		AppProtocol:        cfg.endpoint.AppProtocol(),
		RootCAs:            cfg.rootCAs,
		Transport:          cfg.transport,
		Connections:        cfg.connections,
		Congestion:         cfg.congestion,
		Proxy:              cfg.proxy,
		EdgesMin:           cfg.edgesMin,
		EdgesMax:           cfg.edgesMax,
		Region:             cfg.edgeRegion,
		StopWhenRefused:    len(cfg.command) == 0,
	}, s.forward, logger)
	if err != nil {
		logger.Error("bad configuration", "err", err)
		return exitConfig
	}
	s.noteExpiry(cfg.token)
	if cfg.metrics != "" {
		if s.metrics, err = net.Listen("tcp", cfg.metrics); err != nil {
			logger.Error("cannot serve metrics", "err", err)
			return exitConfig
		}
		defer func() { _ = s.metrics.Close() }()
	}
	if len(cfg.command) == 0 {
		s.manager = notify.To(os.Getenv(notify.Variable))
		return s.sidecar()
	}
	return s.supervise()
}

// endpoint is what is known of the app's address before it runs; zero means that
// the app is looked for.
func (s *service) endpoint() forward.Endpoint {
	e := s.cfg.endpoint
	if e.IsZero() && s.cfg.fallback != 0 {
		e, _ = forward.ParseEndpoint(strconv.Itoa(s.cfg.fallback))
	}
	if e.IsZero() && len(s.cfg.command) == 0 {
		e, _ = forward.ParseEndpoint(defaultPort)
	}
	return e
}

// supervise starts the app and looks after it.
func (s *service) supervise() int {
	supervisor := process.Supervise(s.logger)
	defer func() { _ = supervisor.Close() }()
	app, err := supervisor.Start(process.Command{
		Path: s.cfg.command[0],
		Args: s.cfg.command[1:],
		Env:  process.WithoutToken(os.Environ()),
	})
	if err != nil {
		s.logger.Error("cannot start the app", "err", err)
		return process.ExitCode(err)
	}
	ctx := s.start()
	defer s.stop()
	if s.cfg.endpoint.IsZero() {
		s.background.Go(func() { s.findPort(ctx, app) })
	}

	slow := s.startLimit()
	for {
		select {
		case <-app.Done():
			s.logger.Info("app ended", "status", app.Wait().String())
			s.withdraw()
			return app.Wait().ExitCode()
		case sig := <-supervisor.Lifecycle():
			return s.shutDown(sig, supervisor.Lifecycle(), app)
		case <-slow.C:
			if s.cfg.startTimeout > 0 && !isClosed(s.firstReady) {
				s.logger.Error("app is not ready in time, stopping it", "duration", s.cfg.startTimeout)
				ctx, cancel := context.WithTimeout(context.Background(), s.cfg.drainTimeout)
				defer cancel()
				app.Stop(ctx, syscall.SIGTERM)
				return exitStartTimeout
			}
			if !s.remindOfReadiness(slow) {
				slow.Stop()
			}
		}
	}
}

// sidecar serves an app that somebody else starts.
func (s *service) sidecar() int {
	signals, release := s.signals()
	defer release()
	s.start()
	defer s.stop()
	// Now, not when a tunnel is open: an edge that cannot be reached yet is no reason
	// to kill the agent that waits for it.
	s.tell(s.manager.Ready("looking for the app and the edges"))
	slow := s.startLimit()
	for {
		select {
		case sig := <-signals:
			s.logger.Info("draining", "signal", sig.String())
			s.tell(s.manager.Stopping(s.cfg.drainTimeout + withdrawal))
			ctx, cancel := context.WithTimeout(context.Background(), s.cfg.drainTimeout)
			defer cancel()
			drained := s.drain(ctx)
			select {
			case <-drained:
				return 0
			case sig := <-signals:
				return 128 + signalNumber(sig)
			}
		case err := <-s.refused:
			s.logger.Error("every edge refuses the agent, stopping", "err", err)
			return exitRefused
		case <-slow.C:
			if s.cfg.startTimeout > 0 && !isClosed(s.firstReady) {
				s.logger.Error("app is not ready in time", "duration", s.cfg.startTimeout)
				return exitStartTimeout
			}
			if !s.remindOfReadiness(slow) {
				slow.Stop()
			}
		}
	}
}

// signals delivers what asks a sidecar to stop. As process 1 of a PID namespace it
// also reaps the orphans of whatever else runs there; elsewhere it has no children,
// and every other signal keeps its default action.
func (s *service) signals() (signals <-chan os.Signal, release func()) {
	if os.Getpid() == 1 {
		supervisor := process.Supervise(s.logger)
		return supervisor.Lifecycle(), func() { _ = supervisor.Close() }
	}
	own := make(chan os.Signal, 2)
	signal.Notify(own, syscall.SIGTERM, syscall.SIGINT)
	return own, func() { signal.Stop(own) }
}

// shutDown drains, then stops the app, within the drain timeout in all. Another
// signal ends everything at once.
func (s *service) shutDown(sig os.Signal, signals <-chan os.Signal, app *process.Process) int {
	end := time.Now().Add(s.cfg.drainTimeout)
	// Of that, the app has this much to stop by itself.
	reserve := min(2*time.Second, s.cfg.drainTimeout/4)
	s.logger.Info("draining", "signal", sig.String(), "streams", s.forward.Streams())

	drainCtx, cancel := context.WithDeadline(context.Background(), end.Add(-reserve))
	defer cancel()
	select {
	case <-s.drain(drainCtx):
	case <-app.Done():
	case <-signals:
		return app.Kill().ExitCode()
	}

	stopCtx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	stopped := make(chan process.Status, 1)
	s.background.Go(func() { stopped <- app.Stop(stopCtx, sig) })
	select {
	case status := <-stopped:
		s.logger.Info("app ended", "status", status.String())
		// What the app said last may still be on its way.
		lastCtx, cancel := context.WithDeadline(context.Background(), end)
		defer cancel()
		<-s.drain(lastCtx)
		return status.ExitCode()
	case <-signals:
		return app.Kill().ExitCode()
	}
}

// start launches everything that runs beside the app. The context ends at stop.
func (s *service) start() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.background.Go(func() {
		if err := s.agent.Run(ctx); err != nil {
			s.refused <- err
		}
	})
	s.background.Go(func() { s.forward.Watch(ctx, s.readiness) })
	s.background.Go(func() { memory.Run(ctx, 0) })
	s.background.Go(func() { cores.Run(ctx) })
	if s.cfg.tokenFile != "" {
		s.background.Go(func() { watchToken(ctx, s.cfg.tokenFile, s.cfg.token, s.replaceToken, s.logger) })
	}
	if s.metrics != nil {
		s.logger.Info("metrics are served", "addr", s.metrics.Addr().String())
		s.background.Go(func() { answerMetrics(ctx, s.metrics, s.exposition) })
	}
	if l, err := listenHealth(); err != nil {
		s.logger.Warn("wormhole --health will not work", "err", err)
	} else {
		s.background.Go(func() { answerHealth(ctx, l, s.health) })
	}
	return ctx
}

func (s *service) stop() {
	s.cancel()
	s.background.Wait()
}

// readiness passes on what the checks of the app say.
func (s *service) readiness(err error) {
	if err != nil {
		s.logger.Warn("app is not ready", "err", err)
		s.tell(s.manager.Status("the app is not ready: " + err.Error()))
		s.agent.SetReady(false, err.Error())
		select {
		case s.unready <- struct{}{}:
		default:
		}
		return
	}
	s.logger.Info("app is ready", "endpoint", s.forward.Endpoint().String())
	s.agent.SetReady(true, "")
	s.tell(s.manager.Status("the app is ready at " + s.forward.Endpoint().String()))
	if !isClosed(s.firstReady) {
		close(s.firstReady)
	}
}

// replaceToken takes a new token into use.
func (s *service) replaceToken(raw string) {
	s.noteExpiry(raw)
	s.agent.SetToken(raw)
}

func (s *service) noteExpiry(raw string) {
	var at int64
	if t, err := token.Peek(raw); err == nil && !t.ExpiresAt.IsZero() {
		at = t.ExpiresAt.Unix()
	}
	s.expires.Store(at)
}

// tell notes that the service manager could not be told something.
func (s *service) tell(err error) {
	if err != nil {
		s.logger.Debug("the service manager does not listen", "err", err)
	}
}

// findPort looks for the port that the app listens on, again whenever the app
// ceases to be ready: it may listen elsewhere next time.
func (s *service) findPort(ctx context.Context, app *process.Process) {
	for {
		addr, err := app.WatchPort(ctx)
		switch {
		case errors.Is(err, process.ErrUnsupported):
			if s.forward.Endpoint().IsZero() {
				e, _ := forward.ParseEndpoint(defaultPort)
				s.forward.SetEndpoint(e)
			}
			return
		case err != nil:
			return
		}
		s.forward.SetEndpoint(forward.Endpoint{}.At(process.DialTargets(addr)...))
		select {
		case <-ctx.Done():
			return
		case <-s.unready:
		}
	}
}

// drain begins to drain and closes the channel when it is done or ctx has ended.
func (s *service) drain(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	s.background.Go(func() {
		defer close(done)
		if err := s.agent.Drain(ctx); err != nil {
			s.logger.Warn("drain ended with requests in flight", "streams", s.forward.Streams(), "err", err)
		}
	})
	return done
}

// withdraw takes the tunnels away after the app has ended.
func (s *service) withdraw() {
	s.agent.SetReady(false, "the app ended")
	ctx, cancel := context.WithTimeout(context.Background(), withdrawal)
	defer cancel()
	_ = s.agent.Drain(ctx)
}

// startLimit fires when the app should have become ready.
func (s *service) startLimit() *time.Timer {
	if s.cfg.startTimeout > 0 {
		return time.NewTimer(s.cfg.startTimeout)
	}
	return time.NewTimer(time.Minute)
}

// remindOfReadiness says that the app was never ready, and reports whether to
// look again.
func (s *service) remindOfReadiness(t *time.Timer) bool {
	if isClosed(s.firstReady) {
		return false
	}
	endpoint := s.forward.Endpoint().String()
	if endpoint == "" {
		endpoint = "none: the app does not listen on any port"
	}
	s.logger.Warn("app is not ready yet", "endpoint", endpoint, "err", s.forward.Ready(context.Background()))
	t.Reset(time.Minute)
	return true
}

// health says why the agent does not serve, empty if it does.
func (s *service) health() string {
	status := s.agent.Status()
	switch {
	case status.Draining:
		return "draining"
	case len(status.Tunnels) == 0 && status.Refused != "":
		return status.Refused
	case len(status.Tunnels) == 0:
		return "no tunnel is open"
	case !status.Ready:
		return "the app is not ready"
	}
	return ""
}

func signalNumber(sig os.Signal) int {
	if n, ok := sig.(syscall.Signal); ok {
		return int(n)
	}
	return 0
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
