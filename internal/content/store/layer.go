package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// Values of column layer.tree.
const (
	treeNone      = 0
	treeForeign   = 1 // unpacked from a tar that our writer would write differently
	treeCanonical = 2 // layer.Pack gives the layer's bytes
)

// LayerWriter writes a new layer as canonical tar: Write entries, then Commit.
type LayerWriter struct {
	*layer.Writer
	s *Store
	a *aside
}

// NewLayer starts a layer. Its bytes are not synced: a layer that is written
// here is made of something that is still there. What a power cut takes is
// found by its boot and made again.
func (s *Store) NewLayer(ctx context.Context) (*LayerWriter, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a, err := s.newAside()
	if err != nil {
		return nil, err
	}
	a.lazy = true
	return &LayerWriter{Writer: layer.NewWriter(a), s: s, a: a}, nil
}

// Commit makes the layer visible: its tar as a blob and its TOC.
func (w *LayerWriter) Commit(ctx context.Context) (*layer.TOC, error) {
	if w.a == nil {
		return nil, os.ErrClosed
	}
	defer w.Abort()
	toc, err := w.Writer.Close()
	if err != nil {
		return nil, w.s.failed(w.a.path, err)
	}
	return toc, w.s.admitLayer(ctx, w.a, toc)
}

// admitLayer makes the plain tar in a, whose table of contents is toc, visible
// as a layer. A tree or a packed form may be there already; the tar is written,
// so the best form of all is kept as well.
func (s *Store) admitLayer(ctx context.Context, a *aside, toc *layer.TOC) error {
	lock, err := s.lockLayer(ctx, toc.DiffID) // or Collect may take the TOC before the row is there
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := s.writeTOC(toc); err != nil {
		return err
	}
	d := oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: toc.DiffID, Size: toc.Size}
	a.toc = toc
	if err := s.admit(ctx, a, d, func(t *tx) error { return t.knowLayer(toc) }); err != nil {
		return err
	}
	s.cacheTOC(toc)
	return nil
}

// Abort throws it away; after Commit it does nothing.
func (w *LayerWriter) Abort() {
	if w.a != nil {
		w.a.discard()
		w.a = nil
	}
}

// knowLayer records what a TOC says of its layer.
func (t *tx) knowLayer(toc *layer.TOC) error {
	_, err := t.Exec(`INSERT INTO layer(diffid, size, bytes, toc, tree, boot) VALUES(?,?,?,1,0,'')
		ON CONFLICT(diffid) DO UPDATE SET size = excluded.size, bytes = excluded.bytes, toc = 1`,
		toc.DiffID, toc.Size, toc.FileBytes())
	return err
}

