package term

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Ask prints prompt to out and reads a line from the terminal in. It ends with
// ctx, though a read of a terminal does not.
func Ask(ctx context.Context, in *In, out io.Writer, prompt string) (string, error) {
	fmt.Fprint(out, prompt)
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := readLine(in.file)
		got <- answer{line, err}
	}()
	select {
	case a := <-got:
		return a.line, a.err
	case <-ctx.Done():
		fmt.Fprintln(out)
		return "", context.Cause(ctx)
	}
}

// AskSecret is Ask for what nobody may see: the terminal stops showing what is
// typed before the prompt appears, so that not even what is typed ahead shows.
func AskSecret(ctx context.Context, in *In, out io.Writer, prompt string) (string, error) {
	fd := int(in.file.Fd())
	usual, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", os.NewSyscallError("read the terminal's settings", err)
	}
	hidden := *usual
	hidden.Lflag &^= unix.ECHO
	hidden.Lflag |= unix.ICANON | unix.ISIG
	hidden.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return "", os.NewSyscallError("hide what is typed", err)
	}
	line, err := Ask(ctx, in, out, prompt)
	if err == nil {
		fmt.Fprintln(out) // the one that was typed did not show
	}
	if rerr := unix.IoctlSetTermios(fd, unix.TCSETS, usual); rerr != nil && err == nil {
		err = os.NewSyscallError("restore the terminal", rerr)
	}
	return line, err
}

// readLine takes no byte after the line: the next question reads on there.
func readLine(f *os.File) (string, error) {
	var line strings.Builder
	b := make([]byte, 1)
	for {
		n, err := f.Read(b)
		switch {
		case n == 1 && b[0] == '\n':
			return line.String(), nil
		case n == 1 && b[0] != '\r':
			line.WriteByte(b[0])
		case err == io.EOF:
			return line.String(), nil
		case err != nil:
			return "", err
		}
	}
}
