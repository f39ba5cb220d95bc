package content

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// CopyOptions says what Copy copies. The zero value copies everything that the
// reference names as it is.
type CopyOptions struct {
	// Platforms chooses from an index; empty means all of them, or, where the
	// source is itself sparse, all that it holds.
	Platforms []oci.Platform
	// Compression packs layers that the source holds only as plain tar, if the
	// source is a Packer. Already packed layers keep their bytes and digests:
	// recompressing would change them for nothing.
	Compression Compression
	// Progress, if set, is called with each event; calls may come from several
	// goroutines at once.
	Progress func(Event)
	// Parallel bounds transfers under way at once; 0 means 6.
	Parallel int
}

// EventKind tells what happened to a piece of content.
type EventKind int

// The events of a blob's life in a Copy: one of Exists or Mounted; or Started,
// any number of Progressed, then Done. Packing precedes Started where a layer
// is compressed first. Resolved and Tagged are the manifest's or index's own.
const (
	Resolved EventKind = iota
	Exists
	Mounted
	Packing
	Started
	Progressed
	Done
	Tagged
)

// Event is one piece of progress.
type Event struct {
	Kind EventKind
	// Descriptor is what moves. Of a packed layer it is the packed one, and
	// DiffID is the plain one's digest.
	Descriptor oci.Descriptor
	DiffID     oci.Digest
	// Current counts the bytes moved so far, those found from an earlier
	// attempt included.
	Current int64
	// From is the repository a blob was mounted from.
	From ref.Ref
}

// CopyError says which end of a Copy failed.
type CopyError struct {
	End string // "source" or "destination"
	Err error
}

func (e *CopyError) Error() string { return e.Err.Error() }
func (e *CopyError) Unwrap() error { return e.Err }

// Copy copies the image that from names in src to dst, and tags it there as
// to: blobs first, then manifests, then indexes, then the tag. It returns what
// the tag points at now, which differs from what src resolved where layers
// were packed on the way or one platform was taken out of an index. Only what
// dst lacks is transferred. Interrupted, it leaves no tag moved, and blobs that
// arrived whole are found by the next attempt.
func Copy(ctx context.Context, dst Sink, to ref.Ref, src Source, from ref.Ref, opt CopyOptions) (oci.Descriptor, error) {
	if opt.Parallel <= 0 {
		opt.Parallel = 6
	}
	if _, ok := dst.(OrderedSink); ok {
		opt.Parallel = 1
	}
	c := &copier{src: src, dst: dst, to: to, from: from, opt: opt, slots: make(chan struct{}, opt.Parallel), done: map[oci.Digest]*result{}}
	ctx, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	d, err := src.Resolve(ctx, from)
	if err != nil {
		return oci.Descriptor{}, sourceErr(err)
	}
	c.event(Event{Kind: Resolved, Descriptor: d})
	d, err = c.manifest(ctx, d, maxDepth)
	if err != nil {
		return oci.Descriptor{}, err
	}
	if err := dst.Tag(ctx, to, d); err != nil {
		return oci.Descriptor{}, sinkErr(err)
	}
	c.event(Event{Kind: Tagged, Descriptor: d})
	return d, nil
}

type copier struct {
	src      Source
	dst      Sink
	from, to ref.Ref
	opt      CopyOptions
	slots    chan struct{}

	// cancel ends everything when one transfer fails, with that failure as the
	// cause: what else ends because of it is not what people need to know.
	cancel context.CancelCauseFunc

	mu   sync.Mutex
	done map[oci.Digest]*result // one copy of each digest, however often it is named
}

// maxDepth bounds indexes in indexes; nobody nests them deeper than two.
const maxDepth = 8

// maxMounts bounds the repositories that are asked for a blob before it is sent.
const maxMounts = 4

type result struct {
	once sync.Once
	d    oci.Descriptor
	err  error
}

