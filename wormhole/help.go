package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"
)

// printHelp describes the whole surface.
func printHelp(w io.Writer) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p(`wormhole connects an app to the edges, over tunnels that it dials itself.

Usage:
  wormhole [flags] [--] CMD ARGS...   start CMD and serve it; its exit status is ours
  wormhole [flags]                    serve an app that somebody else starts

Examples:
  WORMHOLE_EDGE=edge.example.com WORMHOLE_TOKEN_FILE=/run/secrets/token wormhole node index.js
  wormhole --edge edge1.example.com,edge2.example.com --port 8000 -- ./server --verbose
  wormhole --endpoint unix:/run/app.sock --ready-path /healthz
  In a Dockerfile:  CMD ["/wormhole", "node", "index.js"]
                    HEALTHCHECK CMD ["/wormhole", "--health"]

Flags and environment variables (a flag wins over a variable, that over the default):
`)
	for _, s := range settings() {
		head := s.env[0]
		if s.flag != "" {
			head = fmt.Sprintf("--%s %s, %s", s.flag, s.arg, s.env[0])
		}
		p("  %s\n", head)
		p("      %s\n", s.usage)
		if def := shownDefault(s); def != "" {
			p("      default: %s\n", def)
		}
		if len(s.env) > 1 {
			p("      also read from: %s\n", strings.Join(s.env[1:], ", "))
		}
	}
	p(`
  FLY_RELEASE_ID_VAR, FLY_RELEASE_DESC_VAR, FLY_RELEASE_BRANCH_VAR
      names of the variables that hold the release, its description and its branch
  HTTPS_PROXY, NO_PROXY
      HTTP proxy to reach edges through, and what not to reach through it

  --version      print the version
  --help, -h     print this
  --health       ask the agent that runs here whether it serves: exit status 0 or 1
  --show-config  print every setting and where it comes from, secrets masked

Signals: SIGTERM and SIGINT drain (edges send no more requests, those in flight
finish), then stop the app; a second one stops at once. All others go to the app.

Exit statuses:
  the app's own; 128+N if signal N killed it
   75  the app was not ready within --start-timeout
   77  the token is refused: without an app, or before the app was started
   78  bad configuration; every fault is listed
  126  CMD cannot be executed
  127  CMD was not found
`)
}

func shownDefault(s setting) string {
	if s.shown != "" {
		return s.shown
	}
	return s.def
}

// printConfig shows each value and where it came from.
func printConfig(w io.Writer, values []value, c *config) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer func() { _ = t.Flush() }()
	row := func(cells ...string) { _, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) }
	row("SETTING", "VALUE", "SOURCE")
	for _, v := range values {
		text, source := v.text, v.source
		switch {
		case v.setting.secret && text != "":
			text = "********"
		case text == "":
			text = "-"
			switch v.setting.flag {
			case "name":
				text = c.name
			case "release":
				text, source = orDash(c.release.id), orDash(c.release.source)
			case "branch":
				text, source = orDash(c.release.branch), orDash(c.release.source)
			case "port":
				if c.fallback != 0 {
					text, source = fmt.Sprint(c.fallback), "PORT"
				}
			}
		}
		row(v.setting.name(), text, source)
	}
	if len(c.command) > 0 {
		row("command", fmt.Sprintf("%q", c.command), "arguments")
	} else {
		row("command", "-", "none: sidecar mode")
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// version is set by the linker.
var version string

// buildVersion is the version of this build: the linker's, or what the Go toolchain
// recorded.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := strings.Trim(info.Main.Version, "()")
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && v == "devel" {
			v += " " + s.Value[:min(12, len(s.Value))]
		}
	}
	return v
}

func printVersion(w io.Writer) {
	_, _ = fmt.Fprintf(w, "wormhole %s %s %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
