// Package image looks into images and makes new ones of them: files read and
// copied out, two images compared, a config changed, layers squashed. Nothing is
// unpacked for it and nothing is built.
//
// Its invariants: what it reads it sees through tables of contents; what it
// makes has the same digest on every machine for the same input; fields of a
// config or manifest that strake does not know are kept. An image that is only
// looked at never gets a name in the store.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Image is an image of one platform that can be looked into.
type Image struct {
	Manifest oci.Descriptor
	// Config as it was parsed; what the store has is in raw.
	Config oci.Image
	// Layers are the manifest's.
	Layers []oci.Descriptor
	// Tree is all layers as one file system, for reading a few files: see Many.
	// After Fetch it is what Find and Complete have made known.
	Tree *tree.Stack

	rawManifest, rawConfig []byte
	tocs                   []*layer.TOC
	store                  *store.Store
	toc                    tocFunc
	unknown                int // how many layers, the lowest, have no table of contents yet
}

// Many is Tree for reading many files: a layer that is only packed is unpacked
// once instead of being decompressed for each file.
func (im *Image) Many() *tree.Stack { return im.lower(len(im.tocs)) }

// lower is Many of the lowest n layers.
func (im *Image) lower(n int) *tree.Stack {
	return tree.New(im.tocs[:n], func(ctx context.Context, i int, e *layer.Entry) (io.ReadCloser, error) {
		return im.store.OpenFile(ctx, im.tocs[i].DiffID, e)
	})
}

// Size is the sum of the files' sizes over all layers, as docker counts it.
func (im *Image) Size() int64 {
	var n int64
	for _, t := range im.tocs {
		n += t.FileBytes()
	}
	return n
}

// Load opens the image whose manifest, d, is in the store. Called under a lease.
func Load(ctx context.Context, s *store.Store, d oci.Descriptor) (*Image, error) {
	body, err := content.ReadAll(ctx, s, d)
	if err != nil {
		return nil, err
	}
	im, err := open(ctx, s, s, d, body, func(ctx context.Context, _ oci.Descriptor, diffID oci.Digest) (*layer.TOC, error) {
		return s.TOC(ctx, diffID)
	})
	if err != nil {
		return nil, err
	}
	return im, im.Complete(ctx)
}

// LoadConfig is Load for Mutate alone: the tree is not there, so that no layer
// is read for its table of contents.
func LoadConfig(ctx context.Context, s *store.Store, d oci.Descriptor) (*Image, error) {
	body, err := content.ReadAll(ctx, s, d)
	if err != nil {
		return nil, err
	}
	return open(ctx, s, s, d, body, nil)
}

// Fetch opens the image that r names in src, a registry, for platform p. Its
// layers come with Find and Complete: those that the store lacks are put into
// it, plain and without a name, under ctx's lease: the next look finds them,
// the next collection takes them.
func Fetch(ctx context.Context, s *store.Store, src content.Source, r ref.Ref, p oci.Platform) (*Image, error) {
	top, err := src.Resolve(ctx, r)
	if err != nil {
		return nil, err
	}
	d, body, err := content.Manifest(ctx, src, top, p)
	if err != nil {
		return nil, err
	}
	return open(ctx, s, src, d, body, func(ctx context.Context, l oci.Descriptor, diffID oci.Digest) (*layer.TOC, error) {
		return fetchLayer(ctx, s, src, l, diffID)
	})
}

type tocFunc func(ctx context.Context, l oci.Descriptor, diffID oci.Digest) (*layer.TOC, error)

func open(ctx context.Context, s *store.Store, src content.Source, d oci.Descriptor, body []byte, toc tocFunc) (*Image, error) {
	m, err := oci.ParseManifest(d, body)
	if err != nil {
		return nil, err
	}
	raw, err := content.ReadAll(ctx, src, m.Config)
	if err != nil {
		return nil, err
	}
	config, err := oci.ParseConfig(m.Config, raw)
	if err != nil {
		return nil, err
	}
	im := &Image{Manifest: d, Config: *config, Layers: m.Layers, rawManifest: body, rawConfig: raw, store: s}
	diffIDs := im.Config.RootFS.DiffIDs
	if len(diffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("manifest %s has %d layers, its config %d: no image: %w", d.Digest, len(m.Layers), len(diffIDs), oci.ErrInvalid)
	}
	if toc == nil {
		return im, nil
	}
	im.toc, im.tocs = toc, make([]*layer.TOC, len(diffIDs))
	im.known(len(diffIDs))
	return im, nil
}

// fetchLayer is the table of contents of a layer that is in the store or comes
// from src now.
func fetchLayer(ctx context.Context, s *store.Store, src content.Source, l oci.Descriptor, diffID oci.Digest) (*layer.TOC, error) {
	if err := diffID.Validate(); err != nil {
		return nil, fmt.Errorf("layer %q: %w", diffID, oci.ErrInvalid)
	}
	has, err := s.Has(ctx, oci.Descriptor{Digest: diffID})
	if err != nil {
		return nil, err
	}
	if has {
		return s.TOC(ctx, diffID)
	}
	if !oci.IsLayer(l.MediaType) {
		return nil, fmt.Errorf("layer %s has media type %q: %w", l.Digest, l.MediaType, oci.ErrUnsupported)
	}
	r, err := src.Open(ctx, l)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	plain, _, err := layer.Decompress(oci.Verify(r, l))
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	toc, err := s.TakeTar(ctx, plain)
	if err = errors.Join(err, plain.Close()); err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	if toc.DiffID != diffID {
		return nil, fmt.Errorf("layer %s: %w", l.Digest, &oci.DigestError{Want: diffID, Got: toc.DiffID})
	}
	return toc, nil
}