// once runs fn for the first who asks for d; all others get its result.
func (c *copier) once(d oci.Descriptor, fn func() (oci.Descriptor, error)) (oci.Descriptor, error) {
	c.mu.Lock()
	r := c.done[d.Digest]
	if r == nil {
		r = new(result)
		c.done[d.Digest] = r
	}
	c.mu.Unlock()
	r.once.Do(func() { r.d, r.err = fn() })
	if r.d.Digest == d.Digest { // the same bytes, named by another descriptor
		return d, r.err
	}
	return r.d, r.err
}

func (c *copier) event(e Event) {
	if c.opt.Progress != nil {
		c.opt.Progress(e)
	}
}

// each copies what a manifest or index names, Parallel at a time; one at a time
// in their order. It returns what they became.
func (c *copier) each(ctx context.Context, ds []oci.Descriptor, copyOne func(oci.Descriptor) (oci.Descriptor, error)) ([]oci.Descriptor, error) {
	copied := make([]oci.Descriptor, len(ds))
	var g errgroup.Group
	g.SetLimit(c.opt.Parallel)
	for i, d := range ds {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			var err error
			if copied[i], err = copyOne(d); err != nil {
				c.cancel(err)
				return context.Cause(ctx)
			}
			return nil
		})
	}
	return copied, g.Wait()
}

// manifest copies d, an index or manifest, with all below it, and returns what
// it became at the destination.
func (c *copier) manifest(ctx context.Context, d oci.Descriptor, depth int) (oci.Descriptor, error) {
	return c.once(d, func() (oci.Descriptor, error) { return c.copyManifest(ctx, d, depth) })
}

func (c *copier) copyManifest(ctx context.Context, d oci.Descriptor, depth int) (oci.Descriptor, error) {
	if depth == 0 {
		return d, sourceErr(fmt.Errorf("%s: indexes are nested deeper than %d: %w", d.Digest, maxDepth, oci.ErrInvalid))
	}
	body, err := c.read(ctx, d)
	if err != nil {
		return d, err
	}
	// Children also refuses bodies that lie about what they are.
	children, err := oci.Children(d.MediaType, body)
	if err != nil {
		return d, sourceErr(fmt.Errorf("%s: %w", d.Digest, err))
	}
	switch {
	case oci.IsIndex(d.MediaType):
		return c.index(ctx, d, body, children, depth)
	case oci.IsManifest(d.MediaType):
		return c.image(ctx, d, body, children)
	}
	return d, sourceErr(fmt.Errorf("%s has media type %q, which is no image: %w", d.Digest, d.MediaType, oci.ErrUnsupported))
}

func (c *copier) read(ctx context.Context, d oci.Descriptor) ([]byte, error) {
	r, err := c.src.Open(ctx, d)
	if err != nil {
		return nil, sourceErr(err)
	}
	defer r.Close()
	b, err := oci.ReadAll(r, d)
	if err != nil {
		return nil, sourceErr(err)
	}
	return b, nil
}

func (c *copier) put(ctx context.Context, d oci.Descriptor, body []byte) error {
	if err := c.dst.Put(ctx, d, bytes.NewReader(body)); err != nil {
		return sinkErr(err)
	}
	return nil
}

func (c *copier) index(ctx context.Context, d oci.Descriptor, body []byte, children []oci.Descriptor, depth int) (oci.Descriptor, error) {
	chosen, err := c.choose(ctx, d, children)
	if err != nil {
		return d, err
	}
	copied, err := c.each(ctx, chosen, func(child oci.Descriptor) (oci.Descriptor, error) {
		return c.manifest(ctx, child, depth-1)
	})
	if err != nil {
		return d, err
	}
	_, sparse := c.dst.(SparseSink)
	became := map[oci.Digest]oci.Descriptor{}
	changed := false
	for i := range chosen {
		became[chosen[i].Digest] = copied[i]
		changed = changed || copied[i].Digest != chosen[i].Digest
	}
	switch {
	case !changed && (sparse || len(became) == len(dedupe(children))):
		return d, c.put(ctx, d, body)
	case len(became) == 1:
		return copied[0], nil
	}
	var ix oci.Index
	if err := json.Unmarshal(body, &ix); err != nil {
		return d, sourceErr(err)
	}
	ix.Manifests = nil
	for _, child := range children {
		now, ok := became[child.Digest]
		if !ok {
			continue
		}
		// An attestation names the image that it is about.
		if about, ok := became[oci.Digest(child.Annotations[attestationSubject])]; ok {
			child.Annotations = maps.Clone(child.Annotations)
			child.Annotations[attestationSubject] = string(about.Digest)
		}
		child.MediaType, child.Digest, child.Size = now.MediaType, now.Digest, now.Size
		ix.Manifests = append(ix.Manifests, child)
	}
	return c.putJSON(ctx, d, ix)
}

