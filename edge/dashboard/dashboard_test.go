package dashboard_test

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"wormhole/edge/admin"
	"wormhole/edge/edgetest"
)

// browser starts a headless Chromium, or skips where there is none and nobody
// relies on the test.
func browser(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no chromium on this machine")
		}
		t.Skip("no chromium on this machine")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()))
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancelAlloc)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(cancel)
	// The context of the first call holds the browser, so the limit comes after it.
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(stop)
	return ctx
}

func TestThePageListsLiveBackendsToWhoeverHasTheCredential(t *testing.T) {
	n := edgetest.StartNode(t)
	a := edgetest.StartAgent(t, edgetest.AgentConfig{
		Token: n.Token(t, "app.example.com"), Endpoint: edgetest.App(t, edgetest.Named("statler")),
	}, n)
	n.AwaitBackends(t, 1)
	credential, err := os.ReadFile(filepath.Join(n.Config.DataDir, admin.CredentialFile))
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + n.Addr("admin") + "/"
	ctx := browser(t)

	var mu sync.Mutex
	var outside []string
	if err := chromedp.Listen(ctx, func(ev any) {
		if e, ok := ev.(*network.EventRequestWillBeSent); ok && !strings.HasPrefix(e.Request.URL, url) && !strings.HasPrefix(e.Request.URL, "data:") {
			mu.Lock()
			defer mu.Unlock()
			outside = append(outside, e.Request.URL)
		}
	}); err != nil {
		t.Fatal(err)
	}
	do := func(steps ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(ctx, steps...); err != nil {
			t.Fatal(err)
		}
	}
	text := func(sel string) string {
		t.Helper()
		s, err := chromedp.Run(ctx, chromedp.Text(sel))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	do(chromedp.Navigate(url), chromedp.WaitVisible("#credential"), chromedp.SendKeys("#credential", "not the credential\n"),
		chromedp.WaitVisible("#refused:not(:empty)"))
	refused := text("#refused")
	do(chromedp.SendKeys("#credential", strings.TrimSpace(string(credential))+"\n"), chromedp.WaitVisible("#backends tr"))
	summary, backends := text("#summary"), text("#backends")
	if !strings.Contains(refused, "refused") {
		t.Errorf("a wrong credential shows %q", refused)
	}
	if !strings.Contains(summary, "serving") || !strings.Contains(summary, "1 backends") {
		t.Errorf("the summary is %q", summary)
	}
	for _, want := range []string{"test", "ready", "app.example.com", "tls"} {
		if !strings.Contains(backends, want) {
			t.Errorf("%q is not in the row %q", want, backends)
		}
	}
	// A backend that leaves goes from the page by itself.
	a.Stop()
	do(chromedp.WaitVisible("#none"))
	mu.Lock()
	defer mu.Unlock()
	if len(outside) > 0 {
		t.Errorf("the page asked elsewhere: %v", outside)
	}
}

func TestThePageCannotBeFramedOrScriptedFromOutside(t *testing.T) {
	n := edgetest.StartNode(t)
	resp, err := http.Get("http://" + n.Addr("admin") + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	policy := resp.Header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "connect-src 'self'", "base-uri 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("policy %q lacks %q", policy, want)
		}
	}
	if len(resp.Cookies()) > 0 {
		t.Error("the page sets a cookie")
	}
}
