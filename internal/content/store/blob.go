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
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
)

// form says how content can be had.
type form struct {
	kind      formKind
	mediaType string
	size      int64      // -1 while unknown, of a packed layer nobody read yet
	packed    oci.Digest // of formPacked: the packed blob
	verified  bool       // of formPacked: its bytes were seen to give the layer
	stale     bool       // not synced before the machine went down: verify it
}

type formKind int

const (
	formNone   formKind = iota
	formBlob            // a file of its own
	formTree            // a plain layer's tree, which gives the same bytes
	formPacked          // a plain layer, to be decompressed
)

// find looks d up among all forms, best first.
func (s *Store) find(t *tx, d oci.Digest) (f form, err error) {
	var boot string
	err = t.QueryRow("SELECT mediatype, size, boot FROM blob WHERE digest = ?", d).Scan(&f.mediaType, &f.size, &boot)
	if err == nil {
		f.kind, f.stale = formBlob, boot != "" && boot != s.boot
		if oci.IsManifest(f.mediaType) || oci.IsIndex(f.mediaType) {
			gone, err := t.exists("SELECT 1 FROM manifest WHERE digest = ? AND gone = 1", d)
			if gone || err != nil {
				return form{}, err
			}
		}
		return f, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return f, err
	}
	var tree int
	err = t.QueryRow("SELECT size, tree, boot FROM layer WHERE diffid = ?", d).Scan(&f.size, &tree, &boot)
	if errors.Is(err, sql.ErrNoRows) {
		return form{}, nil
	}
	if err != nil {
		return f, err
	}
	f.mediaType = oci.MediaTypeLayer
	if tree == treeCanonical {
		f.kind, f.stale = formTree, boot != "" && boot != s.boot
		return f, nil
	}
	err = t.QueryRow(`SELECT p.digest, p.verified FROM packed p JOIN blob b ON b.digest = p.digest
		WHERE p.diffid = ? ORDER BY p.verified DESC LIMIT 1`, d).Scan(&f.packed, &f.verified)
	if errors.Is(err, sql.ErrNoRows) {
		return form{}, nil
	}
	f.kind = formPacked
	return f, err
}

// lookup finds d and takes it into ctx's lease, so that no Collect comes
// between the answer and what is done with it.
func (s *Store) lookup(ctx context.Context, d oci.Digest) (f form, err error) {
	for {
		err = s.leasing(ctx, func(t *tx) (err error) {
			f, err = s.find(t, d)
			return err
		}, d)
		if err != nil || f.kind == formNone {
			return f, err
		}
		again, err := s.settle(ctx, d, f)
		if err != nil || !again {
			return f, err
		}
	}
}

// settle checks what the database cannot know of a form: that its file is
// there and, if need be, that it survived a power cut. It returns true where
// what was wrong is put right now and the look-up has to be repeated.
func (s *Store) settle(ctx context.Context, d oci.Digest, f form) (again bool, err error) {
	switch {
	case f.kind == formBlob && f.stale:
		return s.readOnly == "", s.verifyBlob(ctx, d, f.size)
	case f.kind == formBlob:
		fi, err := os.Lstat(s.blobPath(d))
		if err == nil && fi.Size() == f.size {
			return false, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, s.failed(s.blobPath(d), err)
		}
		return true, s.dropBlob(ctx, d)
	case f.kind == formTree && f.stale:
		return s.readOnly == "", s.verifyTree(ctx, d)
	case f.kind == formPacked:
		pf := form{kind: formBlob}
		err := s.ask(ctx, func(t *tx) (err error) {
			pf, err = s.find(t, f.packed)
			return err
		})
		if err != nil || pf.kind != formBlob {
			return true, err
		}
		return s.settle(ctx, f.packed, pf)
	}
	return false, nil
}

