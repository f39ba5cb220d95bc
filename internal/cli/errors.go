package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/oci"
)

// Failure is how a command says what went wrong and with which exit code.
//
// Where docker splits the work between a client and a daemon, people know
// whose words they read: the daemon's begin with "Error response from
// daemon: ", which strake shortens to "Error: " because it has none. A plain
// error returned from a command is printed as it is, as the client's own, and
// ends with exit code 1.
type Failure struct {
	Err    error // nil prints nothing: only the exit code counts
	Daemon bool  // docker's daemon would have said it
	Code   int   // exit code; 0 means 1
	// Command, of run and its like ("run"), prints docker's form "docker: TEXT",
	// a blank line and the pointer to the command's help.
	Command string
}

func (f *Failure) Error() string {
	if f.Err == nil {
		return fmt.Sprintf("exit code %d", f.Code)
	}
	return f.Err.Error()
}

func (f *Failure) Unwrap() error { return f.Err }

// daemon marks err as what docker's daemon would have said. An error that is a
// Failure already stays what it is.
func daemon(err error) error {
	if err == nil {
		return nil
	}
	var f *Failure
	if errors.As(err, &f) {
		return err
	}
	return &Failure{Err: err, Daemon: true}
}

// daemonf is daemon of a new error.
func daemonf(format string, args ...any) error {
	return &Failure{Err: fmt.Errorf(format, args...), Daemon: true}
}

// exit ends the process with code and says nothing.
func exit(code int) error { return &Failure{Code: code} }

// usageError is a wrong flag: docker's exit code for it is 125.
func usageError(cmd *cobra.Command, err error) error {
	return &Failure{Code: 125, Err: fmt.Errorf("%w\n\nUsage:  %s\n\nRun '%s --help' for more information",
		err, cmd.UseLine(), cmd.CommandPath())}
}

// isNotFound tells whether err says that something is not there.
func isNotFound(err error) bool { return errors.Is(err, oci.ErrNotFound) }

// Signal is the cause of a context that a signal cancelled.
type Signal struct{ Signal os.Signal }

func (s Signal) Error() string { return s.Signal.String() }

// Is makes a Signal a cancellation: work that ends returns its context's cause.
func (s Signal) Is(target error) bool { return target == context.Canceled }

// report prints err as name ("strake" or "docker") prints it and returns the
// exit code.
func (a *App) report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	var sig Signal
	if errors.As(context.Cause(ctx), &sig) && errors.Is(err, context.Canceled) {
		if s, ok := sig.Signal.(syscall.Signal); ok {
			return 128 + int(s)
		}
		return 1
	}
	return a.print(a.damageSaid(err))
}

// damageSaid names the store's damage where err is of bytes that are not what
// they were: the store's own copy is looked at, so a registry that lies is not
// taken for it.
func (a *App) damageSaid(err error) error {
	if a.store == nil || !errors.Is(err, oci.ErrCorrupt) {
		return err
	}
	var d oci.Digest
	var digest *oci.DigestError
	var size *oci.SizeError
	switch {
	case errors.As(err, &digest):
		d = digest.Want
	case errors.As(err, &size):
		d = size.Digest
	}
	if !a.store.IsDamaged(d) {
		return err
	}
	return daemonf("%s in the store %s is damaged: run `%s doctor`", d, a.store.Root(), a.name)
}

// print prints err, or each of several that errors.Join joined, on lines of
// their own, and returns the first one's exit code.
func (a *App) print(err error) int {
	if err == nil {
		return 0
	}
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		code := 0
		for _, e := range all.Unwrap() {
			if c := a.print(e); code == 0 {
				code = c
			}
		}
		return code
	}
	f := &Failure{}
	if !errors.As(err, &f) {
		f.Err = err
	}
	if f.Err != nil {
		fmt.Fprintln(a.Err, a.text(f))
	}
	return cmp.Or(f.Code, 1)
}

// text is f as it is printed.
func (a *App) text(f *Failure) string {
	var b strings.Builder
	if f.Command != "" {
		b.WriteString(a.name + ": ")
	}
	if f.Daemon {
		b.WriteString(a.daemonPrefix())
	}
	b.WriteString(plainText(f.Err))
	var missing *noPlatform
	if a.name != "docker" && errors.As(f.Err, &missing) {
		b.WriteString(": here is " + strings.Join(missing.present, ", "))
	}
	if f.Command != "" {
		fmt.Fprintf(&b, "\n\nRun '%s %s --help' for more information", a.name, f.Command)
	}
	return b.String()
}

// daemonPrefix begins what docker's daemon would have said.
func (a *App) daemonPrefix() string {
	if a.name == "docker" {
		return "Error response from daemon: "
	}
	return "Error: "
}

// plainText is err's text without a kind at its end that only programs need:
// "x is no tar: invalid" says nothing that "x is no tar" does not.
func plainText(err error) string {
	text := err.Error()
	for _, kind := range []error{oci.ErrInvalid, oci.ErrConflict} {
		if errors.Is(err, kind) {
			text = strings.TrimSuffix(text, ": "+kind.Error())
		}
	}
	return text
}
