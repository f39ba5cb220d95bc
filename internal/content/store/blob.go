package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Resolve implements content.Source. A digest is looked up among all blobs.
func (s *Store) Resolve(ctx context.Context, r ref.Ref) (oci.Descriptor, error) {
	d := r.Digest
	if d != "" {
		if err := checkDigest(d); err != nil {
			return oci.Descriptor{}, err
		}
		f, err := s.lookup(ctx, d)
		if err == nil && f.kind == formNone {
			err = notFound("%s", r.Familiar())
		}
		return s.describe(ctx, d, f, err)
	}
	r = r.WithDefaultTag()
	for {
		err := s.ask(ctx, func(t *tx) error {
			err := t.QueryRow("SELECT digest FROM tag WHERE repo = ? AND tag = ?", r.Repository(), r.Tag).Scan(&d)
			if errors.Is(err, sql.ErrNoRows) {
				err = notFound("%s", r.Familiar())
			}
			return err
		})
		if err != nil {
			return oci.Descriptor{}, err
		}
		f, err := s.lookup(ctx, d)
		if err == nil && f.kind == formNone {
			// Either the tag was moved and what it named collected between
			// the two look-ups, or the disk lost something.
			var still bool
			err = s.ask(ctx, func(t *tx) (err error) {
				still, err = t.exists("SELECT 1 FROM tag WHERE repo = ? AND tag = ? AND digest = ?", r.Repository(), r.Tag, d)
				return err
			})
			if err == nil && !still {
				continue
			}
			if err == nil {
				err = fmt.Errorf("%s: its manifest %s is missing from the store: %w; pull it again", r.Familiar(), d, oci.ErrNotFound)
			}
		}
		return s.describe(ctx, d, f, err)
	}
}

// describe completes a form to a descriptor: a manifest knows its own media
// type, which the blob may lack where it came in without one.
func (s *Store) describe(ctx context.Context, d oci.Digest, f form, err error) (oci.Descriptor, error) {
	if err != nil {
		return oci.Descriptor{}, err
	}
	if f.size < 0 { // a packed layer that nobody read yet
		toc, err := s.TOC(ctx, d)
		if err != nil {
			return oci.Descriptor{}, err
		}
		f.size = toc.Size
	}
	desc := oci.Descriptor{MediaType: f.mediaType, Digest: d, Size: f.size}
	if desc.MediaType == "" {
		desc.MediaType = "application/octet-stream"
	}
	return desc, nil
}

// Open implements content.Source. A plain layer that exists only as a tree is
// streamed from it as its canonical tar, and the stream fails with
// oci.ErrCorrupt at its end if somebody changed the tree.
func (s *Store) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, err
	}
	for {
		var f form
		err := s.ask(ctx, func(t *tx) (err error) {
			f, err = s.find(t, d.Digest)
			return err
		})
		if err == nil && f.kind == formNone {
			err = absentBlob(d.Digest)
		}
		if err != nil {
			return nil, err
		}
		again, err := s.settle(ctx, d.Digest, f)
		if err != nil {
			return nil, err
		}
		if again {
			continue
		}
		r, err := s.openForm(ctx, d, f)
		if errors.Is(err, fs.ErrNotExist) { // collected this moment
			continue
		}
		return r, err
	}
}

// OpenAt implements content.RangeOpener.
func (s *Store) OpenAt(ctx context.Context, d oci.Descriptor, offset, length int64) (io.ReadCloser, error) {
	r, err := s.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	f, ok := r.(*os.File)
	if !ok {
		r.Close()
		return nil, fmt.Errorf("layer %s is kept unpacked, reading from the middle: %w", d.Digest, oci.ErrUnsupported)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("blob %s: offset %d: %w", d.Digest, offset, oci.ErrInvalid)
	}
	if length < 0 {
		return f, nil
	}
	return &stream{Reader: io.LimitReader(f, length), close: f.Close}, nil
}

// Put implements content.Sink. Of a manifest it also records the facts that
// listing images needs, and the edges to what it names; the children may still
// be missing (an index of which one platform was pulled).
func (s *Store) Put(ctx context.Context, d oci.Descriptor, r io.Reader) error {
	if oci.IsManifest(d.MediaType) || oci.IsIndex(d.MediaType) {
		return s.putManifest(ctx, d, r)
	}
	if ok, err := s.Has(ctx, d); err != nil || ok {
		return err
	}
	a, err := s.newAside()
	if err != nil {
		return err
	}
	defer a.discard()
	if _, err := io.CopyBuffer(onlyWriter{a}, oci.Verify(r, d), buffer(d.Size)); err != nil {
		return s.failed(a.path, err)
	}
	return s.admit(ctx, a, d, nil)
}

// admit makes a verified file visible as the blob d and runs also in the same
// transaction.
//
// The order is what keeps a concurrent Collect harmless. The rename and the
// row happen under the database's write lock; Collect deletes rows in one
// transaction and removes the files of those that still have no row in the
// next, so either it sees this row, or this rename comes after its removal.
// The lease's hold is written before, for the Collect that sees the row. A
// process that dies after the rename leaves a file without a row, which the next Put replaces.
//
// The file is synced after the row is there, outside of the lock: the row
// carries this boot until then, so that after a power cut in between the blob
// is verified before anything uses it. admit returns, and thereby acknowledges,
// after the sync; a lazy file is not synced at all.
func (s *Store) admit(ctx context.Context, a *aside, d oci.Descriptor, also func(*tx) error) error {
	if err := a.finish(); err != nil {
		return err
	}
	path := s.blobPath(d.Digest)
	var plain int64
	if a.toc != nil {
		plain = a.toc.FileBytes()
	} else {
		plain = plainSize(a.f, d.Size)
	}
	if err := makeShard(filepath.Dir(path)); err != nil { // and its sync before the lock
		return s.failed(path, err)
	}
	if err := s.hold(leaseOf(ctx), d.Digest); err != nil {
		return err
	}
	err := s.write(ctx, func(t *tx) error {
		f, err := s.find(t, d.Digest)
		if err != nil {
			return err
		}
		there := f.kind == formBlob
		if there {
			fi, err := os.Lstat(path)
			there = err == nil && fi.Size() == d.Size
		}
		if !there {
			if err := a.place(path); err != nil {
				return err
			}
			if err := t.insertBlob(d, plain, s.boot); err != nil {
				return err
			}
			if err := s.blobArrived(t, d.Digest, plain); err != nil {
				return err
			}
		}
		if also != nil {
			if err := also(t); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return s.failed(path, err)
	}
	if !a.gone || a.lazy {
		return nil // another writer was first, or nobody waits for the disk
	}
	if err := a.sync(path); err != nil {
		return s.failed(path, err)
	}
	s.noteSynced(d.Digest)
	return nil
}

func (t *tx) insertBlob(d oci.Descriptor, plain int64, boot string) error {
	_, err := t.Exec("INSERT OR REPLACE INTO blob(digest, mediatype, size, plain, boot) VALUES(?,?,?,?,?)",
		d.Digest, d.MediaType, d.Size, plain, boot)
	return err
}

// AcceptsSparseIndex implements content.SparseSink.
func (s *Store) AcceptsSparseIndex() {}