// verifyBlob reads a blob that was not synced before the machine went down.
// What survived is on disk for good now; what did not is dropped.
func (s *Store) verifyBlob(ctx context.Context, d oci.Digest, size int64) error {
	f, err := os.Open(s.blobPath(d))
	if err == nil {
		err = digestOf(f, oci.Descriptor{Digest: d, Size: size})
		f.Close()
	}
	if err == nil {
		if s.readOnly != "" {
			return nil // and once more the next time
		}
		s.noteSynced(d)
		return s.write(ctx, func(*tx) error { return nil })
	}
	if !errors.Is(err, oci.ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
		return s.failed(s.blobPath(d), err)
	}
	s.log.Warn("store: blob was damaged when the machine went down; dropped", "digest", d)
	return s.dropBlob(ctx, d)
}

// digestOf reads f to its end and fails unless it is what d names.
func digestOf(f *os.File, d oci.Descriptor) error {
	_, err := io.CopyBuffer(onlyWriter{io.Discard}, oci.Verify(f, d), buffer(d.Size))
	return err
}

// dropBlob forgets a blob whose file is missing or damaged. What is known of a
// manifest stays: the next Put brings its bytes back.
func (s *Store) dropBlob(ctx context.Context, d oci.Digest) error {
	if s.readOnly != "" {
		return fmt.Errorf("store %s: blob %s is missing or damaged: %w", s.root, d, oci.ErrCorrupt)
	}
	return s.write(ctx, func(t *tx) error {
		_, err := t.Exec("DELETE FROM blob WHERE digest = ?", d)
		return err
	})
}

func (s *Store) noteSynced(d oci.Digest) {
	s.mu.Lock()
	s.synced = append(s.synced, d)
	s.mu.Unlock()
}

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

func (s *Store) openForm(ctx context.Context, d oci.Descriptor, f form) (io.ReadCloser, error) {
	switch f.kind {
	case formTree:
		return s.streamTree(ctx, d.Digest)
	case formPacked:
		return s.unpackBlob(ctx, d.Digest, f)
	}
	return os.Open(s.blobPath(d.Digest))
}

// unpackBlob streams a packed blob's plain bytes, checked against the diffID.
func (s *Store) unpackBlob(ctx context.Context, diffID oci.Digest, f form) (io.ReadCloser, error) {
	if !f.verified || f.size < 0 {
		var err error
		if f.size, f.packed, err = s.verifyPacked(ctx, diffID, f.packed); err != nil {
			return nil, err
		}
	}
	file, err := os.Open(s.blobPath(f.packed))
	if err != nil {
		return nil, err
	}
	plain, _, err := layer.Decompress(file)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("layer %s: %w", f.packed, err)
	}
	return &stream{
		Reader: oci.Verify(plain, oci.Descriptor{Digest: diffID, Size: f.size}),
		close:  func() error { return errors.Join(plain.Close(), file.Close()) },
	}, nil
}

// verifyPacked reads a packed layer that only a manifest and its config say is
// the layer diffID, and returns the plain length and which packed blob it is.
func (s *Store) verifyPacked(ctx context.Context, diffID, claimed oci.Digest) (size int64, packed oci.Digest, err error) {
	err = s.once(ctx, "claim "+string(diffID), func() error {
		if s.readOnly != "" {
			toc, err := s.readPlain(ctx, diffID, layer.Index)
			if err == nil {
				size, packed = toc.Size, claimed
			}
			return err
		}
		toc, err := s.readPlain(ctx, diffID, layer.Index) // this marks what it read
		if err != nil {
			return err
		}
		return s.write(ctx, func(t *tx) error { // the length is known now, the TOC may not be there
			_, err := t.Exec("UPDATE layer SET size = ? WHERE diffid = ?", toc.Size, diffID)
			return err
		})
	})
	if err != nil || packed != "" {
		return size, packed, err
	}
	var f form
	err = s.ask(ctx, func(t *tx) (err error) {
		f, err = s.find(t, diffID)
		return err
	})
	if err == nil && f.kind != formPacked {
		err = notFound("layer %s", diffID) // collected, or there is a better form by now
	}
	return f.size, f.packed, err
}

// stream is a reader with its own way to close.
type stream struct {
	io.Reader
	close func() error
}

func (s *stream) Close() error { return s.close() }

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