// attestationSubject is BuildKit's annotation of an attestation in an index.
const attestationSubject = "vnd.docker.reference.digest"

// choose picks the children of an index to copy: those of the platforms asked
// for, or all that the source has.
func (c *copier) choose(ctx context.Context, d oci.Descriptor, children []oci.Descriptor) ([]oci.Descriptor, error) {
	var chosen []oci.Descriptor
	if len(c.opt.Platforms) > 0 {
		for _, p := range c.opt.Platforms {
			child, err := Choose(children, p)
			if err != nil {
				return nil, sourceErr(fmt.Errorf("%s: %w", c.from.Familiar(), err))
			}
			chosen = append(chosen, child)
		}
		return dedupe(chosen), nil
	}
	holder, sparse := c.src.(interface {
		Has(context.Context, oci.Descriptor) (bool, error)
	})
	for _, child := range children {
		if sparse {
			ok, err := holder.Has(ctx, child)
			if err != nil {
				return nil, sourceErr(err)
			}
			if !ok {
				continue
			}
		}
		chosen = append(chosen, child)
	}
	if len(chosen) == 0 && len(children) > 0 {
		return nil, sourceErr(fmt.Errorf("%s: none of its platforms' images is here: %w", d.Digest, oci.ErrNotFound))
	}
	return dedupe(chosen), nil
}

func dedupe(ds []oci.Descriptor) []oci.Descriptor {
	seen := map[oci.Digest]bool{}
	out := ds[:0:0]
	for _, d := range ds {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			out = append(out, d)
		}
	}
	return out
}

func (c *copier) image(ctx context.Context, d oci.Descriptor, body []byte, children []oci.Descriptor) (oci.Descriptor, error) {
	copied, err := c.each(ctx, children, func(child oci.Descriptor) (oci.Descriptor, error) {
		return c.blob(ctx, child)
	})
	if err != nil {
		return d, err
	}
	changed := false
	for i := range children {
		changed = changed || copied[i].Digest != children[i].Digest
	}
	if !changed {
		return d, c.put(ctx, d, body)
	}
	var m oci.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return d, sourceErr(err)
	}
	m.Layers = copied[1:]
	return c.putJSON(ctx, d, m)
}

// putJSON puts v in the place of what old named and returns its descriptor,
// which keeps old's platform and annotations.
func (c *copier) putJSON(ctx context.Context, old oci.Descriptor, v any) (oci.Descriptor, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return old, err
	}
	made := oci.DescriptorOf(old.MediaType, body)
	made.Platform, made.Annotations, made.ArtifactType = old.Platform, old.Annotations, old.ArtifactType
	return made, c.put(ctx, made, body)
}

// blob copies one config or layer, once for each digest.
func (c *copier) blob(ctx context.Context, d oci.Descriptor) (oci.Descriptor, error) {
	return c.once(d, func() (oci.Descriptor, error) {
		select {
		case c.slots <- struct{}{}:
			defer func() { <-c.slots }()
			return c.transfer(ctx, d)
		case <-ctx.Done():
			return d, context.Cause(ctx)
		}
	})
}

