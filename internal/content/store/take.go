package store

import (
	"context"
	"io"
	"os"

	"github.com/strake-project/strake/internal/oci"
)

// TakeFile makes the file at path, in a scratch directory of this store, the
// blob d, by rename instead of the copy that Put would write. Its bytes are
// checked as Put does. The file is gone afterwards, also where it was wrong or
// the blob existed. Manifests are Put.
func (s *Store) TakeFile(ctx context.Context, d oci.Descriptor, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return s.failed(path, err)
	}
	a := &aside{s: s, f: f, path: path, n: d.Size, flushed: d.Size}
	defer a.discard()
	if ok, err := s.Has(ctx, d); err != nil || ok {
		return err
	}
	if oci.IsManifest(d.MediaType) || oci.IsIndex(d.MediaType) {
		return s.Put(ctx, d, f)
	}
	if _, err := io.CopyBuffer(io.Discard, onlyReader{oci.Verify(f, d)}, buffer(d.Size)); err != nil {
		return s.failed(path, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return s.failed(path, err)
	}
	return s.admit(ctx, a, d, nil)
}
