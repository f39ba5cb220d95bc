package oci

import (
	"errors"
	"fmt"
	"syscall"
)

// The kinds of error. Wrap them with %w and say what was being done to what;
// errors.Is finds them across rooms and across the wire. They are translated
// in three places only: exit codes (cli), HTTP status (serve) and the wire
// codes of the distribution specification (content/remote, serve/registry).
var (
	ErrNotFound     = errors.New("not found")
	ErrExists       = errors.New("already exists")
	ErrInvalid      = errors.New("invalid")
	ErrCorrupt      = errors.New("corrupt")       // bytes do not match their digest or size
	ErrUnsupported  = errors.New("not supported") // well-formed, but strake refuses it
	ErrUnauthorized = errors.New("unauthorized")  // credentials are missing or wrong
	ErrDenied       = errors.New("denied")        // credentials are right and not enough
	ErrConflict     = errors.New("conflict")      // somebody else uses it
	ErrTooMany      = errors.New("too many requests")
	ErrNoSpace      = errors.New("no space left on device")
)

// NoSpace gives the error of a full disk, or quota, its kind: ErrNoSpace.
func NoSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", err, ErrNoSpace)
	}
	return err
}

// DigestError says that content did not hash to what named it.
// errors.Is(err, ErrCorrupt) is true of it.
type DigestError struct {
	Want, Got Digest
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("content digest mismatch: expected %s, got %s", e.Want, e.Got)
}

// Is makes a DigestError an ErrCorrupt.
func (e *DigestError) Is(target error) bool { return target == ErrCorrupt }

// SizeError says that content was shorter or longer than its descriptor.
// Got is -1 where reading stopped because there was more than Want.
// errors.Is(err, ErrCorrupt) is true of it.
type SizeError struct {
	Digest    Digest
	Want, Got int64
}

func (e *SizeError) Error() string {
	if e.Got < 0 {
		return fmt.Sprintf("%s is longer than its %d bytes", e.Digest, e.Want)
	}
	return fmt.Sprintf("%s ended after %d of %d bytes", e.Digest, e.Got, e.Want)
}

// Is makes a SizeError an ErrCorrupt.
func (e *SizeError) Is(target error) bool { return target == ErrCorrupt }

// Unsaid is an error's kind that its sentence says in other words: wrapped, it
// adds nothing to the text.
func Unsaid(kind error) error { return unsaid{kind} }

type unsaid struct{ error }

func (unsaid) Error() string   { return "" }
func (u unsaid) Unwrap() error { return u.error }
