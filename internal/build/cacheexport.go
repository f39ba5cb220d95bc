package build

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/strake-project/strake/internal/build/cache"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// CacheExport is a place that the build's cache goes to.
type CacheExport struct {
	Name string // "registry", "client directory"
	// Inline puts the records into the image's config; nothing else counts then.
	Inline bool
	Sink   content.Sink
	Ref    ref.Ref
	// Max exports the layers of all steps, not of the result's only.
	Max         bool
	Compression content.Compression
	// Mounts exports the contents of the cache mounts that the build used.
	Mounts bool
	// IgnoreErrors makes a failed export a warning.
	IgnoreErrors bool
}

// journal is what a build has solved, in terms of keys.
type journal struct {
	mu       sync.Mutex
	steps    []journalStep
	contents map[[2]oci.Digest]oci.Digest
	base     map[oci.Digest]base
	mounts   map[string]cache.Mount // by key
}

// base is a layer of an image that the build uses.
type base struct {
	oci.Descriptor
	img *pulled
}

type journalStep struct {
	name string
	key  key
	out  []*Snapshot
}

func (j *journal) step(s *step, k key, out []*Snapshot) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.steps = append(j.steps, journalStep{s.v.Name, k, out})
}

func (j *journal) content(of, which, d oci.Digest) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.contents == nil {
		j.contents = map[[2]oci.Digest]oci.Digest{}
	}
	j.contents[[2]oci.Digest{of, which}] = d
}

// bases notes the layers of an image that the build starts from.
func (j *journal) bases(img *pulled) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.base == nil {
		j.base = map[oci.Digest]base{}
	}
	for _, l := range img.layers {
		if b := j.base[l.DiffID]; b.img == nil || b.img.elsewhere != nil {
			j.base[l.DiffID] = base{l.Descriptor, img}
		}
	}
}

// baseOf is how a base image of this build has the layer; the zero value where
// none has.
func (j *journal) baseOf(diffID oci.Digest) base {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.base[diffID]
}

// results are the layers that the images consist of.
func results(images []Image) map[oci.Digest]bool {
	all := map[oci.Digest]bool{}
	for _, img := range images {
		layers, _ := outputLayers(img.Snapshot) // a view, which has none, is in no cache
		for _, l := range layers {
			all[l.layer.DiffID] = true
		}
	}
	return all
}

// draft is a cache document in the making.
type draft struct {
	doc   cache.Document
	index map[oci.Digest]int // of layers, by diffID
	from  []origin           // of each layer
}

// document turns the journal into records. An output's layers are named where
// keep lets all of them through.
func (j *journal) document(keep func(diffID oci.Digest) bool) *draft {
	d := &draft{index: map[oci.Digest]int{}}
	j.mu.Lock()
	steps, contents := slices.Clone(j.steps), maps.Clone(j.contents)
	j.mu.Unlock()
	slices.SortFunc(steps, func(a, b journalStep) int { return strings.Compare(string(a.key.digest), string(b.key.digest)) })
	steps = slices.CompactFunc(steps, func(a, b journalStep) bool { return a.key.digest == b.key.digest })
	for _, s := range steps {
		r := cache.Record{Key: s.key.digest, Name: s.name, Outputs: make([]*cache.Output, len(s.out))}
		for i, snap := range s.out {
			if layers, ok := outputLayers(snap); ok && !slices.ContainsFunc(layers, func(o origin) bool { return !keep(o.layer.DiffID) }) {
				r.Outputs[i] = d.output(layers)
			}
		}
		d.doc.Records = append(d.doc.Records, r)
	}
	for k, c := range contents {
		d.doc.Contents = append(d.doc.Contents, cache.Content{Of: k[0], Copy: k[1], Content: c})
	}
	slices.SortFunc(d.doc.Contents, func(a, b cache.Content) int {
		return strings.Compare(string(a.Of)+string(a.Copy), string(b.Of)+string(b.Copy))
	})
	return d
}

// layerOf is a cache's layer as a snapshot has it.
func layerOf(l *cache.Layer) Layer {
	out := Layer{DiffID: l.DiffID, CreatedBy: l.CreatedBy}
	if l.Created != nil {
		out.Created = *l.Created
	}
	if l.Base != nil {
		out.Descriptor = *l.Base
	} else {
		out.Descriptor = oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: l.DiffID, Size: l.Size}
	}
	return out
}

func (d *draft) output(layers []origin) *cache.Output {
	o := &cache.Output{Layers: []int{}}
	for _, l := range layers {
		n, ok := d.index[l.layer.DiffID]
		if !ok {
			n = len(d.doc.Layers)
			d.index[l.layer.DiffID] = n
			d.doc.Layers = append(d.doc.Layers, cacheLayer(l.layer))
			d.from = append(d.from, l)
		} else if d.from[n].src != nil && l.src == nil {
			d.from[n] = l // the store's is nearer
		}
		o.Layers = append(o.Layers, n)
	}
	return o
}

