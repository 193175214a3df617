package config

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/pflag"

	"wormhole/edge/site"
)

// EnvPrefix begins the name of every variable.
const EnvPrefix = "EDGE_"

// MaxFile bounds the configuration file, in bytes.
const MaxFile = 16 << 20

// Load fills the values behind fs (see Register) that were not given as flags,
// from the environment and then from the file, and validates the whole. lookup
// is os.LookupEnv. The error joins every fault, each beginning with where it is.
func (c *Config) Load(fs *pflag.FlagSet, lookup func(string) (string, bool)) error {
	faults := deferredFaults(fs)
	if !fs.Changed("config") {
		if v, ok := lookup(EnvPrefix + "CONFIG"); ok {
			c.File = v
		}
	}
	fromFile := map[string]any{}
	if c.File != "" {
		var err error
		if fromFile, err = c.readFile(fs); err != nil {
			faults = append(faults, err)
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "config" || f.Name == "help" || f.Changed {
			return
		}
		env := EnvPrefix + envName(f.Name)
		if v, ok := lookup(env); ok {
			if err := set(f, v); err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", env, err))
			}
			return
		}
		if v, ok := fromFile[keyName(f.Name)]; ok {
			text, err := scalarText(v)
			if err == nil {
				err = set(f, text)
			}
			if err != nil {
				faults = append(faults, fmt.Errorf("%s: %s: %w", c.File, keyName(f.Name), err))
			}
		}
	})
	if err := c.Validate(); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// DeferFaults makes parsing of fs go on after a bad value, so that Load can list
// every fault and not only the first. Call it before fs is parsed.
func DeferFaults(fs *pflag.FlagSet) {
	fs.VisitAll(func(f *pflag.Flag) {
		f.Value = &deferred{Value: f.Value}
		if f.DefValue == "[]" || f.DefValue == "0" {
			f.DefValue = "" // says nothing; the flag's text says what nothing means
		}
	})
}

// deferred keeps what is wrong with a flag's values until Load asks.
type deferred struct {
	pflag.Value
	faults []error
}

func (d *deferred) Set(v string) error {
	if err := d.Value.Set(v); err != nil {
		d.faults = append(d.faults, fmt.Errorf("%q is not a %s", v, d.Type()))
	}
	return nil
}

// IsBoolFlag lets a switch stand without a value, whatever wraps it.
func (d *deferred) IsBoolFlag() bool { return d.Type() == "bool" }

func deferredFaults(fs *pflag.FlagSet) (faults []error) {
	fs.VisitAll(func(f *pflag.Flag) {
		if d, ok := f.Value.(*deferred); ok {
			for _, err := range d.faults {
				faults = append(faults, fmt.Errorf("--%s: %w", f.Name, err))
			}
			f.Value = d.Value
		}
	})
	return faults
}

func keyName(flag string) string { return strings.ReplaceAll(flag, "-", "_") }

func envName(flag string) string { return strings.ToUpper(keyName(flag)) }

// set gives f a value that did not come from the command line. A list replaces
// what is there, as a flag given for the first time does.
func set(f *pflag.Flag, v string) error {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		var items []string
		for _, item := range strings.Split(v, ",") {
			if item = strings.TrimSpace(item); item != "" {
				items = append(items, item)
			}
		}
		return list.Replace(items)
	}
	if err := f.Value.Set(strings.TrimSpace(v)); err != nil {
		return fmt.Errorf("%q is not a %s", v, f.Value.Type())
	}
	return nil
}

func scalarText(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case bool, int, int64, uint64, float64:
		return fmt.Sprint(v), nil
	case []any:
		items := make([]string, 0, len(v))
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return "", errors.New("the list may hold text only")
			}
			items = append(items, s)
		}
		return strings.Join(items, ","), nil
	}
	return "", errors.New("must be a single value or a list of text")
}

// readFile parses the file into keys, and its sites into c.Sites.
func (c *Config) readFile(fs *pflag.FlagSet) (map[string]any, error) {
	info, err := os.Stat(c.File)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if info.Size() > MaxFile {
		return nil, fmt.Errorf("config: %s is larger than %d bytes", c.File, MaxFile)
	}
	data, err := os.ReadFile(c.File)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	keys, specs, err := parseFile(data, fs)
	c.Sites = specs
	if err != nil {
		return keys, fmt.Errorf("%s: %w", c.File, err)
	}
	return keys, nil
}

// parseFile reads a configuration file's text. Known keys are returned even
// beside faults, so that their own faults are found in the same run.
func parseFile(data []byte, fs *pflag.FlagSet) (keys map[string]any, specs []site.Spec, err error) {
	keys = map[string]any{}
	if err := yaml.Unmarshal(data, &keys); err != nil {
		return map[string]any{}, nil, errors.New(yaml.FormatError(err, false, false))
	}
	var faults []error
	var unknown []string
	for key := range keys {
		if key == "sites" {
			continue
		}
		if f := fs.Lookup(strings.ReplaceAll(key, "_", "-")); f == nil || key == "config" || strings.Contains(key, "-") {
			unknown = append(unknown, key)
		}
	}
	sort.Strings(unknown)
	for _, key := range unknown {
		faults = append(faults, fmt.Errorf("%s: unknown key", key))
	}
	if raw, ok := keys["sites"]; ok {
		list, ok := raw.([]any)
		if !ok && raw != nil {
			faults = append(faults, errors.New("sites: must be a list"))
		}
		for i, item := range list {
			text, err := yaml.Marshal(item)
			if err == nil {
				var spec site.Spec
				if spec, err = site.Parse(text); err == nil {
					specs = append(specs, spec)
				}
			}
			if err != nil {
				faults = append(faults, fmt.Errorf("sites[%d]: %w", i, err))
			}
		}
		delete(keys, "sites")
	}
	return keys, specs, errors.Join(faults...)
}
