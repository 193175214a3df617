package printed_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"wormhole/deploy/printed"
)

// TestPublicEdgeCommandsWorkAsPrinted is the scene "public": a machine with a public
// address, a checkout after `make build`, ports 80 and 443, DNS that points at it, and
// Let's Encrypt's address with Pebble behind it. What is restored from a backup is
// restored on another machine.
func TestPublicEdgeCommandsWorkAsPrinted(t *testing.T) {
	t.Parallel()
	root, _ := blocks(t)
	w := newWorld(t, map[string]string{"edge1": "203.0.113.10", "spare": "203.0.113.20", "app": "198.51.100.3", "visitor": "198.51.100.9"})
	copyFile(t, filepath.Join(root, "deploy/demo/index.js"), filepath.Join(w.dir, "index.js"))
	write(t, filepath.Join(w.dir, "backup.pass"), "correct horse battery staple\n")
	w.do(`name edge1.example.com 203.0.113.10
name app.example.com 203.0.113.10
mkdir bin && cp "$programs/edge" bin/edge
at spare install bin/edge /usr/local/bin/edge
answers() { at visitor curl -fsS --max-time 5 https://app.example.com/ | grep 'You have reached'; }
issued() { at "$1" edge cert list | grep "$2.example.com.*Pebble"; }`)
	const installed = `PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`
	serve := typed{}
	for _, l := range linesOf(t, "public") {
		switch {
		case strings.Contains(l.line, "edge restore "):
			w.type_(t, l.Block, "spare", installed, l.line)
			continue
		case strings.Contains(l.line, "edge backup "):
			// By now there is something to lose.
			w.do(`at app env WORMHOLE_TOKEN_FILE=app.token WORMHOLE_EDGE=edge1.example.com SERVER_NAME=statler PORT=8000 "$programs/wormhole" node index.js &
await answers
await issued edge1 edge1
await issued edge1 app
at edge1 edge token list`)
		case strings.Contains(l.line, "edge serve "):
			serve = l
		}
		w.type_(t, l.Block, "edge1", installed, l.line)
	}
	w.do(`grep -q 'age-encryption' edge.backup
fell edge1
name edge1.example.com 203.0.113.20
name app.example.com 203.0.113.20`)
	w.type_(t, serve.Block, "spare", installed, serve.line)
	w.do(`issued spare app
await answers
grep -c 'Issued certificate' pebble.log`)
	for _, c := range []struct{ machine, environment, command string }{
		{"spare", installed, "edge status"},
		{"spare", installed, "edge cert retry app.example.com"},
		{"app", path, "wormhole --help"},
		{"app", path + " WORMHOLE_TOKEN_FILE=app.token WORMHOLE_EDGE=edge1.example.com", "wormhole --show-config"},
		{"spare", installed, "edge drain"},
	} {
		w.type_(t, printed.Block{File: "README.md", Line: inProse(t, c.command)}, c.machine, c.environment, c.command)
	}
	said := w.run(t)
	for _, want := range []string{"edge1.example.com has address 203.0.113.10", "app.example.com has address 203.0.113.10"} {
		if !strings.Contains(said, want) {
			t.Errorf("nobody said %q:\n%s", want, said)
		}
	}
	if !strings.Contains(said, "\n2\n== README.md") {
		t.Errorf("two certificates and no more, those after the restoration included:\n%s", said)
	}
}

// hostnames finds where a line is typed: the machine that it gives a name to.
var hostnames = regexp.MustCompile(`--hostname (\w+)\.example\.com`)

// TestJoinCommandsWorkAsPrinted is the scene "join": machines with public addresses
// and DNS. What names no machine is typed where the line before was. A third edge joins
// by the line of the second, with its own name in it, before three hold the store, and
// a fourth before it takes the place of one of them.
func TestJoinCommandsWorkAsPrinted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]string{"yyz": "203.0.113.1", "fra": "203.0.113.2", "sin": "203.0.113.3", "ams": "203.0.113.4"})
	w.do("name yyz.example.com 203.0.113.1\nname fra.example.com 203.0.113.2\nname sin.example.com 203.0.113.3\nname ams.example.com 203.0.113.4")
	machine, joins := "", typed{}
	for _, l := range linesOf(t, "join") {
		if found := hostnames.FindStringSubmatch(l.line); found != nil {
			machine, joins = found[1], l
		}
		if strings.Contains(l.line, "edge cluster promote ") {
			w.type_(t, joins.Block, "sin", path, strings.ReplaceAll(joins.line, machine, "sin"))
			w.do(`up() { at "$1" env %s edge cluster list | grep -E "$2.example.com:443 +up"; }
for machine in yyz sin; do for other in yyz fra sin; do [ $machine = $other ] || await up $machine $other; done; done
await up fra sin`, path)
		}
		if strings.Contains(l.line, "edge cluster replace ") {
			w.type_(t, joins.Block, "ams", path, strings.ReplaceAll(joins.line, "fra", "ams"))
			w.do(`holds() { at fra env %s edge cluster list | grep "$1.example.com:443 .*store"; }
whole() { at "$1" env %[1]s edge cluster list | grep -E "^store +in step, on 3 edges, hosted here$"; }
await holds yyz
await holds sin
for other in yyz fra sin; do await up ams $other; await up $other ams; await whole $other; done`, path)
		}
		w.type_(t, l.Block, machine, path, l.line)
	}
	w.do(`await holds yyz
await holds ams
if holds sin; then exit 1; fi`)
	w.oneNetwork()
	w.run(t)
}

