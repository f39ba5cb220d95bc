package term

import (
	"encoding/json"
	"time"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/oci"
)

// rawView prints every event as a line of JSON, in the form in which BuildKit
// reports the state of a build to its clients.
type rawView struct{ out *Out }

func (*rawView) changed(*BuildPrinter, *step) {}
func (*rawView) tick(*BuildPrinter)           {}
func (*rawView) close(*BuildPrinter, bool)    {}
func (*rawView) pause(*BuildPrinter)          {}

type rawStatus struct {
	Vertexes []rawVertex  `json:"vertexes,omitempty"`
	Statuses []rawWork    `json:"statuses,omitempty"`
	Logs     []rawLog     `json:"logs,omitempty"`
	Warnings []rawWarning `json:"warnings,omitempty"`
}

type rawVertex struct {
	Digest    oci.Digest `json:"digest,omitempty"`
	Name      string     `json:"name,omitempty"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
	Cached    bool       `json:"cached,omitempty"`
	Error     string     `json:"error,omitempty"`
}

type rawWork struct {
	ID        string     `json:"id"`
	Vertex    oci.Digest `json:"vertex,omitempty"`
	Total     int64      `json:"total,omitempty"`
	Current   int64      `json:"current"`
	Timestamp time.Time  `json:"timestamp,omitempty"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
}

type rawLog struct {
	Vertex    oci.Digest `json:"vertex,omitempty"`
	Stream    int        `json:"stream,omitempty"`
	Data      []byte     `json:"data"`
	Timestamp time.Time  `json:"timestamp"`
}

type rawWarning struct {
	Vertex     oci.Digest `json:"vertex,omitempty"`
	Level      int        `json:"level,omitempty"`
	Short      []byte     `json:"short,omitempty"`
	Detail     [][]byte   `json:"detail,omitempty"`
	URL        string     `json:"url,omitempty"`
	SourceInfo *rawSource `json:"sourceInfo,omitempty"`
	Range      []rawRange `json:"range,omitempty"`
}

type rawSource struct {
	Filename string `json:"filename,omitempty"`
}

type rawRange struct {
	Start rawPosition `json:"start"`
	End   rawPosition `json:"end"`
}

type rawPosition struct {
	Line int `json:"line,omitempty"`
}

func (v *rawView) event(e build.Event) {
	var s rawStatus
	switch {
	case e.Vertex != nil:
		s.Vertexes = []rawVertex{{e.Vertex.Digest, e.Vertex.Name, e.Vertex.Started, e.Vertex.Completed, e.Vertex.Cached, e.Vertex.Error}}
	case e.Status != nil:
		w := rawWork{ID: e.Status.ID, Vertex: e.Status.Vertex, Total: e.Status.Total, Current: e.Status.Current, Timestamp: time.Now(), Completed: e.Status.Completed}
		if !e.Status.Started.IsZero() {
			w.Started = &e.Status.Started
		}
		s.Statuses = []rawWork{w}
	case e.Log != nil:
		s.Logs = []rawLog{{e.Log.Vertex, e.Log.Stream, e.Log.Data, e.Log.At}}
	case e.Warning != nil:
		w := rawWarning{Vertex: e.Warning.Vertex, Level: 1, Short: []byte(e.Warning.Short), URL: e.Warning.URL}
		for _, d := range e.Warning.Detail {
			w.Detail = append(w.Detail, []byte(d))
		}
		if e.Warning.File != "" {
			at := rawPosition{e.Warning.Line}
			w.SourceInfo, w.Range = &rawSource{e.Warning.File}, []rawRange{{at, at}}
		}
		s.Warnings = []rawWarning{w}
	}
	// A closed stderr must not stop a build.
	_ = json.NewEncoder(v.out).Encode(s)
}
