package term

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// screen is what somebody at a pseudo-terminal sees.
type screen struct {
	master, slave *os.File
	mu            sync.Mutex
	seen          bytes.Buffer
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{master: master, slave: slave}
	t.Cleanup(func() { slave.Close(); master.Close() })
	go func() {
		_, _ = io.Copy(s, master)
	}()
	return s
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.Write(p)
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.String()
}

func (s *screen) wait(t *testing.T, text string) {
	t.Helper()
	for range 1000 {
		if s.text() == text {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the terminal shows %q, not %q", s.text(), text)
}

// whenShown types text when the prompt has been written, before anything else
// can happen.
type whenShown struct {
	s    *screen
	text string
}

func (w whenShown) Write(p []byte) (int, error) {
	n, err := w.s.slave.Write(p)
	if w.text != "" && bytes.HasSuffix(p, []byte(": ")) {
		_, err = w.s.master.WriteString(w.text)
	}
	return n, err
}

func TestAsk(t *testing.T) {
	s := newScreen(t)
	in := NewIn(s.slave)
	got, err := Ask(t.Context(), in, whenShown{s, "ann\n"}, "Name: ")
	if err != nil || got != "ann" {
		t.Fatalf("%q, %v", got, err)
	}
	if got, err = AskSecret(t.Context(), in, whenShown{s, "hush\n"}, "Secret: "); err != nil || got != "hush" {
		t.Fatalf("%q, %v", got, err)
	}
	if got, err = Ask(t.Context(), in, whenShown{s, "again\n"}, "Name: "); err != nil || got != "again" {
		t.Fatalf("%q, %v", got, err)
	}
	s.wait(t, "Name: ann\r\nSecret: \r\nName: again\r\n")
}

// A question that nobody answers ends with its context, and the terminal shows
// again what is typed.
func TestAskEnds(t *testing.T) {
	s := newScreen(t)
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
	if _, err := AskSecret(ctx, NewIn(s.slave), s.slave, "Secret: "); !errors.Is(err, why) {
		t.Fatalf("%v", err)
	}
	if now, err := unix.IoctlGetTermios(int(s.slave.Fd()), unix.TCGETS); err != nil || now.Lflag&unix.ECHO == 0 {
		t.Errorf("the terminal is left without echo: %v", err)
	}
	s.wait(t, "Secret: \r\n")
	fmt.Fprintln(s.master) // lets the reader end
}