// lockLayer makes the layer's directory and locks it, so that one process
// makes a form and the others wait for it. The caller closes the file.
func (s *Store) lockLayer(ctx context.Context, diffID oci.Digest) (*os.File, error) {
	if s.readOnly != "" {
		return nil, s.cannotWrite(s.readOnly)
	}
	dir := s.layerPath(diffID)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, s.failed(dir, err)
		}
		if f := tryLock(dir); f != nil {
			return f, nil
		}
		// No blocking flock: it would not end with ctx.
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// TakeTree makes dir, an overlay upper directory in a scratch directory of
// this store, the tree of a layer, by rename; no tar is written. dir is gone
// afterwards, also where the layer existed already. Of xattrs it keeps what
// docker keeps in a layer it makes (layer.BuiltXattrs).
func (s *Store) TakeTree(ctx context.Context, dir string) (*layer.TOC, error) {
	toc, err := layer.PackBuilt(ctx, io.Discard, dir)
	if err != nil {
		return nil, err
	}
	lock, err := s.lockLayer(ctx, toc.DiffID)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := s.writeTOC(toc); err != nil {
		return nil, err
	}
	if err := s.hold(leaseOf(ctx), toc.DiffID); err != nil {
		return nil, err
	}
	tree := filepath.Join(s.layerPath(toc.DiffID), "tree")
	kept, trash := false, ""
	defer func() { s.empty(trash) }()
	err = s.write(ctx, func(t *tx) (err error) {
		kept, err = t.exists("SELECT 1 FROM layer WHERE diffid = ? AND tree <> 0 AND boot IN ('', ?)", toc.DiffID, s.boot)
		if err != nil {
			return err
		}
		if kept {
			_, err := os.Lstat(tree)
			kept = err == nil
		}
		if err := t.knowLayer(toc); err != nil {
			return err
		}
		if !kept {
			if trash, err = s.placeTree(t, toc.DiffID, dir, treeCanonical); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, s.failed(tree, err)
	}
	if kept {
		if err := removeAll(dir); err != nil {
			return nil, s.failed(dir, err)
		}
	}
	s.cacheTOC(toc)
	return toc, nil
}

// placeTree renames dir to the layer's tree, in the transaction that says so,
// and returns where it moved what lay there: a leftover, or a damaged tree. The
// caller has the layer locked.
func (s *Store) placeTree(t *tx, diffID oci.Digest, dir string, kind int) (trash string, err error) {
	tree := filepath.Join(s.layerPath(diffID), "tree")
	if trash, err = s.toTrash(tree); err != nil {
		return "", err
	}
	if err := os.Rename(dir, tree); err != nil {
		return trash, err
	}
	_, err = t.Exec("UPDATE layer SET tree = ?, boot = ? WHERE diffid = ?", kind, s.boot, diffID)
	return trash, err
}

// Tree returns the directory of the layer's unpacked form, made now if it is
// missing. Side by side for several layers is the caller's choice. It stays
// as long as ctx's lease.
func (s *Store) Tree(ctx context.Context, diffID oci.Digest) (string, error) {
	if err := checkDigest(diffID); err != nil {
		return "", err
	}
	tree := filepath.Join(s.layerPath(diffID), "tree")
	for range 3 {
		var kind int
		var stale bool
		err := s.leasing(ctx, func(t *tx) (err error) {
			var boot string
			kind, boot, err = t.tree(diffID)
			stale = boot != "" && boot != s.boot
			return err
		}, diffID)
		if err != nil {
			return "", err
		}
		if kind != treeNone && !stale {
			if _, err := os.Lstat(tree); err == nil {
				return tree, nil
			}
			if err := s.dropTree(ctx, diffID); err != nil {
				return "", err
			}
			continue
		}
		if stale {
			if err := s.verifyTree(ctx, diffID); err != nil {
				return "", err
			}
			if s.readOnly != "" {
				return tree, nil
			}
			continue
		}
		if err := s.once(ctx, "tree "+string(diffID), func() error { return s.makeTree(ctx, diffID) }); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("layer %s: its tree goes away as often as it is made: %w", diffID, oci.ErrConflict)
}

func (t *tx) tree(diffID oci.Digest) (kind int, boot string, err error) {
	err = t.each(func(scan func(...any) error) error { return scan(&kind, &boot) },
		"SELECT tree, boot FROM layer WHERE diffid = ?", diffID)
	return kind, boot, err
}

// once runs fn for key once at a time in this process. Who waited for another
// that was cancelled tries for itself.
func (s *Store) once(ctx context.Context, key string, fn func() error) error {
	for {
		_, err, shared := s.making.Do(key, func() (any, error) { return nil, fn() })
		if shared && ctx.Err() == nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			continue
		}
		return err
	}
}

// makeTree unpacks a layer.
func (s *Store) makeTree(ctx context.Context, diffID oci.Digest) error {
	lock, err := s.lockLayer(ctx, diffID)
	if err != nil {
		return err
	}
	defer lock.Close()
	made := false
	err = s.read(ctx, func(t *tx) error { // by another process, while we waited
		kind, boot, err := t.tree(diffID)
		made = kind != treeNone && (boot == "" || boot == s.boot)
		return err
	})
	if err != nil || made {
		return err
	}
	dir := filepath.Join(s.layerPath(diffID), "tree.new")
	if err := removeAll(dir); err != nil { // of one who died
		return s.failed(dir, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return s.failed(dir, err)
	}
	defer removeAll(dir) // after the rename there is none
	toc, err := s.readPlain(ctx, diffID, func(r io.Reader) (*layer.TOC, error) {
		if err := s.emptyTree(dir); err != nil {
			return nil, err
		}
		return layer.Unpack(ctx, r, dir, layer.UnpackOptions{Unprivileged: s.rootless})
	})
	if err != nil {
		return s.failed(dir, err)
	}
	if err := s.writeTOC(toc); err != nil {
		return err
	}
	trash := ""
	defer func() { s.empty(trash) }()
	err = s.write(ctx, func(t *tx) (err error) {
		if err := t.knowLayer(toc); err != nil {
			return err
		}
		trash, err = s.placeTree(t, diffID, dir, treeForeign)
		return err
	})
	if err == nil {
		s.cacheTOC(toc)
	}
	return s.failed(dir, err)
}

// emptyTree clears what an attempt from another form left in dir.
func (s *Store) emptyTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return err
	}
	if err := removeAll(dir); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o755)
}

