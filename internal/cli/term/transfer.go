package term

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
)

// Direction says in which words transfers are told.
type Direction int

// The directions.
const (
	Pull Direction = iota
	Push
	Load
)

// TransferPrinter prints the events of a content.Copy as docker does: a line
// for each layer, "<12 hex>: Pull complete". On a terminal each layer has one
// line with a bar, drawn anew in place; elsewhere a line is printed for each
// change of state, never for bytes.
type TransferPrinter struct {
	mu     sync.Mutex
	out    *Out
	dir    Direction
	tty    bool
	layers []*transfer
	byID   map[oci.Digest]*transfer
	drawn  int
	last   time.Time
}

type transfer struct {
	id             string
	state          string // "Downloading"
	current, total int64
	begin          time.Time // of the bytes
	offset         int64     // found from an earlier attempt
	done           bool
}

// drawEvery bounds how often the terminal is drawn: no eye follows more.
const drawEvery = 100 * time.Millisecond

// NewTransferPrinter prints to out.
func NewTransferPrinter(out *Out, dir Direction) *TransferPrinter {
	return &TransferPrinter{out: out, dir: dir, tty: out.Draws(), byID: map[oci.Digest]*transfer{}}
}

// Event prints e. It may be called from several goroutines: it is a
// content.CopyOptions.Progress.
func (p *TransferPrinter) Event(e content.Event) {
	if !oci.IsLayer(e.Descriptor.MediaType) && e.Descriptor.MediaType != oci.MediaTypeDockerForeign {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A layer that is packed on the way is known by its diffID before.
	id := e.Descriptor.Digest
	if e.DiffID != "" {
		id = e.DiffID
	}
	t := p.byID[id]
	if t == nil {
		t = &transfer{id: short(id)}
		p.byID[id] = t
		p.layers = append(p.layers, t)
	}
	before := t.state
	t.current, t.total = e.Current, e.Descriptor.Size
	t.state, t.done = p.words(e)
	if t.state == before {
		if p.tty && time.Since(p.last) >= drawEvery {
			p.draw()
		}
		return
	}
	if e.Kind == content.Started || e.Kind == content.Progressed && t.begin.IsZero() {
		t.begin, t.offset = time.Now(), e.Current
	}
	if p.tty {
		p.draw()
	} else if p.worth(e.Kind) {
		fmt.Fprintf(p.out, "%s: %s\n", t.id, t.state)
	}
}

// worth tells whether a change is worth a line where lines only grow.
func (p *TransferPrinter) worth(k content.EventKind) bool {
	switch k {
	case content.Packing, content.Progressed:
		return false
	case content.Started:
		return p.dir != Load
	case content.Exists:
		return p.dir != Load
	}
	return true
}

// words are docker's for the state that e tells of.
func (p *TransferPrinter) words(e content.Event) (state string, done bool) {
	pulling := []string{"Already exists", "Mounted from ", "Waiting", "Pulling fs layer", "Downloading", "Pull complete"}
	pushing := []string{"Layer already exists", "Mounted from ", "Compressing", "Preparing", "Pushing", "Pushed"}
	loading := []string{"Already exists", "Mounted from ", "Waiting", "Waiting", "Loading layer", "Loading layer"}
	w := [][]string{pulling, pushing, loading}[p.dir]
	switch e.Kind {
	case content.Exists:
		return w[0], true
	case content.Mounted:
		return w[1] + e.From.Path, true
	case content.Packing:
		return w[2], false
	case content.Started:
		return w[3], false
	case content.Done:
		return w[5], true
	}
	return w[4], false
}

func short(d oci.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}

// Close draws the last state. Lines that were not whole stay as they are: an
// error follows them.
func (p *TransferPrinter) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tty && len(p.layers) > 0 {
		p.draw()
	}
}

// draw draws the layers' lines over those drawn before.
func (p *TransferPrinter) draw() {
	p.last = time.Now()
	width, height := p.out.Size()
	layers := p.layers
	// More layers than the screen has lines: those that are done need no line.
	for i := 0; i < len(layers) && len(layers) >= height; {
		if layers[i].done {
			layers = append(layers[:i:i], layers[i+1:]...)
		} else {
			i++
		}
	}
	layers = layers[max(0, len(layers)-height+1):]
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, escUp, p.drawn)
	}
	for _, t := range layers {
		b.WriteString("\r" + cut(t.line(width), width) + escClearLine + "\n")
	}
	b.WriteString(escClearDown)
	p.drawn = len(layers)
	// A closed stdout must not stop a transfer.
	_, _ = io.WriteString(p.out, b.String())
}

// line is "4f4fb700ef54: Downloading [=====>      ]  12.3MB/45.6MB 3s".
func (t *transfer) line(width int) string {
	head := t.id + ": " + t.state
	if t.done || t.begin.IsZero() || t.total <= 0 {
		return head
	}
	tail := "  " + units.HumanSize(float64(t.current)) + "/" + units.HumanSize(float64(t.total))
	if left := t.left(); left > 0 {
		tail += " " + left.Round(time.Second).String()
	}
	room := min(50, width-len(head)-len(tail)-4)
	if room < 5 {
		return head + tail
	}
	full := int(float64(room) * min(1, float64(t.current)/float64(t.total)))
	bar := strings.Repeat("=", full)
	if full < room {
		bar += ">" + strings.Repeat(" ", room-full-1)
	}
	return head + " [" + bar + "]" + tail
}

// left estimates how long the transfer goes on; 0 is not known or not long.
func (t *transfer) left() time.Duration {
	spent, moved := time.Since(t.begin), t.current-t.offset
	if spent < time.Second || moved <= 0 {
		return 0
	}
	left := time.Duration(float64(spent) / float64(moved) * float64(t.total-t.current))
	if left < time.Second {
		return 0
	}
	return left
}
