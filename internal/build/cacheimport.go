package build

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/build/cache"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// CacheSource is a cache to import: one written by an export, or an image with
// an inline one.
type CacheSource struct {
	Name   string // for people
	Source content.Source
	Ref    ref.Ref
}

// importedCache is the records of one imported document.
type importedCache struct {
	name     string
	src      content.Source
	ref      ref.Ref
	part     cache.Part
	records  map[oci.Digest]*cache.Record
	contents map[[2]oci.Digest]oci.Digest
}

// imports are the caches that a build imports, and what it fetched from them.
type imports struct {
	done   chan struct{} // nil where there is nothing to import
	caches []*importedCache

	mu      sync.Mutex
	fetched map[oci.Digest]*future // by diffID
}

// importWait is how long a build waits for a cache's records. It is worth less
// than the steps that it saves: a registry that takes requests and does not
// answer them must not hold up a build that could do without.
const importWait = 30 * time.Second

// ImportCaches begins to read the records of Options.CacheFrom; steps that the
// store has wait for none. The returned function ends it. A cache that is
// missing or not sound is reported and has no hits: it fails no build.
func (e *Engine) ImportCaches(ctx context.Context) (stop func()) {
	if len(e.opt.CacheFrom) == 0 || e.opt.NoCache {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	e.imports.done = make(chan struct{})
	found := make([][]*importedCache, len(e.opt.CacheFrom))
	var wg sync.WaitGroup
	for i, from := range e.opt.CacheFrom {
		wg.Go(func() {
			_ = e.Work("importing cache manifest from "+from.Name, func(w *Work) error {
				asking, cancel := context.WithTimeoutCause(ctx, importWait, errors.New("no answer in "+importWait.String()))
				defer cancel()
				parts, mediaType, err := cache.Import(asking, from.Source, from.Ref)
				if ctx.Err() != nil {
					return nil // the build needed nothing of it
				}
				if err != nil && asking.Err() != nil {
					err = context.Cause(asking)
				}
				if err != nil {
					return fmt.Errorf("failed to configure cache importer: %w", err)
				}
				for _, p := range parts {
					found[i] = append(found[i], newImported(from, p))
				}
				return w.Do("inferred cache manifest type: "+mediaType, func() error { return nil })
			})
		})
	}
	go func() {
		wg.Wait()
		for _, list := range found { // in the order in which they were named
			e.imports.caches = append(e.imports.caches, list...)
		}
		close(e.imports.done)
	}()
	return func() { cancel(); <-e.imports.done }
}

func newImported(from CacheSource, p cache.Part) *importedCache {
	c := &importedCache{name: from.Name, src: from.Source, ref: from.Ref, part: p,
		records: map[oci.Digest]*cache.Record{}, contents: map[[2]oci.Digest]oci.Digest{}}
	for i := range p.Records {
		c.records[p.Records[i].Key] = &p.Records[i]
	}
	for _, x := range p.Contents {
		c.contents[[2]oci.Digest{x.Of, x.Copy}] = x.Content
	}
	return c
}

// lookupImported returns the step's outputs if an imported cache knows the
// step, or the store of an earlier import. Their layers are fetched, and a step whose layers the cache lacks is
// run, once something needs them.
func (s *step) lookupImported(ctx context.Context, k key) ([]*Snapshot, error) {
	if s.imports.done == nil {
		return s.lookupKnown(ctx, k)
	}
	select {
	case <-s.imports.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	n := outputsOf(s.v.Op)
	var from *importedCache
	var found *cache.Record
	for _, c := range s.imports.caches {
		// The first that has the layers, or else the first that knows the step.
		r := c.records[k.digest]
		if r == nil || len(r.Outputs) != n || from != nil && !whole(r) {
			continue
		}
		if from, found = c, r; whole(r) {
			break
		}
	}
	if from == nil {
		return s.lookupKnown(ctx, k)
	}
	return s.found(from, found, k), nil
}

// found are the outputs of a step that a cache knows.
func (s *step) found(from *importedCache, r *cache.Record, k key) []*Snapshot {
	h := &hit{step: s, key: k, from: from, record: r}
	out := make([]*Snapshot, len(r.Outputs))
	for i := range out {
		out[i] = newSnapshot(s.opt.Store, nil, k.output(i))
		out[i].hit, out[i].index = h, i
	}
	return out
}

// whole tells whether the cache has the layers of all outputs.
func whole(r *cache.Record) bool {
	for _, o := range r.Outputs {
		if o == nil {
			return false
		}
	}
	return true
}

// outputsOf is the number of outputs that an operation has.
func outputsOf(op *pb.Op) int {
	n := 0
	switch op := op.Op.(type) {
	case *pb.Op_Exec:
		for _, m := range op.Exec.Mounts {
			n = max(n, int(m.Output)+1)
		}
	case *pb.Op_File:
		for _, a := range op.File.Actions {
			n = max(n, int(a.Output)+1)
		}
	default:
		n = 1
	}
	return n
}

// hit is a step that an imported cache knows.
type hit struct {
	*step
	key    key
	from   *importedCache
	record *cache.Record

	once sync.Once
	out  []*Snapshot
	err  error
	have atomic.Bool // out is there
}

// resolve returns the step's outputs with their layers in the store: fetched,
// or, where the cache lacks them or they are not what it says, made.
func (h *hit) resolve(ctx context.Context) ([]*Snapshot, error) {
	h.once.Do(func() {
		h.out, h.err = h.fetch(ctx)
		if ctx.Err() != nil {
			h.err = context.Cause(ctx)
		} else if h.err != nil {
			h.warn(fmt.Sprintf("WARNING: cache %s: %v; the step runs instead\n", h.from.name, h.err))
			h.out, h.err = nil, nil
		}
		if h.err == nil && h.out == nil {
			h.out, h.err = h.make(ctx)
		}
		if h.err == nil {
			h.err = h.remember(ctx, h.key, h.out)
		}
		h.have.Store(h.err == nil)
	})
	return h.out, h.err
}

func (s *step) warn(text string) {
	s.Emit(Event{Log: &Log{Vertex: s.v.Digest, Stream: 2, Data: []byte(text), At: time.Now()}})
}

// make runs the step after all, as a vertex of its own: the one that was found
// in the cache is done.
func (h *hit) make(ctx context.Context) (out []*Snapshot, err error) {
	v := *h.v
	v.Digest = digestOf("again", string(v.Digest))
	s := &step{Engine: h.Engine, v: &v, in: h.in}
	s.begin()
	defer func() { s.end(false, err) }()
	if out, err = s.perform(ctx); err != nil && ctx.Err() == nil {
		for _, src := range v.Sources {
			err = errdefs.WithSource(err, &errdefs.Source{Info: src.Info, Ranges: src.Ranges})
		}
	}
	return out, err
}

// fetch brings the layers of all outputs into the store, or returns nil where
// the cache does not have them.
func (h *hit) fetch(ctx context.Context) ([]*Snapshot, error) {
	if !whole(h.record) {
		return nil, nil
	}
	out := make([]*Snapshot, len(h.record.Outputs))
	for i, o := range h.record.Outputs {
		layers := make([]Layer, len(o.Layers))
		err := each(ctx, len(o.Layers), func(ctx context.Context, n int) (err error) {
			layers[n], err = h.fetchLayer(ctx, &h.from.part.Layers[o.Layers[n]])
			return err
		})
		if err != nil {
			return nil, err
		}
		out[i] = newSnapshot(h.opt.Store, layers, h.key.output(i))
	}
	return out, nil
}

// fetchLayer makes one layer local and checks that it is what it is said to be.
func (h *hit) fetchLayer(ctx context.Context, l *cache.Layer) (Layer, error) {
	out := layerOf(l)
	if l.Base != nil {
		return out, h.baseLayer(ctx, l, &out)
	}
	h.imports.mu.Lock()
	f := h.imports.fetched[l.DiffID]
	mine := f == nil
	if mine {
		f = &future{done: make(chan struct{})}
		h.imports.fetched[l.DiffID] = f
	}
	h.imports.mu.Unlock()
	if mine {
		f.err = h.fetchBlob(ctx, out.Descriptor, h.from.part.Blobs[l.Blob])
		close(f.done)
	}
	select {
	case <-f.done:
		return out, f.err
	case <-ctx.Done():
		return out, context.Cause(ctx)
	}
}

// baseLayer finds a layer of a base image, which is in no cache. The build's
// own image may have it in another packing than the one that exported.
func (h *hit) baseLayer(ctx context.Context, l *cache.Layer, out *Layer) error {
	if d := h.journal.baseOf(l.DiffID); d.Digest != "" {
		out.Descriptor = d
	}
	ok, err := h.has(ctx, out.Descriptor)
	if err == nil && !ok {
		err = fmt.Errorf("base layer %s: %w", l.DiffID, oci.ErrNotFound)
	}
	return err
}

func (h *hit) fetchBlob(ctx context.Context, plain, packed oci.Descriptor) error {
	st := h.opt.Store
	if ok, err := st.Has(ctx, plain); ok || err != nil {
		return err
	}
	started := time.Now()
	progress := func(ev content.Event) {
		s := &Status{Vertex: h.v.Digest, ID: string(packed.Digest), Current: ev.Current, Total: packed.Size, Started: started}
		if ev.Kind == content.Done {
			now := time.Now()
			s.Completed = &now
		}
		if ev.Kind == content.Done || ev.Kind == content.Progressed {
			h.Emit(Event{Status: s})
		}
	}
	err := content.CopyBlobs(ctx, st, h.from.src, h.from.ref, []oci.Descriptor{packed}, content.CopyOptions{Progress: progress})
	if err != nil {
		return err
	}
	if packed.Digest != plain.Digest {
		if err := st.ClaimLayer(ctx, plain.Digest, packed); err != nil {
			return err
		}
	}
	toc, err := st.TOC(ctx, plain.Digest) // this sees whether the bytes are that layer
	if err == nil && toc.Size != plain.Size {
		err = &oci.SizeError{Digest: plain.Digest, Want: plain.Size, Got: toc.Size}
	}
	return err
}

// contentOf is the content digest of what cp takes from in, which a cache may
// know of a step whose layers are not here.
func (s *step) contentOf(ctx context.Context, in *Snapshot, cp *pb.FileActionCopy) (oci.Digest, error) {
	var of, which oci.Digest
	if in != nil && in.view == nil {
		b, err := cp.MarshalVT()
		if err != nil {
			return "", err
		}
		of, which = in.key, digestOf("copy", keyVersion, string(b))
	}
	var d oci.Digest
	if in != nil && in.hit != nil && !in.hit.have.Load() {
		d = in.hit.from.contents[[2]oci.Digest{of, which}]
		if in.hit.from.src == nil {
			if r, err := s.opt.Store.GetRecord(ctx, bucketSelected, knownContent(of, which)); err == nil {
				d = oci.Digest(r.Value)
			} else if !errors.Is(err, oci.ErrNotFound) {
				return "", err
			}
		}
	}
	if d == "" {
		var err error
		if in != nil && in.view == nil {
			in, err = in.local(ctx)
		}
		if err == nil {
			d, err = s.selected(ctx, in, cp)
		}
		if err != nil {
			return "", err
		}
	}
	if of != "" {
		s.journal.content(of, which, d)
	}
	return d, nil
}

// local returns the output that s stands for, with its layers in the store.
func (s *Snapshot) local(ctx context.Context) (*Snapshot, error) {
	if s == nil || s.hit == nil {
		return s, nil
	}
	out, err := s.hit.resolve(ctx)
	if err != nil {
		return nil, err
	}
	if s.index >= len(out) {
		return nil, errors.New("a step has fewer outputs than its operation")
	}
	return out[s.index], nil
}

// localInputs fetches or makes the inputs that imported caches stand for.
func (s *step) localInputs(ctx context.Context) error {
	in := append([]*Snapshot(nil), s.in...)
	err := each(ctx, len(in), func(ctx context.Context, i int) (err error) {
		in[i], err = in[i].local(ctx)
		return err
	})
	s.in = in
	return err
}
