package term

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/docker/go-units"
)

// Busy shows that something goes on which prints nothing yet: from the second
// second on there is a line on the terminal, until the first write to one of the
// streams takes its place. Its zero value shows nothing.
type Busy struct {
	out  *Out
	what string
	n    atomic.Int64

	mu    sync.Mutex
	begin time.Time
	stop  chan struct{} // nil where nothing goes on
	drawn bool
}

// patience is how long nobody wonders.
const patience = time.Second

// NewBusy shows what on errs, if lines may be drawn there, and watches for
// writes to both streams.
func NewBusy(s Streams, what string) *Busy {
	b := &Busy{what: what}
	if s.Err.Draws() {
		b.out = s.Err
		s.Err.busy.Store(b)
		s.Out.busy.Store(b)
		b.Start()
	}
	return b
}

// Start begins anew, after an answer to a question.
func (b *Busy) Start() {
	if b.out == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		return
	}
	b.begin, b.stop = time.Now(), make(chan struct{})
	go b.run(b.stop)
}

// Add counts bytes, which the line tells.
func (b *Busy) Add(n int) { b.n.Add(int64(n)) }

// Stop takes the line away.
func (b *Busy) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop == nil {
		return
	}
	close(b.stop)
	b.stop = nil
	if b.drawn {
		b.drawn = false
		_, _ = io.WriteString(b.out.Writer, "\r"+escClearLine)
	}
}

func (b *Busy) run(stop chan struct{}) {
	t := time.NewTimer(patience)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
			b.draw(stop)
			t.Reset(drawEvery)
		}
	}
}

func (b *Busy) draw(stop chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != stop {
		return
	}
	b.drawn = true
	line := "[+] " + b.what
	if n := b.n.Load(); n > 0 {
		line += " " + units.HumanSize(float64(n))
	}
	width, _ := b.out.Size()
	line = cut(fmt.Sprintf("%s %.1fs", line, time.Since(b.begin).Seconds()), width-1)
	// A closed stderr must not stop the work.
	_, _ = io.WriteString(b.out.Writer, "\r"+line+escClearLine)
}
