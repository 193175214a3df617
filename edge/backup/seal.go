package backup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
)

// sealedPrefix is how files of age's format begin.
const sealedPrefix = "age-encryption.org/v1\n"

// MinPassphrase is the least length of a passphrase, in bytes.
const MinPassphrase = 12

// Errors of Open.
var (
	ErrSealed     = errors.New("the backup is encrypted: its passphrase is needed")
	ErrPassphrase = errors.New("the passphrase does not open the backup")
)

// Seal returns a writer that encrypts with a passphrase into w. Close ends the
// encryption and does not close w.
func Seal(w io.Writer, passphrase string) (io.WriteCloser, error) {
	return seal(w, passphrase, sealWork)
}

// sealWork is the logarithm of scrypt's cost: about a second.
const sealWork = 18

func seal(w io.Writer, passphrase string, work int) (io.WriteCloser, error) {
	if len(passphrase) < MinPassphrase {
		return nil, fmt.Errorf("the passphrase has %d bytes, and %d are the least", len(passphrase), MinPassphrase)
	}
	to, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, err
	}
	to.SetWorkFactor(work)
	return age.Encrypt(w, to)
}

// Open parses a backup, encrypted or not. The passphrase is asked for only if it is
// needed; ErrSealed says that it was empty then.
func Open(r io.Reader, passphrase string) (*Archive, error) {
	in := bufio.NewReader(r)
	start, err := in.Peek(len(sealedPrefix))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if !bytes.Equal(start, []byte(sealedPrefix)) {
		return Parse(in)
	}
	if passphrase == "" {
		return nil, ErrSealed
	}
	with, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, err
	}
	plain, err := age.Decrypt(in, with)
	var no *age.NoIdentityMatchError
	switch {
	case errors.As(err, &no):
		return nil, ErrPassphrase
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrNotBackup, err)
	}
	a, err := Parse(plain)
	if err != nil && !errors.Is(err, ErrNotBackup) { // what age finds wrong with the text
		err = fmt.Errorf("%w: it was damaged or altered: %w", ErrNotBackup, err)
	}
	return a, err
}
