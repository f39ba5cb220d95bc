package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/image-spec/specs-go"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Form says how images are put together. The zero value is one manifest of
// OCI types over the layers as they are.
type Form struct {
	// Index makes an index also of a single platform's image.
	Index bool
	// Packing of the layers, where Pack is set: those that are plain, and with
	// Force all.
	Packing     content.Compression
	Pack, Force bool
	// Level of the packing, where it is not the usual one.
	Level *int
	// DockerTypes writes docker's media types instead of OCI's.
	DockerTypes bool
	// Rewrite makes no file of the layers above the base later than the
	// image's Epoch.
	Rewrite bool
	// Leave lets layers stay where they are that only a registry or a cache has:
	// the image is for sending on, and cannot be kept.
	Leave bool
	// Squash makes the layers above the base one.
	Squash      bool
	Annotations Annotations
	// Attest, where it is set, adds attestations and makes an index.
	Attest *Attest
}

// Annotations are those of an image's manifests and its index, and of the
// descriptors that name them. Those of manifests are by platform ("" for all).
type Annotations struct {
	Index, IndexDescriptor       map[string]string
	Manifest, ManifestDescriptor map[string]map[string]string
}

// of merges what byPlatform has for all and for p.
func of(byPlatform map[string]map[string]string, p oci.Platform) map[string]string {
	var out map[string]string
	for _, key := range []string{"", platformKey(p)} {
		for k, v := range byPlatform[key] {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

// Exported names a finished image.
type Exported struct {
	// Target is what a name points at: a manifest, or an index.
	Target oci.Descriptor
	// ID is the config's digest, of the first platform.
	ID oci.Digest
}

// Assembly is an image that is complete but has no place yet: its layers are
// in the store, or where Form.Leave left them, its config, manifest and index
// only here. It is a content.Source, so that it can be pushed or archived
// without being kept.
type Assembly struct {
	Exported
	store  *store.Store
	bodies []body // children first
	left   []origin
}

// Left is the number of layers that are not in the store.
func (a *Assembly) Left() int { return len(a.left) }

// leftAt finds a layer that is elsewhere, by its diffID or its packed bytes.
func (a *Assembly) leftAt(d oci.Digest) (origin, bool) {
	for _, o := range a.left {
		if o.layer.DiffID == d || o.blob.Digest == d {
			return o, true
		}
	}
	return origin{}, false
}

type body struct {
	oci.Descriptor
	bytes []byte
}

// As is the image under the manifest or index that it became elsewhere.
func (a *Assembly) As(target oci.Descriptor) *Assembly {
	return &Assembly{Exported: Exported{target, a.ID}, store: a.store, bodies: a.bodies, left: a.left}
}

func (a *Assembly) add(mediaType string, b []byte) oci.Descriptor {
	d := oci.DescriptorOf(mediaType, b)
	a.bodies = append(a.bodies, body{d, b})
	return d
}

func (a *Assembly) addJSON(mediaType string, v any) (oci.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return a.add(mediaType, b), nil
}

func (a *Assembly) find(d oci.Digest) ([]byte, bool) {
	for _, b := range a.bodies {
		if b.Digest == d {
			return b.bytes, true
		}
	}
	return nil, false
}

// Resolve implements content.Source: every name is this image's.
func (a *Assembly) Resolve(context.Context, ref.Ref) (oci.Descriptor, error) { return a.Target, nil }

// Open implements content.Source.
func (a *Assembly) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if b, ok := a.find(d.Digest); ok {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	if o, ok := a.leftAt(d.Digest); ok {
		return o.src.Open(ctx, d)
	}
	return a.store.Open(ctx, d)
}

// OpenAt implements content.RangeOpener.
func (a *Assembly) OpenAt(ctx context.Context, d oci.Descriptor, offset, length int64) (io.ReadCloser, error) {
	if _, ok := a.find(d.Digest); ok {
		return nil, fmt.Errorf("%s: a part of it: %w", d.Digest, oci.ErrUnsupported)
	}
	if o, ok := a.leftAt(d.Digest); ok {
		ranges, ok := o.src.(content.RangeOpener)
		if !ok {
			return nil, fmt.Errorf("%s: a part of it: %w", d.Digest, oci.ErrUnsupported)
		}
		return ranges.OpenAt(ctx, d, offset, length)
	}
	return a.store.OpenAt(ctx, d, offset, length)
}

// Pack implements content.Packer.
func (a *Assembly) Pack(ctx context.Context, d oci.Descriptor, c content.Compression) (oci.Descriptor, error) {
	return a.store.Pack(ctx, d, c)
}

// Origins implements content.OriginLister.
func (a *Assembly) Origins(ctx context.Context, d oci.Descriptor) ([]ref.Ref, error) {
	if o, ok := a.leftAt(d.Digest); ok {
		return []ref.Ref{o.ref}, nil
	}
	return a.store.Origins(ctx, d)
}

// Assemble puts images together. Called under the build's lease. The same
// images give the same digests.
func (e *Engine) Assemble(ctx context.Context, w *Work, images []Image, form Form) (*Assembly, error) {
	a := &Assembly{store: e.opt.Store}
	if err := form.check(images); err != nil {
		return nil, err
	}
	var manifests, attestations []oci.Descriptor
	finished := make([]Image, len(images))
	if err := w.Do("exporting layers", func() (err error) {
		for i := range images {
			if finished[i], err = e.finishLayers(ctx, a, images[i], form); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	for _, img := range finished {
		d, id, err := e.assembleOne(ctx, w, a, img, form)
		if err != nil {
			return nil, err
		}
		if a.ID == "" {
			a.ID = id
		}
		manifests = append(manifests, d)
		if form.Attest == nil {
			continue
		}
		if d, err = e.attest(ctx, a, img, d, form.Attest); err != nil {
			return nil, err
		}
		attestations = append(attestations, d)
	}
	a.Target = manifests[0]
	manifests = append(manifests, attestations...)
	if !form.Index && len(manifests) == 1 {
		return a, nil
	}
	mediaType := oci.MediaTypeIndex
	if form.DockerTypes {
		mediaType = oci.MediaTypeDockerList
	}
	var err error
	a.Target, err = a.addJSON(mediaType, oci.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType,
		Manifests: manifests, Annotations: form.Annotations.Index,
	})
	a.Target.Annotations = form.Annotations.IndexDescriptor
	return a, err
}

// check refuses annotations that would have no place, in BuildKit's words.
func (f *Form) check(images []Image) error {
	known := map[string]bool{"": true}
	for _, img := range images {
		known[platformKey(img.Platform)] = true
	}
	n := len(f.Annotations.Index) + len(f.Annotations.IndexDescriptor)
	for _, byPlatform := range []map[string]map[string]string{f.Annotations.Manifest, f.Annotations.ManifestDescriptor} {
		for p := range byPlatform {
			if !known[p] {
				return fmt.Errorf("invalid annotation: no platform %s found in source", p)
			}
		}
	}
	if f.DockerTypes && n+len(f.Annotations.ManifestDescriptor) > 0 {
		return errors.New(`cannot export annotations with "oci-mediatypes=false"`)
	}
	if f.DockerTypes && f.Attest != nil {
		return errors.New(`cannot export attestations with "oci-mediatypes=false"`)
	}
	if n > 0 && !f.Index && f.Attest == nil && len(images) == 1 {
		return errors.New("index annotations not supported for single platform export")
	}
	return nil
}

// finishLayers gives img the layers that it is to have in form.
func (e *Engine) finishLayers(ctx context.Context, a *Assembly, img Image, form Form) (Image, error) {
	if form.Leave && a.leave(&img, form) {
		return e.withCache(img)
	}
	var err error
	if img.Snapshot, err = img.Snapshot.layered(ctx, e.opt.Store, e.start); err != nil {
		return img, err
	}
	if form.Rewrite && img.Epoch != nil {
		if img, err = e.rewrite(ctx, img); err != nil {
			return img, err
		}
	}
	if form.Squash {
		if img, err = e.squash(ctx, img); err != nil {
			return img, err
		}
	}
	return e.withCache(img)
}

// leave makes img one of layers that stay where they are, if each of them is
// there as form wants it. That a blob is the layer that its cache or its
// image's config says is found out by who unpacks it.
func (a *Assembly) leave(img *Image, form Form) bool {
	if form.Squash || form.Force || form.Level != nil || form.Rewrite && img.Epoch != nil {
		return false
	}
	list, ok := outputLayers(img.Snapshot)
	if !ok {
		return false
	}
	packing := content.Gzip
	if form.Pack {
		packing = form.Packing
	}
	layers := make([]Layer, len(list))
	var left []origin
	for i, o := range list {
		layers[i] = o.layer
		if o.src == nil {
			continue
		}
		ours := oci.IsPlainLayer(o.layer.Descriptor.MediaType) // made by a step
		if oci.IsPlainLayer(o.blob.MediaType) || ours && !strings.HasSuffix(o.blob.MediaType, string(packing)) {
			return false
		}
		left = append(left, o)
	}
	if len(left) == 0 {
		return false
	}
	for _, o := range left {
		if _, twice := a.leftAt(o.layer.DiffID); !twice {
			a.left = append(a.left, o)
		}
	}
	img.Snapshot = newSnapshot(a.store, layers, "")
	return true
}

// withCache gives img the inline cache that it is to carry.
func (e *Engine) withCache(img Image) (Image, error) {
	if !e.inline() {
		return img, nil
	}
	var err error
	img.cache, err = e.inlineCache(&img)
	return img, err
}

func (e *Engine) assembleOne(ctx context.Context, w *Work, a *Assembly, img Image, form Form) (oci.Descriptor, oci.Digest, error) {
	config, err := finishConfig(img)
	if err != nil {
		return oci.Descriptor{}, "", err
	}
	types := struct{ manifest, config string }{oci.MediaTypeManifest, oci.MediaTypeConfig}
	if form.DockerTypes {
		types.manifest, types.config = oci.MediaTypeDockerMani, oci.MediaTypeDockerConfig
	}
	m := oci.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types.manifest,
		Config: a.add(types.config, config), Layers: []oci.Descriptor{},
		Annotations: of(form.Annotations.Manifest, img.Platform),
	}
	if img.Snapshot != nil {
		for _, l := range img.Snapshot.Layers {
			d, err := e.packed(ctx, w, a, l, form)
			if err != nil {
				return oci.Descriptor{}, "", err
			}
			m.Layers = append(m.Layers, typedLayer(d, form.DockerTypes))
		}
	}
	d, err := a.addJSON(types.manifest, m)
	p := img.Platform
	d.Platform = &p
	d.Annotations = of(form.Annotations.ManifestDescriptor, p)
	return d, m.Config.Digest, err
}

// packed is the layer in the packing that form asks for.
func (e *Engine) packed(ctx context.Context, w *Work, a *Assembly, l Layer, form Form) (oci.Descriptor, error) {
	if o, ok := a.leftAt(l.DiffID); ok {
		return o.blob, nil
	}
	plain := oci.IsPlainLayer(l.Descriptor.MediaType)
	if !form.Pack || !plain && !form.Force || plain && form.Packing == content.Uncompressed {
		return l.Descriptor, nil
	}
	d := l.Descriptor
	if !plain {
		toc, err := e.opt.Store.TOC(ctx, l.DiffID)
		if err != nil {
			return d, err
		}
		d = plainLayer(toc).Descriptor
		if form.Packing == content.Uncompressed {
			return d, nil // the store decompresses it when it is read
		}
	}
	err := w.Do("compressing "+string(l.DiffID), func() (err error) {
		d, err = e.opt.Store.PackLevel(ctx, d, form.Packing, form.Level)
		return err
	})
	return d, err
}

// typedLayer gives a layer the media type of the manifest's family: a manifest
// does not mix the two.
func typedLayer(d oci.Descriptor, docker bool) oci.Descriptor {
	for _, pair := range [][2]string{
		{oci.MediaTypeLayer, oci.MediaTypeDockerLayer},
		{oci.MediaTypeLayerGzip, oci.MediaTypeDockerGzip},
		{oci.MediaTypeLayerZstd, oci.MediaTypeDockerZstd},
	} {
		switch {
		case docker && d.MediaType == pair[0]:
			d.MediaType = pair[1]
		case !docker && d.MediaType == pair[1]:
			d.MediaType = pair[0]
		}
	}
	out := oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	if !docker {
		out.Annotations = d.Annotations
	}
	return out
}

// Keep puts an assembled image into the store and tags it as names. Without
// names the image is a dangling one, which stays until it is pruned.
func (e *Engine) Keep(ctx context.Context, w *Work, a *Assembly, names []ref.Ref) error {
	for _, b := range a.bodies {
		put := func() error { return e.opt.Store.Put(ctx, b.Descriptor, bytes.NewReader(b.bytes)) }
		var err error
		switch {
		case oci.IsManifest(b.MediaType) && b.Digest == a.Target.Digest, b.Digest == a.ID:
			err = put() // one line says it
		case oci.IsIndex(b.MediaType):
			err = w.Do("exporting manifest list "+string(b.Digest), put)
		case oci.IsManifest(b.MediaType):
			err = w.Do("exporting manifest "+string(b.Digest), put)
		default:
			err = put()
		}
		if err != nil {
			return err
		}
	}
	w.Note("writing image " + string(a.ID))
	for _, n := range names {
		if err := w.Do("naming to "+n.String(), func() error { return e.opt.Store.Tag(ctx, n, a.Target) }); err != nil {
			return err
		}
	}
	return nil
}
