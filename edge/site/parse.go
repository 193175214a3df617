package site

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"wormhole/shared/hostname"
)

// MaxSpecBytes is the longest text that Parse and ParseAll read.
const MaxSpecBytes = 256 << 10

// Parse reads one Spec from YAML or JSON. See ParseAll.
func Parse(text []byte) (Spec, error) {
	specs, err := ParseAll(text)
	if err != nil {
		return Spec{}, err
	}
	if len(specs) != 1 {
		return Spec{}, fmt.Errorf("want one site, got %d", len(specs))
	}
	return specs[0], nil
}

// ParseAll reads the specs of a YAML text with one site a document, or of one
// JSON object. Unknown keys, keys given twice, anchors and values of the wrong
// kind are refused. The error lists every fault with its path; the specs of a
// text without fault also compile. Hosts are returned in canonical form.
func ParseAll(text []byte) ([]Spec, error) {
	if len(text) > MaxSpecBytes {
		return nil, fmt.Errorf("the text has more than %d bytes", MaxSpecBytes)
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, errors.New(strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	var (
		specs []Spec
		f     faults
	)
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		at := ""
		if len(file.Docs) > 1 {
			at = fmt.Sprintf("site %d: ", len(specs)+1)
		}
		spec, err := parseDocument(doc.Body)
		if err != nil {
			for _, fault := range flatten(err) {
				f.list = append(f.list, fmt.Errorf("%s%w", at, fault))
			}
		}
		specs = append(specs, spec)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return specs, nil
}

func parseDocument(body ast.Node) (Spec, error) {
	// An alias stands for its anchor's whole value, so a few hundred bytes of them
	// can unfold to gigabytes. No site needs one.
	var v aliasFinder
	ast.Walk(&v, body)
	if v.found {
		return Spec{}, errors.New("anchors and aliases are not allowed")
	}
	var value any
	if err := yaml.NewDecoder(nothing{}).DecodeFromNode(body, &value); err != nil {
		return Spec{}, errors.New(strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	m, ok := value.(map[string]any)
	if !ok {
		return Spec{}, fmt.Errorf("want a mapping with a host, got %s", describe(value))
	}
	var f faults
	spec := readSpec(&object{values: m, faults: &f})
	if canonical, err := hostname.CanonicalPattern(spec.Host); err == nil {
		spec.Host = canonical
	}
	if len(f.list) == 0 {
		if _, err := Compile(spec, DefaultRules()); err != nil {
			return Spec{}, err
		}
	}
	return spec, f.err()
}

// flatten returns the errors that err joins.
func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

type aliasFinder struct{ found bool }

// Visit implements ast.Visitor.
func (v *aliasFinder) Visit(n ast.Node) ast.Visitor {
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		v.found = true
	}
	if v.found {
		return nil
	}
	return v
}

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, io.EOF }

func readSpec(o *object) Spec {
	var s Spec
	if _, ok := o.values["host"]; !ok {
		o.faults.addf("host", "is missing")
	}
	o.text("host", &s.Host)
	o.boolean("redirect_http", &s.RedirectHTTP)
	o.object("hsts", func(o *object) {
		s.HSTS = new(HSTS)
		o.duration("max_age", &s.HSTS.MaxAge)
		o.plainBool("include_subdomains", &s.HSTS.IncludeSubdomains)
		o.plainBool("preload", &s.HSTS.Preload)
	})
	o.text("backend_header", &s.BackendHeader)
	o.text("app_protocol", &s.AppProtocol)
	o.size("max_body", &s.MaxBody)
	o.size("max_header", &s.MaxHeader)
	o.duration("response_timeout", &s.ResponseTimeout)
	o.duration("idle_timeout", &s.IdleTimeout)
	o.object("parking", func(o *object) {
		s.Parking = new(Parking)
		if o.has("wait") {
			s.Parking.Wait = new(Duration)
			o.duration("wait", s.Parking.Wait)
		}
		if o.has("max") {
			s.Parking.Max = new(int)
			o.number("max", s.Parking.Max)
		}
	})
	o.boolean("strict_sni", &s.StrictSNI)
	o.boolean("allow_upgrade", &s.AllowUpgrade)
	o.tcp("tcp", &s.TCP)
	o.headers("request_headers", &s.RequestHeaders)
	o.headers("response_headers", &s.ResponseHeaders)
	o.object("rate_limit", func(o *object) {
		s.RateLimit = new(RateLimit)
		o.float("requests_per_second", &s.RateLimit.RequestsPerSecond)
		o.number("burst", &s.RateLimit.Burst)
		o.text("per", &s.RateLimit.Per)
	})
	o.texts("allow", &s.Allow)
	o.texts("deny", &s.Deny)
	o.texts("trusted_proxies", &s.TrustedProxies)
	o.rest()
	return s
}

// object reads the keys of one mapping. Each method takes a key that may be
// absent, and notes what is wrong with its value; rest notes the keys left over.
type object struct {
	path   string // of the mapping, with a dot at its end unless it is the root
	values map[string]any
	faults *faults
	known  []string
}

func (o *object) has(key string) bool {
	_, ok := o.values[key]
	return ok
}

// take returns the value of key and whether it is there.
func (o *object) take(key string) (any, bool) {
	o.known = append(o.known, key)
	v, ok := o.values[key]
	return v, ok
}

func (o *object) wrong(key, want string, got any) {
	o.faults.addf(o.path+key, "want %s, got %s", want, describe(got))
}

func (o *object) rest() {
	for _, key := range slices.Sorted(maps.Keys(o.values)) {
		if !slices.Contains(o.known, key) {
			o.faults.addf(o.path+clip(key), "is not a known key")
		}
	}
}

func (o *object) text(key string, to *string) {
	if v, ok := o.take(key); ok {
		s, isText := v.(string)
		if !isText {
			o.wrong(key, "a text", v)
			return
		}
		*to = s
	}
}

func (o *object) texts(key string, to *[]string) {
	v, ok := o.take(key)
	if !ok {
		return
	}
	list, isList := v.([]any)
	if !isList {
		o.wrong(key, "a list", v)
		return
	}
	for i, v := range list {
		s, isText := v.(string)
		if !isText {
			o.wrong(fmt.Sprintf("%s[%d]", key, i), "a text", v)
			continue
		}
		*to = append(*to, s)
	}
}

func (o *object) boolean(key string, to **bool) {
	if o.has(key) {
		*to = new(bool)
		o.plainBool(key, *to)
		return
	}
	o.take(key)
}

func (o *object) plainBool(key string, to *bool) {
	if v, ok := o.take(key); ok {
		b, isBool := v.(bool)
		if !isBool {
			o.wrong(key, "true or false", v)
			return
		}
		*to = b
	}
}

func (o *object) number(key string, to *int) {
	if v, ok := o.take(key); ok {
		n, isInt := integer(v)
		if !isInt || int64(int(n)) != n {
			o.wrong(key, "a whole number", v)
			return
		}
		*to = int(n)
	}
}

func (o *object) float(key string, to *float64) {
	v, ok := o.take(key)
	if !ok {
		return
	}
	if n, isInt := integer(v); isInt {
		*to = float64(n)
		return
	}
	f, isFloat := v.(float64)
	if !isFloat {
		o.wrong(key, "a number", v)
		return
	}
	*to = f
}

func (o *object) duration(key string, to *Duration) {
	if v, ok := o.take(key); ok {
		d, err := parseDuration(v)
		if err != nil {
			o.faults.add(o.path+key, err)
		}
		*to = d
	}
}

func (o *object) size(key string, to *Size) {
	if v, ok := o.take(key); ok {
		n, err := parseSize(v)
		if err != nil {
			o.faults.add(o.path+key, err)
		}
		*to = n
	}
}

// tcp reads a mapping, or what would be its listen.
func (o *object) tcp(key string, to **TCP) {
	if _, isMap := o.values[key].(map[string]any); !isMap {
		if o.has(key) {
			*to = new(TCP)
		}
		o.listen(key, *to)
		return
	}
	o.object(key, func(o *object) {
		*to = new(TCP)
		if !o.has("listen") {
			o.faults.addf(o.path+"listen", "is missing")
		}
		o.listen("listen", *to)
		o.number("max_connections", &(*to).MaxConnections)
		o.duration("idle_timeout", &(*to).IdleTimeout)
	})
}

// listen reads a port or host:port.
func (o *object) listen(key string, to *TCP) {
	v, ok := o.take(key)
	if !ok {
		return
	}
	if port, isInt := integer(v); isInt {
		to.Listen = strconv.FormatInt(port, 10)
		return
	}
	if text, isText := v.(string); isText && text != "" {
		to.Listen = text
		return
	}
	o.wrong(key, `a port such as 5432, or an address such as "10.0.0.1:5432"`, v)
}

func (o *object) headers(key string, to **Headers) {
	o.object(key, func(o *object) {
		*to = new(Headers)
		o.texts("remove", &(*to).Remove)
		o.object("set", func(set *object) {
			(*to).Set = make(map[string]string, len(set.values))
			for name := range set.values {
				var value string
				set.text(name, &value)
				(*to).Set[name] = value
			}
		})
	})
}

// object reads a mapping inside this one with read, and then notes its unknown
// keys.
func (o *object) object(key string, read func(*object)) {
	v, ok := o.take(key)
	if !ok {
		return
	}
	m, isMap := v.(map[string]any)
	if !isMap {
		o.wrong(key, "a mapping", v)
		return
	}
	inner := &object{path: o.path + key + ".", values: m, faults: o.faults}
	read(inner)
	inner.rest()
}
