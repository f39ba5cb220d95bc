package store

import (
	"context"
	"io"

	"github.com/strake-project/strake/internal/oci/layer"
)

// TakeTar stores r, an uncompressed layer tar of anybody's making, byte for
// byte as a new layer: hash, table of contents and copy in one pass. What can
// be no layer fails with oci.ErrInvalid, and nothing of it stays.
func (s *Store) TakeTar(ctx context.Context, r io.Reader) (*layer.TOC, error) {
	a, err := s.newAside()
	if err != nil {
		return nil, err
	}
	defer a.discard()
	toc, err := layer.Index(io.TeeReader(readerWith(ctx, r), a))
	if a.err != nil {
		return nil, s.failed(a.path, a.err)
	}
	if err != nil {
		return nil, err
	}
	return toc, s.admitLayer(ctx, a, toc)
}
