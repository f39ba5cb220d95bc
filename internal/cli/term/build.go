package term

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/oci"
)

// BuildPrinter prints a build's events, in one of BuildKit's forms:
//
//	plain  lines that only grow: "#5 [2/4] RUN make", "#5 0.123 cc -c x.c",
//	       "#5 DONE 1.2s". One step's lines stay together: another step's wait
//	       until it ends or has had its turn.
//	tty    the list of steps, drawn anew in place, with the running time and the
//	       last lines of output of those that run
//	quiet  nothing
//	rawjson  every event as a line of JSON
type BuildPrinter struct {
	// Program is what the user called, and Expand whether the summary of the
	// Dockerfile's checks says all there is to know of each. Set them before the
	// first event.
	Program string
	Expand  bool

	mu     sync.Mutex
	view   buildView
	out    *Out
	warned []*build.Warning
	byID   map[oci.Digest]*step
	steps  []*step // in the order in which they started
	begin  time.Time
	stop   chan struct{}
	ticker sync.WaitGroup
}

// buildView shows a build; BuildPrinter calls it with its lock held.
type buildView interface {
	// changed is called after each event that changed s.
	changed(p *BuildPrinter, s *step)
	// tick is called a few times in a second.
	tick(p *BuildPrinter)
	close(p *BuildPrinter, failed bool)
	// pause prints what is pending and leaves the screen to somebody else.
	pause(p *BuildPrinter)
}

// step is what is known of one vertex.
type step struct {
	build.Vertex
	statuses []*stepStatus
	warnings []string
	log      lineLog
	plain    plainState
}

type stepStatus struct {
	build.Status
	since   time.Time // of the first report
	at      time.Time // of the last change
	printed bool
	shown   build.Status // as last printed
	shownAt time.Time
}

func (s *step) started() bool  { return s.Started != nil }
func (s *step) finished() bool { return s.Completed != nil }
func (s *step) canceled() bool { return strings.HasSuffix(s.Error, "context canceled") }

// elapsed is how long s ran or has been running.
func (s *step) elapsed() time.Duration {
	switch {
	case s.Started == nil:
		return 0
	case s.Completed == nil:
		return time.Since(*s.Started)
	}
	return s.Completed.Sub(*s.Started)
}

// NewBuildPrinter prints to out, which is stderr. The mode auto, or "", is tty
// on a terminal and plain elsewhere; a mode that is none of them is refused in
// BuildKit's words.
func NewBuildPrinter(mode string, out *Out) (*BuildPrinter, error) {
	p := &BuildPrinter{out: out, byID: map[oci.Digest]*step{}, begin: time.Now(), stop: make(chan struct{})}
	switch {
	case mode == "quiet":
		p.view = quietView{}
		return p, nil
	case mode == "rawjson":
		p.view = &rawView{out: out}
	case mode == "plain", (mode == "auto" || mode == "") && !out.Draws():
		p.view = &plainView{out: out}
	case mode == "auto", mode == "", mode == "tty":
		if !out.IsTerminal() {
			return nil, fmt.Errorf("--progress=tty needs a terminal on stderr; --progress=plain does not")
		}
		p.view = &ttyView{out: out}
	default:
		return nil, fmt.Errorf("invalid progress mode %s", mode)
	}
	p.ticker.Add(1)
	go p.tick()
	return p, nil
}

func (p *BuildPrinter) tick() {
	defer p.ticker.Done()
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.mu.Lock()
			p.view.tick(p)
			p.mu.Unlock()
		case <-p.stop:
			return
		}
	}
}

// Event prints e, now or as soon as its turn comes. It may be called from
// several goroutines.
func (p *BuildPrinter) Event(e build.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if raw, ok := p.view.(*rawView); ok {
		raw.event(e)
		return
	}
	switch {
	case e.Vertex != nil:
		p.vertex(e.Vertex)
	case e.Status != nil:
		if s := p.byID[e.Status.Vertex]; s != nil {
			s.status(e.Status)
			p.view.changed(p, s)
		}
	case e.Log != nil:
		if s := p.byID[e.Log.Vertex]; s != nil {
			s.write(e.Log)
			p.view.changed(p, s)
		}
	case e.Warning != nil:
		if !p.warn(e.Warning) {
			return
		}
		if s := p.byID[e.Warning.Vertex]; s != nil {
			s.warnings = append(s.warnings, e.Warning.Short)
			p.view.changed(p, s)
		}
	}
}

