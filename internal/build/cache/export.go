package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/opencontainers/image-spec/specs-go"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Blob is a packed layer and where it lies.
type Blob struct {
	oci.Descriptor
	From content.Source
}

// Origins knows which repositories hold a blob, and learns of one more.
type Origins interface {
	content.OriginLister
	content.OriginRecorder
}

// Inline returns the document for an image's config: layers have neither diffID
// nor blob, and are in the image's order.
func Inline(d *Document) ([]byte, error) { return d.encode() }

// Export writes the document with its layers to dst as r, layers first and the
// tag last. What dst has already is not sent.
func Export(ctx context.Context, dst content.Sink, r ref.Ref, d *Document, blobs []Blob, known Origins, progress func(content.Event)) (oci.Descriptor, error) {
	config, err := d.encode()
	if err != nil {
		return oci.Descriptor{}, err
	}
	m := oci.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: oci.MediaTypeManifest,
		Config:    oci.DescriptorOf(MediaType, config),
		Layers:    []oci.Descriptor{},
	}
	s := &source{Origins: known, blobs: map[oci.Digest]content.Source{}}
	for _, b := range blobs {
		m.Layers = append(m.Layers, oci.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size})
		s.blobs[b.Digest] = b.From
	}
	if s.manifest, err = json.Marshal(m); err != nil {
		return oci.Descriptor{}, err
	}
	if len(s.manifest) > oci.MaxManifestSize {
		return oci.Descriptor{}, fmt.Errorf("the cache has %d layers, more than one manifest can name: %w", len(blobs), oci.ErrUnsupported)
	}
	s.top = oci.DescriptorOf(oci.MediaTypeManifest, s.manifest)
	s.small = map[oci.Digest][]byte{m.Config.Digest: config, s.top.Digest: s.manifest}
	return content.Copy(ctx, dst, r, s, r, content.CopyOptions{Progress: progress})
}

// source is a cache that is nowhere yet as a content.Source.
type source struct {
	Origins
	top      oci.Descriptor
	manifest []byte
	small    map[oci.Digest][]byte
	blobs    map[oci.Digest]content.Source
}

// Resolve implements content.Source.
func (s *source) Resolve(context.Context, ref.Ref) (oci.Descriptor, error) { return s.top, nil }

// Open implements content.Source.
func (s *source) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if b, ok := s.small[d.Digest]; ok {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	from := s.blobs[d.Digest]
	if from == nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, oci.ErrNotFound)
	}
	return from.Open(ctx, d)
}
