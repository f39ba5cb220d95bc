package build

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

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
	// NoMounts leaves the cache mounts that travel with it where they are.
	NoMounts bool
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
			// What goes wrong is reported as the work's, and fails no build.
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
				w.Note("inferred cache manifest type: " + mediaType)
				return nil
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
	if from.NoMounts {
		p.Mounts = nil
	}
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

// imported are the caches of ImportCaches, once they have been read.
func (e *Engine) imported(ctx context.Context) ([]*importedCache, error) {
	if e.imports.done == nil {
		return nil, nil
	}
	select {
	case <-e.imports.done:
		return e.imports.caches, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// lookupImported returns the step's outputs if an imported cache knows the
// step, or the store of an earlier import. Their layers are fetched, and a step
// whose layers the cache lacks is run, once something needs them.
func (s *step) lookupImported(ctx context.Context, k key) ([]*Snapshot, error) {
	caches, err := s.imported(ctx)
	if err != nil {
		return nil, err
	}
	n := outputsOf(s.v.Op)
	var from *importedCache
	var found *cache.Record
	for _, c := range caches {
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
		out[i].lazy, out[i].index = h, i
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

// resolve implements lazy: layers that the cache lacks, or that are not what it
// says, are made.
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

// resolved implements lazy.
func (h *hit) resolved() []*Snapshot {
	if !h.have.Load() {
		return nil
	}
	return h.out
}

// origins implements lazy. A layer of a base image is where the build has that
// image.
func (h *hit) origins(i int) ([]origin, bool) {
	o := h.record.Outputs[i]
	if o == nil {
		return nil, false
	}
	list := make([]origin, len(o.Layers))
	for n, at := range o.Layers {
		l := &h.from.part.Layers[at]
		list[n] = origin{layer: layerOf(l)}
		if l.Base == nil {
			list[n].blob, list[n].src, list[n].ref = h.from.part.Blobs[l.Blob], h.from.src, h.from.ref
			continue
		}
		b := h.journal.baseOf(l.DiffID)
		if b.img == nil {
			continue
		}
		list[n].layer.Descriptor = b.Descriptor
		if b.img.elsewhere != nil && !b.img.have.Load() {
			list[n].blob, list[n].src, list[n].ref = b.Descriptor, b.img.elsewhere.Source, b.img.ref
		}
	}
	return list, true
}

// content implements lazy: of a step only the cache that it was found in knows
// what it came to.
func (h *hit) content(ctx context.Context, of, which oci.Digest) (oci.Digest, error) {
	if h.from.src == nil {
		return h.knownContent(ctx, of, which)
	}
	return h.from.contents[[2]oci.Digest{of, which}], nil
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
	out, err = s.perform(ctx)
	return out, v.blame(ctx, err)
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
	b := h.journal.baseOf(l.DiffID)
	if b.img != nil {
		out.Descriptor = b.Descriptor
	}
	ok, err := h.has(ctx, out.Descriptor)
	if err == nil && !ok && b.img != nil && b.img.elsewhere != nil {
		if _, err = b.img.resolve(ctx); err == nil {
			ok, err = h.has(ctx, out.Descriptor)
		}
	}
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
	err := content.CopyBlobs(ctx, st, h.from.src, h.from.ref, []oci.Descriptor{packed}, content.CopyOptions{Progress: h.transfers(h.v.Digest)})
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
