package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
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
	if s.readOnly != "" { // what is seen cannot be noted for others who wait for it
		toc, _, err := s.readForm(ctx, diffID, claimed, layer.Index)
		if err != nil {
			return 0, "", err
		}
		return toc.Size, claimed, nil
	}
	err = s.once(ctx, "claim "+string(diffID), func() error {
		toc, err := s.readPlain(ctx, diffID, layer.Index) // this marks what it read
		if err != nil {
			return err
		}
		return s.write(ctx, func(t *tx) error { // the length is known now, the TOC may not be there
			_, err := t.Exec("UPDATE layer SET size = ? WHERE diffid = ?", toc.Size, diffID)
			return err
		})
	})
	if err != nil {
		return 0, "", err
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
