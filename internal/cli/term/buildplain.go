package term

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// A step's turn: how long others wait for a step that prints on and on, and
// how often a transfer is worth a line.
const (
	turn          = time.Second
	statusEvery   = 5 * time.Second
	statusPercent = 5
	// A status that is done so soon is worth one line, not two.
	statusHold = 100 * time.Millisecond
	// A Dockerfile that was read waits so long for what its checks find, which
	// people look for there and not below other steps.
	warnHold = 100 * time.Millisecond
)

// plainView prints lines that only grow.
type plainView struct {
	out     *Out
	current *step // whose lines are being printed
	index   int   // the last number given
	printed bool  // something was: a blank line goes between steps
	waiting []*step
	since   time.Time // when the first of those began to wait
	buf     strings.Builder
	closing bool
}

// plainState is what the view keeps with a step.
type plainState struct {
	index    int
	ended    bool // its last line is printed
	warnings int  // printed so far
}

func (v *plainView) changed(_ *BuildPrinter, s *step) {
	if s.plain.ended && len(s.log.lines) == 0 && s.plain.warnings == len(s.warnings) {
		return
	}
	if v.current != nil && v.current != s {
		if !slices.Contains(v.waiting, s) {
			if len(v.waiting) == 0 {
				v.since = time.Now()
			}
			v.waiting = append(v.waiting, s)
		}
		return
	}
	v.print(s)
	v.next()
	v.flush()
}

// tick prints what was held back and gives the waiting steps their turn.
func (v *plainView) tick(*BuildPrinter) {
	if v.current != nil {
		v.print(v.current)
		v.next()
	}
	if v.current != nil && len(v.waiting) > 0 && time.Since(v.since) >= turn {
		v.leave()
		v.next()
	}
	v.flush()
}

func (v *plainView) close(p *BuildPrinter, failed bool) {
	v.closing = true
	for _, s := range append([]*step{v.current}, v.waiting...) {
		if s != nil {
			v.print(s)
		}
	}
	if failed {
		v.buf.WriteString(p.failures())
	}
	v.flush()
}

func (v *plainView) pause(p *BuildPrinter) {
	for _, s := range append([]*step{v.current}, v.waiting...) {
		if s != nil {
			v.print(s)
		}
	}
	v.flush()
}

// next prints those who waited while nobody is being printed: the finished
// ones first, then the one that has waited longest becomes the current one.
func (v *plainView) next() {
	if v.current != nil {
		return
	}
	waiting := v.waiting
	v.waiting = nil
	var open []*step
	for _, s := range waiting {
		if s.finished() {
			v.print(s)
		} else {
			open = append(open, s)
		}
	}
	if len(open) > 0 {
		v.print(open[0])
		v.waiting, v.since = open[1:], time.Now()
	}
}

// held tells whether s is done but may be about to get warnings.
func (v *plainView) held(s *step) bool {
	return !v.closing && strings.HasPrefix(s.Name, "[internal] load build definition from ") &&
		s.Error == "" && time.Since(*s.Completed) < warnHold
}

// leave turns from the current step to others.
func (v *plainView) leave() {
	fmt.Fprintf(&v.buf, "#%d ...\n", v.current.plain.index)
	v.current = nil
}

// print prints what is new of s and makes it the current one until it ends.
func (v *plainView) print(s *step) {
	if s.plain.index == 0 {
		v.index++
		s.plain.index = v.index
	}
	if v.current != s {
		if v.current != nil {
			v.leave()
		}
		if v.printed {
			v.buf.WriteByte('\n')
		}
		v.printed = true
		v.current = s
		v.line(s, s.Name)
	}
	for _, st := range s.statuses {
		if text, ok := st.plainLine(); ok {
			v.line(s, text)
		}
	}
	for _, w := range s.warnings[s.plain.warnings:] {
		v.line(s, "WARN: "+w)
		s.plain.ended = false // as in BuildKit it ends once more
	}
	s.plain.warnings = len(s.warnings)
	for _, l := range s.log.take() {
		v.line(s, l)
	}
	if !s.finished() || v.held(s) {
		return
	}
	v.current = nil
	if s.plain.ended {
		return
	}
	s.plain.ended = true
	switch {
	case s.canceled():
		v.line(s, "CANCELED")
	case s.Error != "":
		v.line(s, "ERROR: "+s.Error)
	case s.Cached:
		v.line(s, "CACHED")
	default:
		v.line(s, fmt.Sprintf("DONE %.1fs", s.elapsed().Seconds()))
	}
}

func (v *plainView) line(s *step, text string) {
	fmt.Fprintf(&v.buf, "#%d %s\n", s.plain.index, text)
}

func (v *plainView) flush() {
	if v.buf.Len() > 0 {
		// A closed stderr must not stop a build.
		_, _ = io.WriteString(v.out, v.buf.String())
		v.buf.Reset()
	}
}

// plainLine is a status as a line, if it has changed enough to be worth one.
func (st *stepStatus) plainLine() (string, bool) {
	if !st.printed && st.Completed == nil && time.Since(st.since) < statusHold {
		return "", false
	}
	if st.printed {
		switch {
		case st.shown.Completed != nil:
			return "", false
		case st.Completed != nil:
		case st.Total > 0 && (st.Current-st.shown.Current)*100/st.Total >= statusPercent:
		case st.at.Sub(st.shownAt) >= statusEvery:
		default:
			return "", false
		}
	}
	st.printed, st.shown, st.shownAt = true, st.Status, st.at
	text := st.ID
	if a := amount(&st.Status); a != "" {
		text += " " + a
	}
	end := st.at
	if st.Completed != nil {
		end = *st.Completed
	}
	if d := end.Sub(st.Started).Seconds(); !st.Started.IsZero() && d > 0.01 {
		text += fmt.Sprintf(" %.1fs", d)
	}
	if st.Completed != nil {
		text += " done"
	}
	return text, true
}
