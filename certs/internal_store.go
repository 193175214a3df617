package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	caKeyFile  = "ca-key.pem"
	caCertFile = "ca.pem"
)

// openAuthority reads the CA in dir, or makes one and reports so. Key and
// certificate are one file that appears as a whole, so that of two processes that
// start at once one makes the CA and the other reads it. A file that is there but
// cannot be read is an error, never a reason to make a new CA.
func openAuthority(dir string, now time.Time) (a *authority, made bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, false, err
	}
	path := filepath.Join(dir, caKeyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeAuthority(path, now); err == nil {
			made = true
		} else if !errors.Is(err, fs.ErrExist) {
			return nil, false, err
		}
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, false, err
	}
	a, err = parseAuthority(text, now)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", path, err)
	}
	a.certPath = filepath.Join(dir, caCertFile)
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	if have, err := os.ReadFile(a.certPath); err != nil || !bytes.Equal(have, public) {
		if err := replaceFile(a.certPath, public, 0o644); err != nil {
			return nil, false, err
		}
	}
	return a, made, nil
}

// makeAuthority writes a new CA to path; fs.ErrExist means that there is one.
func makeAuthority(path string, now time.Time) error {
	key, der, err := newAuthority(now)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	temporary, err := writeTemporary(filepath.Dir(path), text, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(temporary)
	// Unlike a rename, a link does not replace what another process has made.
	return os.Link(temporary, path)
}

func parseAuthority(text []byte, now time.Time) (*authority, error) {
	a := new(authority)
	for rest := text; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		switch block.Type {
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			ecKey, ok := key.(*ecdsa.PrivateKey)
			if !ok {
				return nil, fmt.Errorf("want an ECDSA key, got %T", key)
			}
			a.key = ecKey
		case "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, err
			}
			a.cert = cert
		}
	}
	switch {
	case a.key == nil || a.cert == nil:
		return nil, errors.New("want a private key and a certificate")
	case !a.key.PublicKey.Equal(a.cert.PublicKey):
		return nil, errors.New("key and certificate do not belong together")
	case !a.cert.IsCA:
		return nil, errors.New("the certificate is not that of a CA")
	case now.After(a.cert.NotAfter):
		return nil, fmt.Errorf("the CA expired on %s; move the file away to have a new one made", a.cert.NotAfter.Format(time.DateOnly))
	}
	return a, nil
}

// replaceFile puts a whole new content in the place of path.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	temporary, err := writeTemporary(filepath.Dir(path), content, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		os.Remove(temporary)
		return err
	}
	return nil
}

func writeTemporary(dir string, content []byte, mode fs.FileMode) (path string, err error) {
	f, err := os.CreateTemp(dir, ".ca-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}
