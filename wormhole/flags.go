package main

import (
	"errors"
	"io"
	"strings"

	"github.com/spf13/pflag"
)

// invocation is the command line, read.
type invocation struct {
	flags   map[string]string // those that were given
	command []string          // the app

	version, help, health, showConfig bool
}

// parseArgs reads the command line. Flags end at the first word that is not one,
// because what follows belongs to the user's command. All faults are returned.
func parseArgs(args []string) (invocation, []error) {
	var faults []error
	for {
		inv, err := parseOnce(args)
		if err == nil {
			return inv, faults
		}
		faults = append(faults, clearer(err))
		// Look for further faults behind this one.
		rest, found := without(args, faultyFlag(err))
		if !found {
			return inv, faults
		}
		args = rest
	}
}

func parseOnce(args []string) (invocation, error) {
	inv := invocation{flags: map[string]string{}}
	fs := pflag.NewFlagSet("wormhole", pflag.ContinueOnError)
	fs.SetInterspersed(false)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	for _, s := range settings() {
		if s.flag != "" {
			fs.String(s.flag, "", s.usage)
		}
	}
	fs.BoolVar(&inv.version, "version", false, "")
	fs.BoolVarP(&inv.help, "help", "h", false, "")
	fs.BoolVar(&inv.health, "health", false, "")
	fs.BoolVar(&inv.showConfig, "show-config", false, "")
	if err := fs.Parse(args); err != nil {
		return inv, err
	}
	fs.Visit(func(f *pflag.Flag) { inv.flags[f.Name] = f.Value.String() })
	inv.command = fs.Args()
	return inv, nil
}

// faultyFlag is the word that err complains of, as it was written.
func faultyFlag(err error) string {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			return "-" + short
		}
		return "--" + unknown.GetSpecifiedName()
	}
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return "--" + invalid.GetFlag().Name
	}
	var syntax *pflag.InvalidSyntaxError
	if errors.As(err, &syntax) {
		return syntax.GetSpecifiedFlag()
	}
	return "" // a value is missing at the end: nothing follows
}

// without drops the first word that is flag or flag=value.
func without(args []string, flag string) ([]string, bool) {
	if flag == "" {
		return nil, false
	}
	for i, a := range args {
		if a == flag || strings.HasPrefix(a, flag+"=") {
			return append(append([]string{}, args[:i]...), args[i+1:]...), true
		}
	}
	return nil, false
}

// clearer adds what a person should do.
func clearer(err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && unknown.GetSpecifiedName() == "token" {
		return errors.New("--token: a token is never accepted on the command line, where everybody can read it; use WORMHOLE_TOKEN or --token-file")
	}
	return err
}