func cacheLayer(l Layer) cache.Layer {
	c := cache.Layer{DiffID: l.DiffID, CreatedBy: l.CreatedBy}
	if !l.Created.IsZero() {
		c.Created = &l.Created
	}
	if oci.IsPlainLayer(l.Descriptor.MediaType) {
		c.Size = l.Descriptor.Size
	} else {
		c.Base = &l.Descriptor
	}
	return c
}

// inlineCache is the document for an image's config. It names the layers of
// this image only.
func (e *Engine) inlineCache(img *Image) (json.RawMessage, error) {
	own := map[oci.Digest]int{}
	for i, l := range img.Snapshot.DiffIDs() {
		own[l] = i
	}
	d := e.journal.document(func(diffID oci.Digest) bool { _, ok := own[diffID]; return ok })
	// The image's layers, in its order.
	layers := make([]cache.Layer, len(img.Snapshot.DiffIDs()))
	for i := range layers {
		layers[i] = cacheLayer(img.Snapshot.Layers[i])
		layers[i].DiffID, layers[i].Base = "", nil
	}
	for _, r := range d.doc.Records {
		for _, o := range r.Outputs {
			if o == nil {
				continue
			}
			for i, n := range o.Layers {
				o.Layers[i] = own[d.doc.Layers[n].DiffID]
			}
		}
	}
	d.doc.Layers = layers
	return cache.Inline(&d.doc)
}

// inline tells whether the image's config takes the cache.
func (e *Engine) inline() bool {
	return slices.ContainsFunc(e.opt.CacheTo, func(c CacheExport) bool { return c.Inline })
}

// ExportCaches writes the build's cache to the places in Options.CacheTo, after
// Export. images are its results.
func (e *Engine) ExportCaches(ctx context.Context, images []Image) error {
	for _, to := range e.opt.CacheTo {
		if to.Inline {
			continue
		}
		err := e.Work("exporting cache to "+to.Name, func(w *Work) error { return e.exportCache(ctx, w, to, results(images)) })
		if err != nil && (!to.IgnoreErrors || ctx.Err() != nil) {
			return fmt.Errorf("error writing cache to %s: %w", to.Name, err)
		}
	}
	return nil
}

func (e *Engine) exportCache(ctx context.Context, w *Work, to CacheExport, result map[oci.Digest]bool) error {
	var d *draft
	var blobs []cache.Blob
	err := w.Do("preparing build cache for export", func() (err error) {
		d = e.journal.document(func(diffID oci.Digest) bool { return to.Max || result[diffID] })
		blobs, err = e.packLayers(ctx, d, to.Compression)
		return err
	})
	if err != nil {
		return err
	}
	if to.Mounts {
		if err := w.Do("packing cache mounts", func() (err error) {
			blobs, err = e.packMounts(ctx, w, d, blobs, to.Compression)
			return err
		}); err != nil {
			return err
		}
	}
	top, err := cache.Export(ctx, to.Sink, to.Ref, &d.doc, blobs, e.opt.Store, func(ev content.Event) {
		if k := ev.Kind; (k == content.Done || k == content.Exists || k == content.Mounted) && oci.IsLayer(ev.Descriptor.MediaType) {
			w.Note("writing layer " + string(ev.Descriptor.Digest))
		}
	})
	if err != nil {
		return err
	}
	w.Note("writing cache image manifest " + string(top.Digest))
	return nil
}

// packLayers packs the document's layers, side by side, and says where each
// one's bytes are.
func (e *Engine) packLayers(ctx context.Context, d *draft, c content.Compression) ([]cache.Blob, error) {
	packed := make([]cache.Blob, len(d.from))
	err := each(ctx, len(d.from), func(ctx context.Context, i int) error {
		from := d.from[i]
		switch {
		case d.doc.Layers[i].Base != nil:
			return nil
		case from.src != nil:
			packed[i] = cache.Blob{Descriptor: from.blob, From: from.src}
			return nil
		}
		select { // as many at once as commands
		case e.slots <- struct{}{}:
			defer func() { <-e.slots }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		desc, err := e.opt.Store.Pack(ctx, from.layer.Descriptor, c)
		packed[i] = cache.Blob{Descriptor: desc, From: e.opt.Store}
		return err
	})
	if err != nil {
		return nil, err
	}
	var blobs []cache.Blob
	for i := range packed {
		if d.doc.Layers[i].Base == nil {
			d.doc.Layers[i].Blob = len(blobs)
			blobs = append(blobs, packed[i])
		}
	}
	return blobs, nil
}
