package store

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// Spool is OpenFile for one pass over all files of some layers. A layer that is
// only packed is decompressed once, into a file without a name: no tree of it
// is made, which would be a file for each of its files and would stay.
type Spool struct {
	store *Store
	mu    sync.Mutex
	plain map[oci.Digest]*spooled
}

type spooled struct {
	once sync.Once
	file *os.File // nil where the layer has another form
	err  error
}

// NewSpool returns a Spool; the caller closes it.
func (s *Store) NewSpool() *Spool { return &Spool{store: s, plain: map[oci.Digest]*spooled{}} }

// Close lets go of the files. Readers are of no use after it.
func (p *Spool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	for _, one := range p.plain {
		if one.file != nil {
			err = errors.Join(err, one.file.Close())
		}
	}
	p.plain = nil
	return err
}

// OpenFile reads one file's content out of a layer, under ctx's lease.
func (p *Spool) OpenFile(ctx context.Context, diffID oci.Digest, e *layer.Entry) (io.ReadCloser, error) {
	if e.Offset < 0 || e.Digest == "" {
		return p.store.OpenFile(ctx, diffID, e)
	}
	p.mu.Lock()
	if p.plain == nil {
		p.mu.Unlock()
		return nil, os.ErrClosed
	}
	one := p.plain[diffID]
	if one == nil {
		one = new(spooled)
		p.plain[diffID] = one
	}
	p.mu.Unlock()
	one.once.Do(func() { one.file, one.err = p.store.spool(ctx, diffID) })
	if one.err != nil {
		return nil, one.err
	}
	if one.file == nil {
		return p.store.OpenFile(ctx, diffID, e)
	}
	r := oci.Verify(io.NewSectionReader(one.file, e.Offset, e.Size), oci.Descriptor{Digest: e.Digest, Size: e.Size})
	return &stream{Reader: r, close: func() error { return nil }}, nil
}

// spool decompresses a layer that is only packed.
func (s *Store) spool(ctx context.Context, diffID oci.Digest) (*os.File, error) {
	if packed, err := s.onlyPacked(ctx, diffID); err != nil || !packed {
		return nil, err
	}
	dir, err := s.Scratch(ctx)
	if err != nil {
		return nil, err
	}
	r, err := s.Open(ctx, oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: diffID})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := os.CreateTemp(dir, "plain-")
	if err != nil {
		return nil, s.failed(dir, err)
	}
	if err = os.Remove(f.Name()); err == nil {
		_, err = io.CopyBuffer(struct{ io.Writer }{f}, readerWith(ctx, r), make([]byte, 256<<10))
	}
	if err != nil {
		f.Close()
		return nil, s.failed(dir, err)
	}
	return f, nil
}
