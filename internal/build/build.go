// Package build runs LLB, the graph language that docker's Dockerfile frontend
// speaks: sources, commands, file operations, merges and differences become
// layers, each found in the cache by its content-based key or made now.
//
// An Engine serves one build. Every vertex of the graph is solved at most once
// and as soon as its inputs are there, so independent branches run side by
// side. A solved vertex is a Snapshot: a stack of layers, or a context
// directory. Nothing is unpacked unless a command has to run on it.
//
// What a Dockerfile means is decided in front of this package, by BuildKit's
// own frontend (package frontend); this package knows LLB only.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/build/sshagent"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/sandbox/network"
)

// Options for New. Store and Find are needed; the rest may be left out.
type Options struct {
	Store *store.Store
	// Find finds the image r for platform p in the store or, without fetching
	// its layers, in its registry. always is docker's --pull: ask the registry
	// even where the image is there.
	Find func(ctx context.Context, r ref.Ref, p oci.Platform, always bool) (*content.Found, error)
	// Locals are the directories that local sources name ("context",
	// "dockerfile", and one for each named context).
	Locals map[string]string
	// Layouts are the client's OCI layouts, by the names that sources have for
	// them.
	Layouts map[string]content.Source
	// Uploads are streams of the client, each read at most once, that http
	// sources read under UploadURL(id): a context on stdin.
	Uploads map[string]io.Reader
	// Secret returns the secret with that id, or oci.ErrNotFound.
	Secret func(ctx context.Context, id string) ([]byte, error)
	// SSH are the agents that RUN --mount=type=ssh and git may use, by id.
	SSH map[string]*sshagent.Agent
	// Allow are the entitlements that the user grants: "network.host",
	// "security.insecure".
	Allow map[string]bool
	// Network is what commands are connected by that do not say otherwise; nil,
	// or a network that is nil, is the machine's own.
	Network func(context.Context) (*network.User, error)
	// GitAgent is the socket of the ssh agent that git may use, if any.
	GitAgent string
	// Events receives the build's progress, one event at a time.
	Events func(Event)
	// OnFail is called with a command that failed, before its mounts go.
	OnFail func(ctx context.Context, failed *FailedStep)
	// NoCache makes every step run again.
	NoCache bool
	// Trace identifies what is built from build to build (the Dockerfile, its
	// context and stage), for Explain to compare with. Empty: nothing is kept.
	Trace string
	// CacheFrom are caches beside the store's, CacheTo where the build's goes.
	CacheFrom []CacheSource
	CacheTo   []CacheExport
	Log       *slog.Logger
}

// Engine is one build. Its methods may be called from many goroutines.
type Engine struct {
	opt   Options
	start time.Time
	// slots bounds the commands that run at once.
	slots chan struct{}

	transport   http.RoundTripper // of http sources
	maxDownload int64

	eventMu sync.Mutex

	mu     sync.Mutex
	solved map[oci.Digest]*future // by vertex digest
	pulled map[string]*pulled     // by reference and platform
	found  map[string]*pulled     // by digest and platform

	downloads map[string]*download // by request and checksum
	commits   map[string]*resolved // by repository and ref

	open []io.Closer // what snapshots read from until Close
	// present are the layers that the store was found to have.
	present map[oci.Digest]bool
	// foreseen are results of the cache, by their keys (see Foresee).
	foreseen map[oci.Digest]foreseen
	last     struct { // see lastTrace
		once  sync.Once
		trace *trace
		raw   []byte
		err   error
	}
	// traced are the steps of which the key is known.
	traced []*tracedStep

	imports imports // caches from elsewhere
	journal journal // what was solved, for exporting it

	added      atomic.Bool     // the store's cache grew
	usedMounts map[string]bool // directories of the cache mounts that commands had
}

// New returns an engine.
func New(opt Options) *Engine {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Engine{
		opt:    opt,
		start:  time.Now(),
		slots:  make(chan struct{}, max(4, runtime.NumCPU())),
		solved: map[oci.Digest]*future{},
		pulled: map[string]*pulled{},
		found:  map[string]*pulled{},

		present: map[oci.Digest]bool{},

		transport:   newTransport(),
		maxDownload: maxDownload,
		downloads:   map[string]*download{},
		commits:     map[string]*resolved{},

		imports: imports{fetched: map[oci.Digest]*future{}},
	}
}

// Close lets go of the context directories. Snapshots are of no use after it.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var err error
	for _, c := range e.open {
		err = errors.Join(err, c.Close())
	}
	e.open = nil
	return err
}

func (e *Engine) opened(c io.Closer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open = append(e.open, c)
}

// Emit sends e to whoever watches the build.
func (e *Engine) Emit(ev Event) {
	if e.opt.Events == nil {
		return
	}
	e.eventMu.Lock()
	defer e.eventMu.Unlock()
	e.opt.Events(ev)
}

// future is a vertex being solved, or solved.
type future struct {
	done chan struct{}
	out  []*Snapshot
	err  error
}

// Solve solves the vertex that edge names, and all it needs, and returns the
// output that edge names. A nil snapshot with a nil error is scratch.
func (e *Engine) Solve(ctx context.Context, edge Edge) (*Snapshot, error) {
	if edge.Vertex == nil {
		return nil, nil
	}
	out, err := e.solveVertex(ctx, edge.Vertex)
	if err != nil {
		return nil, err
	}
	if edge.Index < 0 || edge.Index >= len(out) {
		return nil, fmt.Errorf("vertex %s has no output %d: %w", edge.Vertex.Digest, edge.Index, oci.ErrInvalid)
	}
	return out[edge.Index], nil
}

