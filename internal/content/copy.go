package content

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
	// Usable refuses an image with a config that is none, before its manifest
	// is put: what a registry may keep for others is nothing to run. The
	// destination must be a Source too. Artifacts pass.
	Usable bool
	// Progress, if set, is called with each event; calls may come from several
	// goroutines at once.
	Progress func(Event)
	// Resolved is what the source is known to have under the reference; unset,
	// the source is asked.
	Resolved *oci.Descriptor
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
	d, err := c.resolve(ctx)
	if err != nil {
		return oci.Descriptor{}, sourceErr(err)
	}
	c.event(Event{Kind: Resolved, Descriptor: d})
	d, err = c.manifest(ctx, d, maxDepth)
	if err != nil {
		return oci.Descriptor{}, err
	}
	if err := dst.Tag(ctx, c.known(d), d); err != nil {
		return oci.Descriptor{}, sinkErr(err)
	}
	c.event(Event{Kind: Tagged, Descriptor: d})
	return d, nil
}

func (c *copier) resolve(ctx context.Context) (oci.Descriptor, error) {
	if c.opt.Resolved != nil {
		return *c.opt.Resolved, nil
	}
	return c.src.Resolve(ctx, c.from)
}

// known is the name to tag d with: with its digest where the repository of that
// name is where d came from, which the destination may want to remember.
func (c *copier) known(d oci.Descriptor) ref.Ref {
	to := c.to
	_, fromRegistry := c.src.(Mounter)
	_, remembers := c.dst.(OriginRecorder)
	if fromRegistry && remembers && to.Repository() == c.from.Repository() {
		to.Digest = d.Digest
	}
	return to
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
				return nil, sourceErr(err)
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
	if c.opt.Usable {
		if err := usable(ctx, c.dst, body); err != nil {
			return d, sourceErr(err)
		}
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

// usable reads the config that a manifest names from where it was copied to. An
// error has docker's words.
func usable(ctx context.Context, dst Sink, manifest []byte) error {
	src, ok := dst.(Source)
	var m oci.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil || !ok || m.Config.MediaType != oci.MediaTypeConfig && m.Config.MediaType != oci.MediaTypeDockerConfig {
		return err
	}
	body, err := ReadAll(ctx, src, m.Config)
	if err != nil {
		return err
	}
	type config struct {
		RootFS struct {
			Type    string       `json:"type"`
			DiffIDs []oci.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	var conf config
	if err := json.Unmarshal(body, &conf); err != nil {
		return fmt.Errorf("unmarshal image config: %v: %w", err, oci.ErrInvalid)
	}
	if conf.RootFS.Type == "layers" && len(conf.RootFS.DiffIDs) != len(m.Layers) {
		return fmt.Errorf("mismatched image rootfs and manifest layers: %w", oci.ErrInvalid)
	}
	return nil
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

func sourceErr(err error) error { return endErr("source", err) }
func sinkErr(err error) error   { return endErr("destination", err) }

func endErr(end string, err error) error {
	var already *CopyError
	if errors.As(err, &already) || errors.Is(err, context.Canceled) {
		return err
	}
	return &CopyError{End: end, Err: err}
}
