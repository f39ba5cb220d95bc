package term

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// What is busy shows itself, and makes way for the first thing that is printed.
func TestBusy(t *testing.T) {
	t.Setenv("TERM", "xterm")
	s := newScreen(t)
	out := NewOut(s.slave)
	b := NewBusy(Streams{Out: out, Err: NewOut(s.slave)}, "image diff")
	b.Add(12_300_000)
	for range 1000 {
		if strings.Contains(s.text(), "\r[+] image diff 12.3MB 1.") {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Fprintln(out, "done")
	for range 1000 {
		if strings.HasSuffix(s.text(), "s\x1b[K\r\x1b[Kdone\r\n") {
			b.Stop() // is nothing any more
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the terminal shows %q", s.text())
}

func TestBusyElsewhere(t *testing.T) {
	t.Setenv("TERM", "dumb")
	s := newScreen(t)
	b := NewBusy(Streams{Out: NewOut(s.slave), Err: NewOut(s.slave)}, "x")
	if b.Start(); b.stop != nil {
		t.Error("a terminal that cannot move its cursor is drawn on")
	}
	new(Busy).Stop()
	new(Busy).Start()
}