func (p *BuildPrinter) vertex(v *build.Vertex) {
	s := p.byID[v.Digest]
	if s == nil {
		s = &step{}
		p.byID[v.Digest] = s
	}
	before := s.started()
	s.Vertex = *v
	if s.started() && !before {
		p.steps = append(p.steps, s)
	}
	if s.finished() {
		s.log.end()
	}
	if s.started() {
		p.view.changed(p, s)
	}
}

func (s *step) status(e *build.Status) {
	for _, have := range s.statuses {
		if have.ID == e.ID {
			have.Status, have.at = *e, time.Now()
			return
		}
	}
	now := time.Now()
	s.statuses = append(s.statuses, &stepStatus{Status: *e, since: now, at: now})
}

// write adds output, each line with its time since the step began, as precise
// as fits five characters.
func (s *step) write(e *build.Log) {
	var seconds float64
	if s.Started != nil {
		seconds = max(0, e.At.Sub(*s.Started).Seconds())
	}
	precision := 1
	switch {
	case seconds < 10:
		precision = 3
	case seconds < 100:
		precision = 2
	}
	s.log.write(e.Data, fmt.Sprintf("%.*f ", precision, seconds))
}

// Close ends the printing. err is the build's result: of a failed one the last
// output of what failed is printed again, where people look for it.
func (p *BuildPrinter) Close(err error) {
	close(p.stop)
	p.ticker.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.view.close(p, err != nil)
	p.summary()
}

// Pause keeps the printer from the terminal until resume is called; who has
// something to print waits.
func (p *BuildPrinter) Pause() (resume func()) {
	p.mu.Lock()
	p.view.pause(p)
	return p.mu.Unlock
}

// counts tells how many steps there are and how many of them have ended.
func (p *BuildPrinter) counts() (finished, total int) {
	for _, s := range p.byID {
		if s.finished() {
			finished++
		}
	}
	return finished, len(p.byID)
}

// failures is the last output of each step that failed, as BuildKit prints it
// below everything else.
func (p *BuildPrinter) failures() string {
	var b strings.Builder
	for _, s := range p.steps {
		if s.Error == "" || s.canceled() {
			continue
		}
		fmt.Fprintf(&b, "------\n > %s:\n", s.Name)
		for _, l := range s.log.tail() {
			b.WriteString(l + "\n")
		}
		b.WriteString("------\n")
	}
	return b.String()
}

// amount is a status's bytes: "1.05MB / 3.37MB", "80B", or "".
func amount(s *build.Status) string {
	switch {
	case s.Total != 0:
		return bytesText(s.Current) + " / " + bytesText(s.Total)
	case s.Current != 0:
		return bytesText(s.Current)
	}
	return ""
}

// bytesText is n as BuildKit prints it: "80B", "1.23kB".
func bytesText(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	f, unit := float64(n), 0
	for f >= 999.995 && unit < 6 {
		f /= 1000
		unit++
	}
	return fmt.Sprintf("%.2f%cB", f, " kMGTPE"[unit])
}

type quietView struct{}

func (quietView) changed(*BuildPrinter, *step) {}
func (quietView) tick(*BuildPrinter)           {}
func (quietView) close(*BuildPrinter, bool)    {}
func (quietView) pause(*BuildPrinter)          {}

// lineLog collects output by lines and remembers the last of them.
type lineLog struct {
	lines   []string // not taken yet
	last    []string // the last few, for failures and the tty
	partial []byte   // a line without its end
	mark    string   // of the partial line
}

// Bounds of what is kept: a step may print for hours, or never end a line.
const (
	lastLines  = 10
	longestRow = 64 << 10
)

func (l *lineLog) write(data []byte, mark string) {
	for len(data) > 0 {
		if len(l.partial) == 0 {
			l.mark = mark
		}
		line, rest, whole := data, []byte(nil), false
		for i, c := range data {
			if c == '\n' {
				line, rest, whole = data[:i], data[i+1:], true
				break
			}
		}
		l.partial = append(l.partial, line...)
		data = rest
		if whole || len(l.partial) > longestRow {
			l.flush()
		}
	}
}

func (l *lineLog) flush() {
	line := l.mark + string(l.partial)
	l.partial = l.partial[:0]
	l.lines = append(l.lines, line)
	l.last = append(l.last, line)
	if len(l.last) > lastLines {
		l.last = l.last[1:]
	}
}

// end ends a line that has no end.
func (l *lineLog) end() {
	if len(l.partial) > 0 {
		l.flush()
	}
}

// take returns the lines that were not taken before.
func (l *lineLog) take() []string {
	lines := l.lines
	l.lines = nil
	return lines
}

func (l *lineLog) tail() []string { return l.last }