func (c *copier) transfer(ctx context.Context, d oci.Descriptor) (oci.Descriptor, error) {
	plain := oci.Digest("")
	if packer, ok := c.src.(Packer); ok && c.opt.Compression != Uncompressed && oci.IsPlainLayer(d.MediaType) {
		plain = d.Digest
		c.event(Event{Kind: Packing, Descriptor: d, DiffID: plain})
		packed, err := packer.Pack(ctx, d, c.opt.Compression)
		if err != nil {
			return d, sourceErr(err)
		}
		packed.Annotations = d.Annotations
		d = packed
	}
	ev := func(k EventKind, n int64) { c.event(Event{Kind: k, Descriptor: d, DiffID: plain, Current: n}) }
	if ok, err := c.dst.Has(ctx, d); err != nil {
		return d, sinkErr(err)
	} else if ok {
		ev(Exists, d.Size)
		return d, c.recordOrigin(ctx, d)
	}
	if from, ok := c.mount(ctx, d); ok {
		c.event(Event{Kind: Mounted, Descriptor: d, DiffID: plain, Current: d.Size, From: from})
		return d, c.recordOrigin(ctx, d)
	}
	ev(Started, 0)
	var err error
	if resumer, ok := c.dst.(Resumer); ok {
		err = c.resume(ctx, resumer, d, ev)
	} else {
		err = c.putBlob(ctx, d, ev)
	}
	if errors.Is(err, oci.ErrNotFound) && strings.Contains(d.MediaType, ".foreign.") {
		err = sourceErr(fmt.Errorf("layer %s is a foreign one (%s), which registries do not hold: %w", d.Digest, d.MediaType, oci.ErrUnsupported))
	}
	if err != nil {
		return d, err
	}
	ev(Done, d.Size)
	return d, c.recordOrigin(ctx, d)
}

// recordOrigin remembers on both ends that the remote repository holds d, so
// that a later push to its registry can mount it. A place that knows no mounts,
// such as an archive, is no origin, whatever its images are called.
func (c *copier) recordOrigin(ctx context.Context, d oci.Descriptor) error {
	_, fromRegistry := c.src.(Mounter)
	_, toRegistry := c.dst.(Mounter)
	if rec, ok := c.dst.(OriginRecorder); ok && fromRegistry {
		if err := rec.RecordOrigin(ctx, c.from, d); err != nil {
			return sinkErr(err)
		}
	}
	if rec, ok := c.src.(OriginRecorder); ok && toRegistry {
		if err := rec.RecordOrigin(ctx, c.to, d); err != nil {
			return sourceErr(err)
		}
	}
	return nil
}

// mount tries to take d from a repository of the destination's own registry.
// A registry that declines costs a transfer, never an error.
func (c *copier) mount(ctx context.Context, d oci.Descriptor) (ref.Ref, bool) {
	mounter, ok := c.dst.(Mounter)
	if !ok {
		return ref.Ref{}, false
	}
	var origins []ref.Ref
	if lister, ok := c.src.(OriginLister); ok {
		origins, _ = lister.Origins(ctx, d)
	}
	asked := 0
	for _, from := range append(origins, c.from) {
		if from.Domain != c.to.Domain || from.Path == c.to.Path || asked == maxMounts {
			continue
		}
		asked++
		if ok, err := mounter.Mount(ctx, d, from); err == nil && ok {
			return from, true
		}
	}
	return ref.Ref{}, false
}

func (c *copier) putBlob(ctx context.Context, d oci.Descriptor, ev func(EventKind, int64)) error {
	r, err := c.src.Open(ctx, d)
	if err != nil {
		return sourceErr(err)
	}
	src := &sourceReader{r: r, moved: func(n int64) { ev(Progressed, n) }}
	src.open = func(offset int64) (io.ReadCloser, error) { return c.openAt(ctx, d, offset) }
	defer func() { _ = src.r.Close() }()
	if err := c.dst.Put(ctx, d, src); err != nil {
		if src.err != nil {
			return sourceErr(src.err)
		}
		return sinkErr(err)
	}
	return nil
}

