package token

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds nested JSON values.
const maxDepth = 8

// split cuts a compact JWS (RFC 7515, section 3.1), gives its first two parts and
// refuses characters outside the base64url alphabet: Go's decoder skips line
// ends, which would give one token many spellings.
func split(raw string) (header, claims string, err error) {
	if len(raw) > MaxSize {
		return "", "", fmt.Errorf("it is %d bytes long, and the most is %d", len(raw), MaxSize)
	}
	for i := range len(raw) {
		if c := raw[i]; !base64url(c) && c != '.' {
			return "", "", errors.New("it holds a character that no token has")
		}
	}
	header, rest, _ := strings.Cut(raw, ".")
	claims, signature, _ := strings.Cut(rest, ".")
	if header == "" || claims == "" || signature == "" || strings.Contains(signature, ".") {
		return "", "", errors.New("it does not have three parts")
	}
	return header, claims, nil
}

func base64url(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// decodeObject decodes one base64url part that must be exactly one JSON object in
// UTF-8 in which no object has a name twice. encoding/json takes the last of
// several equal names and matches names in any letter case, other readers differ;
// so names that equal each other or one of known in all but case are refused too.
func decodeObject(part string, known []string) ([]byte, error) {
	text, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, errors.New("it is not base64url")
	}
	if !utf8.Valid(text) {
		return nil, errors.New("it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	first, err := d.Token()
	if err != nil || first != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	if err := walkObject(d, known, 1); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return text, nil
}

// walkObject reads the members of an object whose opening brace was read.
func walkObject(d *json.Decoder, known []string, depth int) error {
	var seen []string
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return errors.New("it is not valid JSON")
		}
		name, ok := t.(string)
		if !ok {
			return errors.New("it is not valid JSON")
		}
		for _, s := range seen {
			if strings.EqualFold(s, name) {
				return fmt.Errorf("the name %q appears twice", clip(name))
			}
		}
		for _, k := range known {
			if k != name && strings.EqualFold(k, name) {
				return fmt.Errorf("the name %q is not written %q", clip(name), k)
			}
		}
		seen = append(seen, name)
		if err := walkValue(d, depth); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return errors.New("it is not valid JSON")
	}
	return nil
}

func walkValue(d *json.Decoder, depth int) error {
	t, err := d.Token()
	if err != nil {
		return errors.New("it is not valid JSON")
	}
	if t != json.Delim('{') && t != json.Delim('[') {
		return nil
	}
	if depth >= maxDepth {
		return errors.New("it is nested too deep")
	}
	if t == json.Delim('{') {
		return walkObject(d, nil, depth+1)
	}
	for d.More() {
		if err := walkValue(d, depth+1); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return errors.New("it is not valid JSON")
	}
	return nil
}
