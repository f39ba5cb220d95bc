package remote

import (
	"slices"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/oci"
)

// settle is how long a step's end is held back. The daemon ends a source's step
// when it knows its digest and begins it again to fetch it; for people that is
// one step, which ends once.
const settle = 30 * time.Millisecond

// relay passes the daemon's progress on as events. A step's end comes after
// everything else about it.
type relay struct {
	emit  func(build.Event)
	ended []ended // oldest first
}

type ended struct {
	build.Vertex
	at time.Time
}

// run relays until the daemon has said everything.
func (r *relay) run(progress <-chan *client.SolveStatus) {
	tick := time.NewTicker(settle)
	defer tick.Stop()
	for {
		select {
		case s, ok := <-progress:
			if !ok {
				r.flush(time.Now().Add(settle))
				return
			}
			r.status(s)
		case now := <-tick.C:
			r.flush(now)
		}
	}
}

// flush tells of the ends that have settled.
func (r *relay) flush(now time.Time) {
	for len(r.ended) > 0 && now.Sub(r.ended[0].at) >= settle {
		r.emit(build.Event{Vertex: &r.ended[0].Vertex})
		r.ended = r.ended[1:]
	}
}

func (r *relay) vertex(v *client.Vertex) {
	r.ended = slices.DeleteFunc(r.ended, func(e ended) bool { return e.Digest == v.Digest })
	out := build.Vertex{Digest: oci.Digest(v.Digest), Name: v.Name, Started: v.Started}
	if v.Completed != nil || v.Error != "" {
		end := out
		end.Completed, end.Cached, end.Error = v.Completed, v.Cached, v.Error
		r.ended = append(r.ended, ended{end, time.Now()})
	}
	r.emit(build.Event{Vertex: &out})
}

func (r *relay) status(s *client.SolveStatus) {
	for _, v := range s.Vertexes {
		r.vertex(v)
	}
	for _, st := range s.Statuses {
		started := st.Timestamp
		if st.Started != nil {
			started = *st.Started
		}
		r.emit(build.Event{Status: &build.Status{
			Vertex: st.Vertex, ID: st.ID, Current: st.Current, Total: st.Total, Started: started, Completed: st.Completed,
		}})
	}
	for _, l := range s.Logs {
		r.emit(build.Event{Log: &build.Log{Vertex: l.Vertex, Stream: l.Stream, Data: l.Data, At: l.Timestamp}})
	}
	for _, w := range s.Warnings {
		out := &build.Warning{Vertex: w.Vertex, Short: string(w.Short), URL: w.URL}
		for _, d := range w.Detail {
			out.Detail = append(out.Detail, string(d))
		}
		if w.SourceInfo != nil {
			out.File = w.SourceInfo.Filename
		}
		if len(w.Range) > 0 && w.Range[0].Start != nil {
			out.Line = int(w.Range[0].Start.Line)
		}
		r.emit(build.Event{Warning: out})
	}
}