// readPlain runs fn on the layer's plain bytes, from one form after another
// until fn's TOC is the layer's: nothing but the diffID decides.
func (s *Store) readPlain(ctx context.Context, diffID oci.Digest, fn func(io.Reader) (*layer.TOC, error)) (*layer.TOC, error) {
	var plain bool
	var packed []oci.Digest
	err := s.read(ctx, func(t *tx) (err error) {
		if plain, err = t.exists("SELECT 1 FROM blob WHERE digest = ?", diffID); err != nil {
			return err
		}
		packed, err = t.digests(`SELECT p.digest FROM packed p JOIN blob b ON b.digest = p.digest
			WHERE p.diffid = ? ORDER BY p.verified DESC, p.digest`, diffID)
		return err
	})
	if err != nil {
		return nil, err
	}
	var failure error
	if plain {
		toc, _, err := s.readForm(ctx, diffID, diffID, fn)
		if err == nil {
			return toc, nil
		}
		failure = err
	}
	for _, p := range packed {
		toc, packing, err := s.readForm(ctx, diffID, p, fn)
		if err == nil && s.readOnly == "" {
			err = s.write(ctx, func(t *tx) error { return t.packed(diffID, p, packing, true) })
		}
		if err == nil {
			return toc, nil
		}
		failure = err
		if errors.Is(err, oci.ErrCorrupt) {
			s.log.Warn("store: a blob is not the layer that a manifest says it is", "layer", diffID, "blob", p, "err", err)
		}
		if ctx.Err() != nil || errors.Is(err, oci.ErrNoSpace) {
			break
		}
	}
	if failure == nil {
		failure = notFound("layer %s", diffID)
	}
	return nil, failure
}

// readForm runs fn on the plain bytes of blob, which is the layer diffID or
// that layer packed.
func (s *Store) readForm(ctx context.Context, diffID, blob oci.Digest, fn func(io.Reader) (*layer.TOC, error)) (*layer.TOC, layer.Packing, error) {
	f, err := s.openBlob(ctx, blob)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	plain, packing, err := io.ReadCloser(f), layer.Plain, error(nil)
	if blob != diffID {
		if plain, packing, err = layer.Decompress(f); err != nil {
			return nil, "", fmt.Errorf("layer %s: %w", blob, err)
		}
		defer plain.Close()
	}
	toc, err := fn(plain)
	if err == nil {
		// A tar may end before its file does; the digest is over all of it.
		// The TOC's own digest is, too.
		if toc.DiffID != diffID {
			err = &oci.DigestError{Want: diffID, Got: toc.DiffID}
		}
	}
	if errors.Is(err, oci.ErrNoSpace) {
		return nil, "", s.failed("", err)
	}
	if err != nil {
		return nil, "", fmt.Errorf("layer %s: %w", blob, err)
	}
	return toc, packing, nil
}

// openBlob opens a blob's own file.
func (s *Store) openBlob(ctx context.Context, d oci.Digest) (*os.File, error) {
	for {
		var f form
		err := s.read(ctx, func(t *tx) (err error) {
			f, err = s.find(t, d)
			return err
		})
		if err != nil {
			return nil, err
		}
		if f.kind != formBlob {
			return nil, notFound("blob %s", d)
		}
		again, err := s.settle(ctx, d, f)
		if err != nil {
			return nil, err
		}
		if again {
			continue
		}
		file, err := os.Open(s.blobPath(d))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return file, err
	}
}

// OpenFile reads one file's content out of a layer: from the tree or a plain
// tar by offset; from a packed blob by making the tree first. What is read to
// its end was checked against e.Digest.
func (s *Store) OpenFile(ctx context.Context, diffID oci.Digest, e *layer.Entry) (io.ReadCloser, error) {
	if err := checkDigest(diffID); err != nil {
		return nil, err
	}
	if e.Offset >= 0 { // what is stored with holes has none
		f, err := s.openBlob(ctx, diffID)
		if err == nil {
			return checked(io.NewSectionReader(f, e.Offset, e.Size), f, e), nil
		}
		if !errors.Is(err, oci.ErrNotFound) {
			return nil, err
		}
	}
	tree, err := s.Tree(ctx, diffID)
	if err != nil {
		return nil, err
	}
	f, err := openBeneath(tree, e.Path)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %s: %v: %w", diffID, e.Path, err, oci.ErrCorrupt)
	}
	return checked(f, f, e), nil
}

func checked(r io.Reader, f *os.File, e *layer.Entry) io.ReadCloser {
	if e.Digest != "" {
		r = oci.Verify(r, oci.Descriptor{Digest: e.Digest, Size: e.Size})
	}
	return &stream{Reader: r, close: f.Close}
}

// openBeneath opens a file without leaving root or following any symlink: a
// layer's paths name no symlink, and the tree may have been changed.
func openBeneath(root, path string) (*os.File, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(root, path)), nil
}
