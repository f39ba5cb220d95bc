package store

import (
	"context"
	"fmt"
	"io"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// PeekFile is OpenFile for few files: of a layer that is only packed no tree is
// made; it is decompressed up to the file. That costs less than writing all of
// its files for the sake of one, and works in a store that cannot be written.
func (s *Store) PeekFile(ctx context.Context, diffID oci.Digest, e *layer.Entry) (io.ReadCloser, error) {
	packed, err := s.onlyPacked(ctx, diffID)
	if err != nil {
		return nil, err
	}
	if !packed || e.Offset < 0 || e.Digest == "" {
		return s.OpenFile(ctx, diffID, e)
	}
	r, err := s.Open(ctx, oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: diffID})
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, readerWith(ctx, r), e.Offset); err != nil {
		r.Close()
		return nil, fmt.Errorf("layer %s: %s: %w", diffID, e.Path, err)
	}
	// The file's own digest is checked; the layer's end is not reached.
	file := oci.Verify(io.LimitReader(r, e.Size), oci.Descriptor{Digest: e.Digest, Size: e.Size})
	return &stream{Reader: file, close: r.Close}, nil
}

// onlyPacked tells whether the layer has neither its plain tar nor a tree here.
func (s *Store) onlyPacked(ctx context.Context, diffID oci.Digest) (bool, error) {
	if err := checkDigest(diffID); err != nil {
		return false, err
	}
	packed := false
	err := s.read(ctx, func(t *tx) error {
		f, err := s.find(t, diffID)
		if err != nil || f.kind != formPacked {
			return err
		}
		kind, _, err := t.tree(diffID)
		packed = kind == treeNone
		return err
	})
	return packed, err
}