// resume continues an unfinished copy where it stopped. What an earlier attempt
// left may be damaged (a power cut, another source): then it starts again.
func (c *copier) resume(ctx context.Context, resumer Resumer, d oci.Descriptor, ev func(EventKind, int64)) error {
	for {
		p, err := resumer.Resume(ctx, d)
		if errors.Is(err, oci.ErrConflict) { // another process fetches it; fetch it for ourselves
			return c.putBlob(ctx, d, ev)
		}
		if err != nil {
			return sinkErr(err)
		}
		resumed := p.Offset() > 0
		err = c.fill(ctx, p, d, ev)
		p.Close()
		if !resumed || !errors.Is(err, oci.ErrCorrupt) {
			return err
		}
	}
}

// fill completes a partial blob and commits it. A source that cannot start in
// the middle starts again.
func (c *copier) fill(ctx context.Context, p Partial, d oci.Descriptor, ev func(EventKind, int64)) (err error) {
	if p.Offset() > d.Size {
		if err := p.Reset(); err != nil {
			return sinkErr(err)
		}
	}
	var r io.ReadCloser
	if at := p.Offset(); at > 0 && at < d.Size {
		if ro, ok := c.src.(RangeOpener); ok {
			if r, err = ro.OpenAt(ctx, d, at, -1); err != nil && !errors.Is(err, oci.ErrUnsupported) {
				return sourceErr(err)
			}
		}
		if r == nil {
			if err := p.Reset(); err != nil {
				return sinkErr(err)
			}
		}
	}
	if r == nil && p.Offset() < d.Size || d.Size == 0 {
		if r, err = c.src.Open(ctx, d); err != nil {
			return sourceErr(err)
		}
	}
	if r != nil {
		defer r.Close()
		src := &sourceReader{r: r, n: p.Offset(), moved: func(n int64) { ev(Progressed, n) }}
		// One byte more than promised is enough to know that the source lies.
		// Eight times io.Copy's buffer: fewer reads of the socket and writes.
		_, err := io.CopyBuffer(p, io.LimitReader(src, d.Size-p.Offset()+1), make([]byte, 256<<10))
		if src.err != nil {
			return sourceErr(src.err)
		}
		if err != nil {
			return sinkErr(err)
		}
	}
	if err := p.Commit(ctx); err != nil {
		if errors.Is(err, oci.ErrCorrupt) { // the bytes came from the source
			return sourceErr(err)
		}
		return sinkErr(err)
	}
	return nil
}

// openAt opens d at offset, also from a source that can't start in the middle.
func (c *copier) openAt(ctx context.Context, d oci.Descriptor, offset int64) (io.ReadCloser, error) {
	if ro, ok := c.src.(RangeOpener); ok && offset > 0 {
		if r, err := ro.OpenAt(ctx, d, offset, -1); !errors.Is(err, oci.ErrUnsupported) {
			return r, err
		}
	}
	r, err := c.src.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, offset); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// sourceReader counts what passes and keeps the source's own error, so that a
// failed copy can say which end failed. It is a Rewinder where it has open.
type sourceReader struct {
	r     io.ReadCloser
	n     int64
	moved func(int64)
	open  func(offset int64) (io.ReadCloser, error)
	err   error
}

// Rewind implements Rewinder.
func (s *sourceReader) Rewind(offset int64) error {
	s.r.Close()
	r, err := s.open(offset)
	if err != nil {
		s.err = err
		return err
	}
	s.r, s.n = r, offset
	return nil
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if n > 0 {
		s.moved(s.n)
	}
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func sourceErr(err error) error { return endErr("source", err) }
func sinkErr(err error) error   { return endErr("destination", err) }

func endErr(end string, err error) error {
	var already *CopyError
	if errors.As(err, &already) || errors.Is(err, context.Canceled) {
		return err
	}
	return &CopyError{End: end, Err: err}
}
