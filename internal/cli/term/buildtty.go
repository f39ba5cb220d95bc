package term

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// Escape sequences (ECMA-48).
const (
	escUp        = "\x1b[%dA"
	escClearLine = "\x1b[K"
	escClearDown = "\x1b[J"
	escHide      = "\x1b[?25l"
	escShow      = "\x1b[?25h"
	escBlue      = "\x1b[34m"
	escRed       = "\x1b[31m"
	escYellow    = "\x1b[33m"
	escFaint     = "\x1b[2m"
	escReset     = "\x1b[0m"
)

// logLines is how many lines of output a running step shows.
const logLines = 6

// ttyView draws the list of steps in place.
type ttyView struct {
	out   *Out
	drawn int // lines on the screen
	dirty bool
}

func (v *ttyView) changed(p *BuildPrinter, s *step) {
	s.log.take() // the tail is enough
	v.dirty = true
}

// tick draws; running times change even where nothing happens.
func (v *ttyView) tick(p *BuildPrinter) {
	if v.dirty || v.drawn > 0 {
		v.draw(p, false)
	}
}

func (v *ttyView) close(p *BuildPrinter, failed bool) {
	v.draw(p, true)
	if failed {
		_, _ = io.WriteString(v.out, p.failures())
	}
}

func (v *ttyView) pause(p *BuildPrinter) {
	v.draw(p, false)
	v.drawn = 0 // the next list goes below what is printed meanwhile
}

// draw puts the list over the one drawn before. The last one is whole, also
// where it is longer than the screen.
func (v *ttyView) draw(p *BuildPrinter, last bool) {
	v.dirty = false
	width, height := v.out.Size()
	finished, total := p.counts()
	state := ""
	if last && total > 0 && finished == total {
		state = " FINISHED"
	}
	rows := p.rows(width, height)
	if !last {
		rows = fit(rows, height-2)
	}
	var b strings.Builder
	b.WriteString(escHide)
	if v.drawn > 0 {
		fmt.Fprintf(&b, escUp, v.drawn)
	}
	b.WriteString("\r" + cut(fmt.Sprintf("[+] Building %.1fs (%d/%d)%s", time.Since(p.begin).Seconds(), finished, total, state), width) + escClearLine + "\n")
	for _, r := range rows {
		b.WriteString(r.text + escClearLine + "\n")
	}
	b.WriteString(escClearDown + escShow)
	v.drawn = len(rows) + 1
	// A closed stderr must not stop a build.
	_, _ = io.WriteString(v.out, b.String())
}

// row is one line of the list.
type row struct {
	text string
	done bool
}

// rows lists the steps, their statuses and the output of those that run.
func (p *BuildPrinter) rows(width, height int) []row {
	var rows []row
	color := os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	for _, s := range p.steps {
		name, paint := strings.ReplaceAll(s.Name, "\t", " "), ""
		if s.finished() {
			paint = escBlue
		}
		switch {
		case s.canceled():
			name, paint = "CANCELED "+name, escYellow
		case s.Error != "":
			name, paint = "ERROR "+name, escRed
		case s.Cached:
			name = "CACHED " + name
		}
		if !color {
			paint = ""
		}
		rows = append(rows, row{line(" => "+name, "", s.elapsed(), width, paint), s.finished()})
		for _, st := range s.statuses {
			d, paint := time.Since(st.Started), ""
			if st.Completed != nil {
				d = st.Completed.Sub(st.Started)
				if color {
					paint = escBlue
				}
			}
			rows = append(rows, row{line(" => => "+st.ID, amount(&st.Status), d, width, paint), st.Completed != nil || s.finished()})
		}
		if s.finished() {
			continue
		}
		tail := s.log.tail()
		for _, l := range tail[max(0, len(tail)-min(logLines, height/3)):] {
			text := cut(" => => # "+printable(l), width)
			if color {
				text = escFaint + text + escReset
			}
			rows = append(rows, row{text, false})
		}
	}
	return rows
}

// line is " => NAME AMOUNT            1.2s", cut to the width.
func line(name, amount string, d time.Duration, width int, paint string) string {
	if d < 50*time.Millisecond {
		d = 0
	}
	timer := fmt.Sprintf("%.1fs", d.Seconds())
	left := width - len(timer) - 1
	if amount != "" && left-len(amount) > 20 {
		name = cut(name, left-len(amount)-2) + " " + amount
	}
	name = cut(name, left-1)
	text := name + strings.Repeat(" ", max(1, left-utf8.RuneCountInString(name))) + timer
	if paint != "" {
		return paint + text + escReset
	}
	return text
}

// fit leaves n rows: the last ones, but rather finished rows go than running.
func fit(rows []row, n int) []row {
	for over := len(rows) - max(1, n); over > 0; over-- {
		drop := 0
		for i := range rows {
			if rows[i].done {
				drop = i
				break
			}
		}
		rows = append(rows[:drop:drop], rows[drop+1:]...)
	}
	return rows
}

// cut cuts s to width characters.
func cut(s string, width int) string {
	width = max(0, width)
	if len(s) <= width {
		return s
	}
	n := 0
	for i := range s {
		if n == width {
			return s[:i]
		}
		n++
	}
	return s
}

// printable takes out of a program's output what would move the cursor: escape
// sequences and control characters. Of a line drawn over with carriage returns
// the last drawing is left.
func printable(s string) string {
	s = strings.TrimRight(s, "\r")
	if i := strings.LastIndexByte(s, '\r'); i >= 0 {
		s = s[i+1:]
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] == 0x1b {
			i += escapeLength(s[i:])
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		switch {
		case r == '\t':
			b.WriteByte(' ')
		case r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f):
			b.WriteRune(r)
		}
	}
	return b.String()
}

// escapeLength is the length of the escape sequence that s begins with: CSI
// (ESC [ … letter), OSC (ESC ] … BEL or ESC \), else ESC and one byte.
func escapeLength(s string) int {
	if len(s) < 2 {
		return len(s)
	}
	switch s[1] {
	case '[':
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
		}
		return len(s)
	case ']':
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b {
				return min(i+2, len(s))
			}
		}
		return len(s)
	}
	return 2
}