// oneNetwork checks that the edges at yyz and fra see each other, and that what is
// written at one is known at the other.
func (w *world) oneNetwork() {
	w.do(`lists() { at "$1" env %[1]s edge cluster list | grep -E "$2 +$2.example.com:443 +up"; }
await lists yyz fra
await lists fra yyz
at fra env %[1]s edge token issue --name written-at-fra --host app.example.com >app.token
known() { at yyz env %[1]s edge token list | grep written-at-fra; }
await known`, path)
}

// TestNATSCommandsWorkAsPrinted are the scenes "nats-password" and "nats-creds": two
// real NATS servers, which admit nobody else, on machines of their own. A second edge
// is started by the same line, with its own name in it.
func TestNATSCommandsWorkAsPrinted(t *testing.T) {
	for scene, prepare := range map[string]func(*testing.T, *world) string{
		"nats-password": func(*testing.T, *world) string {
			return `authorization { user: wormhole, password: PASSWORD }`
		},
		"nats-creds": func(t *testing.T, w *world) string {
			cert, key := w.ca.Issue(t, "n1", "n2")
			copyFile(t, w.ca.File, filepath.Join(w.dir, "nats-ca.pem"))
			return trusts(t, filepath.Join(w.dir, "edge.creds")) + fmt.Sprintf("tls { cert_file: %q, key_file: %q }\n", cert, key)
		},
	} {
		t.Run(scene, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, map[string]string{"yyz": "203.0.113.1", "fra": "203.0.113.2", "n1": "203.0.113.11", "n2": "203.0.113.12"})
			w.do("name yyz.example.com 203.0.113.1\nname fra.example.com 203.0.113.2\nname n1 203.0.113.11\nname n2 203.0.113.12")
			rights := prepare(t, w)
			for _, name := range []string{"n1", "n2"} {
				write(t, filepath.Join(w.dir, name+".conf"), fmt.Sprintf(`server_name: %[1]s
listen: "0.0.0.0:4222"
jetstream { store_dir: %[2]q }
cluster { name: c, listen: "0.0.0.0:6222", routes: [ "nats-route://n1:6222", "nats-route://n2:6222" ] }
%[3]s
`, name, filepath.Join(w.dir, name), rights))
				w.do(`at %[1]s "$programs/nats-server" -c %[1]s.conf >%[1]s.log 2>&1 &`, name)
			}
			w.do("await grep 'metadata leader' n1.log\nawait grep 'metadata leader' n2.log")
			lines := linesOf(t, scene)
			if len(lines) != 1 {
				t.Fatalf("%d lines, want one", len(lines))
			}
			machine := hostnames.FindStringSubmatch(lines[0].line)[1]
			other := map[string]string{"yyz": "fra", "fra": "yyz"}[machine]
			w.type_(t, lines[0].Block, machine, path, lines[0].line)
			w.type_(t, lines[0].Block, other, path, strings.ReplaceAll(lines[0].line, machine, other))
			w.oneNetwork()
			w.run(t)
		})
	}
}

// trusts makes an operator with one account, writes the credentials of a user of it
// into a file, and returns what servers are told about them.
func trusts(t *testing.T, credentials string) string {
	t.Helper()
	keys := func(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		pair, err := create()
		if err != nil {
			t.Fatal(err)
		}
		public, err := pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return pair, public
	}
	operator, operatorName := keys(nkeys.CreateOperator)
	account, accountName := keys(nkeys.CreateAccount)
	_, systemName := keys(nkeys.CreateAccount)
	user, userName := keys(nkeys.CreateUser)
	encode := func(claims jwt.Claims, signer nkeys.KeyPair) string {
		text, err := claims.Encode(signer)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	wormhole := jwt.NewAccountClaims(accountName)
	wormhole.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.FormatUserConfig(encode(jwt.NewUserClaims(userName), account), seed)
	if err != nil {
		t.Fatal(err)
	}
	write(t, credentials, string(text))
	return fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {\n %s: %s\n %s: %s\n}\n",
		encode(jwt.NewOperatorClaims(operatorName), operator), systemName,
		accountName, encode(wormhole, operator), systemName, encode(jwt.NewAccountClaims(systemName), operator))
}

// TestDNSCommandsWorkAsPrinted is the scene "dns": an edge with a public address whose
// name is delegated as the document says, and a visitor who asks the resolver that
// everybody asks.
func TestDNSCommandsWorkAsPrinted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]string{"fra": "203.0.113.2", "visitor": "198.51.100.9"})
	w.do(`name fra.example.com 203.0.113.2
at internet nsupdate <<<"server %[1]s
update add edge.example.com. 0 NS fra.example.com.
update add shop.example.org. 0 CNAME edge.example.com.
send"
asks() { at visitor dig "$@" | tee asked | grep -E "^edge.example.com.*A.203.0.113.2$"; }`, internet)
	for _, l := range linesOf(t, "dns") {
		w.type_(t, l.Block, "fra", path, l.line)
	}
	w.do(`await asks edge.example.com A
await asks shop.example.org A
await asks @fra.example.com +norecurse edge.example.com A`)
	w.run(t)
}
