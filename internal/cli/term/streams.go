// Package term is the terminal's side of the command line: streams that know
// whether they are a terminal and how wide it is, tables and templates as
// docker prints them, the progress of transfers and of builds.
//
// Invariants: nothing but this package writes escape sequences, and it writes
// them to terminals only; every writer here may be used from several
// goroutines, and what two of them print never mixes within a line.
package term

import (
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/term"
)

// Streams are the three streams of a process.
type Streams struct {
	In  *In
	Out *Out
	Err *Out
}

// OS returns the process's own streams.
func OS() Streams {
	return Streams{In: NewIn(os.Stdin), Out: NewOut(os.Stdout), Err: NewOut(os.Stderr)}
}

// In is an input that may be a terminal.
type In struct {
	io.Reader
	file *os.File
	tty  bool
}

// NewIn wraps r; only an *os.File can be a terminal.
func NewIn(r io.Reader) *In {
	f, _ := r.(*os.File)
	return &In{Reader: r, file: f, tty: f != nil && term.IsTerminal(int(f.Fd()))}
}

// IsTerminal tells whether somebody types here.
func (i *In) IsTerminal() bool { return i.tty }

// File is the file behind the stream, or nil.
func (i *In) File() *os.File { return i.file }

// Out is an output that may be a terminal.
type Out struct {
	io.Writer
	file *os.File
	tty  bool
	busy atomic.Pointer[Busy]
}

// Write writes p where a line of Busy may have been.
func (o *Out) Write(p []byte) (int, error) {
	if b := o.busy.Load(); b != nil {
		b.Stop()
	}
	return o.Writer.Write(p)
}

// NewOut wraps w; only an *os.File can be a terminal.
func NewOut(w io.Writer) *Out {
	f, _ := w.(*os.File)
	return &Out{Writer: w, file: f, tty: f != nil && term.IsTerminal(int(f.Fd()))}
}

// IsTerminal tells whether somebody looks at it.
func (o *Out) IsTerminal() bool { return o.tty }

// Draws tells whether lines may be drawn anew in place: on a terminal that can
// move its cursor. TERM=dumb cannot.
func (o *Out) Draws() bool { return o.tty && os.Getenv("TERM") != "dumb" }

// Colors tells whether words may be coloured.
func (o *Out) Colors() bool { return o.Draws() && os.Getenv("NO_COLOR") == "" }

// File is the file behind the stream, or nil.
func (o *Out) File() *os.File { return o.file }

// Size returns the terminal's columns and rows; 80 and 24 where it has none.
// It is asked each time: windows change.
func (o *Out) Size() (columns, rows int) {
	if o.tty {
		if w, h, err := term.GetSize(int(o.file.Fd())); err == nil && w > 0 && h > 0 {
			return w, h
		}
	}
	return 80, 24
}
