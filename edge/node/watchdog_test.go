package node

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheWatchdogTellsWhatIsStuckFromWhatIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var stuckAt time.Duration
		var name string
		block := make(chan struct{})
		began := time.Now()
		w := &watchdog{
			stuck: func(n string) { name, stuckAt = n, time.Since(began) },
			checks: map[string]func(context.Context){
				"slow": func(context.Context) { time.Sleep(6 * time.Second) },
				"stuck": func(context.Context) {
					if time.Since(began) >= time.Minute {
						<-block
					}
				},
			},
		}
		var wg sync.WaitGroup
		wg.Go(func() { w.run(ctx) })
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if name != "stuck" || stuckAt < time.Minute+7*time.Second || stuckAt > time.Minute+10*time.Second {
			t.Errorf("%q was found stuck at %s, want \"stuck\" within 10 s of a minute", name, stuckAt)
		}
		close(block)
		cancel()
		wg.Wait()
		time.Sleep(10 * time.Second) // until the slow one has ended
	})
}
