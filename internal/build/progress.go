package build

import (
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/oci"
)

// Event is one piece of a build's progress; exactly one field is set. Events
// of different vertices come interleaved, from one goroutine at a time.
type Event struct {
	Vertex  *Vertex
	Status  *Status
	Log     *Log
	Warning *Warning
}

// Vertex is a step of the graph, sent again whenever it changes. Its Name is
// what docker prints: "[builder 2/4] RUN make".
type Vertex struct {
	Digest    oci.Digest
	Name      string
	Started   *time.Time
	Completed *time.Time
	Cached    bool
	Error     string
}

// Status is the state of a piece of work inside a vertex: a transfer, an
// export. Total is 0 where it is not known.
type Status struct {
	Vertex         oci.Digest
	ID             string // "transferring context:", "sha256:…", "exporting layers"
	Current, Total int64
	Started        time.Time
	Completed      *time.Time
}

// Log is output of a running step, in the pieces in which it was written.
type Log struct {
	Vertex oci.Digest
	Stream int // 1 or 2
	Data   []byte
	At     time.Time
}

// Warning is what the Dockerfile's checks found, already in docker's words.
type Warning struct {
	Vertex oci.Digest
	Short  string
	Detail []string
	URL    string
	File   string
	Line   int

	Level  int
	Source *pb.SourceInfo
	Range  []*pb.Range
}