func (e *Engine) solveVertex(ctx context.Context, v *Node) ([]*Snapshot, error) {
	e.mu.Lock()
	f := e.solved[v.Digest]
	mine := f == nil
	if mine {
		f = &future{done: make(chan struct{})}
		e.solved[v.Digest] = f
	}
	e.mu.Unlock()
	if !mine {
		select {
		case <-f.done:
			return f.out, f.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer close(f.done)
	f.out, f.err = e.run(ctx, v)
	return f.out, f.err
}

// run solves v's inputs side by side and then v.
func (e *Engine) run(ctx context.Context, v *Node) ([]*Snapshot, error) {
	in := make([]*Snapshot, len(v.Inputs))
	if err := each(ctx, len(v.Inputs), func(ctx context.Context, i int) (err error) {
		in[i], err = e.Solve(ctx, v.Inputs[i])
		return err
	}); err != nil {
		return nil, err
	}
	s := &step{Engine: e, v: v, in: in}
	out, err := s.solve(ctx)
	return out, v.blame(ctx, err)
}

// blame adds to an error of the node's the lines that it was made from.
func (n *Node) blame(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	for _, src := range n.Sources {
		err = errdefs.WithSource(err, &errdefs.Source{Info: src.Info, Ranges: src.Ranges})
	}
	return err
}

// each calls fn(0) … fn(n-1), side by side where there is more than one, and
// returns the first error, after which the others' context ends.
func each(ctx context.Context, n int, fn func(ctx context.Context, i int) error) error {
	if n == 1 {
		return fn(ctx, 0)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for i := range n {
		wg.Go(func() {
			if err := fn(ctx, i); err != nil {
				once.Do(func() { first = err; cancel(err) })
			}
		})
	}
	wg.Wait()
	return first
}

// step is one vertex on its way to being solved.
type step struct {
	*Engine
	v       *Node
	in      []*Snapshot
	started *time.Time
	taken   []taken // what the key was made of, for Explain
}

// solve looks the step up in the cache, or makes it.
func (s *step) solve(ctx context.Context) (out []*Snapshot, err error) {
	if op := s.v.Op.GetSource(); op != nil {
		return s.source(ctx, op)
	}
	s.begin()
	cached := false
	defer func() { s.end(cached, err) }()
	key, err := s.key(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.noteMounts(ctx); err != nil {
		return nil, err
	}
	noCache := s.v.IgnoreCache || s.opt.NoCache
	done := s.record(key, noCache)
	defer func() { done(cached, err) }()
	if !noCache {
		if out, err = s.lookup(ctx, key); err == nil && out == nil {
			out, err = s.lookupImported(ctx, key)
		}
		if err != nil || out != nil {
			if cached = err == nil; cached {
				s.journal.step(s, key, out)
			}
			return out, err
		}
	}
	if out, err = s.perform(ctx); err != nil {
		return nil, err
	}
	s.journal.step(s, key, out)
	return out, s.remember(ctx, key, out)
}

// perform makes the step.
func (s *step) perform(ctx context.Context) ([]*Snapshot, error) {
	switch op := s.v.Op.Op.(type) {
	case *pb.Op_Exec:
		if err := s.localInputs(ctx); err != nil { // before it takes a slot
			return nil, err
		}
		return s.exec(ctx, op.Exec)
	case *pb.Op_File:
		return s.file(ctx, op.File)
	case *pb.Op_Merge:
		return s.merge(ctx)
	case *pb.Op_Diff:
		return s.diff(ctx, op.Diff)
	}
	return nil, fmt.Errorf("LLB operation %T: %w", s.v.Op.Op, oci.ErrUnsupported)
}

func (s *step) begin() {
	now := time.Now()
	s.started = &now
	s.Emit(Event{Vertex: &Vertex{Digest: s.v.Digest, Name: s.v.Name, Started: &now}})
}

func (s *step) end(cached bool, err error) {
	now := time.Now()
	v := &Vertex{Digest: s.v.Digest, Name: s.v.Name, Started: s.started, Completed: &now, Cached: cached}
	if err != nil {
		v.Error = err.Error()
	}
	s.Emit(Event{Vertex: v})
}

// Work reports fn as a vertex of its own: what a build does besides its graph,
// such as exporting.
func (e *Engine) Work(name string, fn func(v *Work) error) error {
	w := &Work{e: e, v: Vertex{Digest: digestOf("work", name), Name: name}}
	now := time.Now()
	w.v.Started = &now
	v := w.v
	e.Emit(Event{Vertex: &v})
	err := fn(w)
	end := time.Now()
	w.v.Completed = &end
	if err != nil {
		w.v.Error = err.Error()
	}
	v = w.v
	e.Emit(Event{Vertex: &v})
	return err
}

// Work is a running piece of work outside the graph.
type Work struct {
	e *Engine
	v Vertex
}

// Do reports fn as one line of the work: "exporting layers 0.1s done".
func (w *Work) Do(id string, fn func() error) error {
	start := time.Now()
	w.e.Emit(Event{Status: &Status{Vertex: w.v.Digest, ID: id, Started: start}})
	if err := fn(); err != nil {
		return err
	}
	end := time.Now()
	w.e.Emit(Event{Status: &Status{Vertex: w.v.Digest, ID: id, Started: start, Completed: &end}})
	return nil
}

// Note reports a line of the work that says what was done already.
func (w *Work) Note(id string) {
	_ = w.Do(id, func() error { return nil }) // which cannot fail
}

// Store is the store that the engine builds into.
func (e *Engine) Store() *store.Store { return e.opt.Store }

// DefaultPlatform is the platform that a build is for when none is asked for.
func (e *Engine) DefaultPlatform() oci.Platform { return content.Host() }
