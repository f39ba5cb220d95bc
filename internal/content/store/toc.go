package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// TOC returns the layer's table of contents, made now if it is missing (one
// decompression pass). The result is shared: do not change it.
func (s *Store) TOC(ctx context.Context, diffID oci.Digest) (*layer.TOC, error) {
	if err := checkDigest(diffID); err != nil {
		return nil, err
	}
	s.mu.Lock()
	toc := s.tocs[diffID]
	s.mu.Unlock()
	if toc != nil {
		return toc, nil
	}
	if toc = s.loadTOC(diffID); toc != nil {
		s.cacheTOC(toc)
		return toc, nil
	}
	err := s.once(ctx, "toc "+string(diffID), func() (err error) {
		toc, err = s.makeTOC(ctx, diffID)
		return err
	})
	if err == nil && toc == nil { // another goroutine made it
		return s.TOC(ctx, diffID)
	}
	return toc, err
}

// loadTOC reads the TOC's file; it carries a checksum, and what is damaged is
// as good as missing.
func (s *Store) loadTOC(diffID oci.Digest) *layer.TOC {
	b, err := os.ReadFile(filepath.Join(s.layerPath(diffID), "toc"))
	if err != nil {
		return nil
	}
	toc := new(layer.TOC)
	if err := toc.UnmarshalBinary(b); err != nil || toc.DiffID != diffID {
		s.log.Warn("store: damaged TOC; making it again", "layer", diffID, "err", err)
		return nil
	}
	return toc
}

func (s *Store) makeTOC(ctx context.Context, diffID oci.Digest) (*layer.TOC, error) {
	if s.readOnly == "" {
		lock, err := s.lockLayer(ctx, diffID)
		if err != nil {
			return nil, err
		}
		defer lock.Close()
		if toc := s.loadTOC(diffID); toc != nil { // by another process, while we waited
			s.cacheTOC(toc)
			return toc, nil
		}
	}
	toc, err := s.readPlain(ctx, diffID, layer.Index)
	if errors.Is(err, oci.ErrNotFound) {
		toc, err = s.packTree(ctx, diffID, io.Discard)
	}
	if err != nil {
		return nil, err
	}
	if s.readOnly == "" {
		if err := s.writeTOC(toc); err != nil {
			return nil, err
		}
		if err := s.write(ctx, func(t *tx) error { return t.knowLayer(toc) }); err != nil {
			return nil, err
		}
	}
	s.cacheTOC(toc)
	return toc, nil
}

// cachedEntries bounds the entries of the TOCs kept in memory: some hundred
// megabytes in a server that has seen everything.
const cachedEntries = 1 << 20

func (s *Store) cacheTOC(toc *layer.TOC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tocs[toc.DiffID] != nil {
		return
	}
	if s.entries += len(toc.Entries); s.entries > cachedEntries {
		clear(s.tocs)
		s.entries = len(toc.Entries)
	}
	s.tocs[toc.DiffID] = toc
}

func (s *Store) forgetTOCs(diffIDs []oci.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range diffIDs {
		if toc := s.tocs[d]; toc != nil {
			s.entries -= len(toc.Entries)
			delete(s.tocs, d)
		}
	}
}

// writeTOC writes the TOC's file. The caller has the layer locked.
func (s *Store) writeTOC(toc *layer.TOC) error {
	b, err := toc.MarshalBinary()
	if err != nil {
		return err
	}
	path := filepath.Join(s.layerPath(toc.DiffID), "toc")
	return s.failed(path, writeSmall(path, b))
}

// packTree writes the canonical tar of the layer's tree to w, and fails with
// oci.ErrCorrupt if it is not the layer.
func (s *Store) packTree(ctx context.Context, diffID oci.Digest, w io.Writer) (*layer.TOC, error) {
	tree := filepath.Join(s.layerPath(diffID), "tree")
	var kind int
	err := s.read(ctx, func(t *tx) (err error) {
		kind, _, err = t.tree(diffID)
		return err
	})
	if err == nil && kind != treeCanonical {
		err = notFound("layer %s", diffID)
	}
	if err != nil {
		return nil, err
	}
	toc, err := layer.Pack(ctx, w, tree)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	if toc.DiffID != diffID {
		return nil, fmt.Errorf("layer %s: its tree %s was changed: %w", diffID, tree, &oci.DigestError{Want: diffID, Got: toc.DiffID})
	}
	return toc, nil
}

// streamTree streams the canonical tar of the layer's tree.
func (s *Store) streamTree(ctx context.Context, diffID oci.Digest) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := s.packTree(ctx, diffID, pw)
		pw.CloseWithError(err) // nil is io.EOF
	}()
	return &stream{Reader: pr, close: func() error {
		cancel()
		err := pr.Close()
		<-done
		return err
	}}, nil
}

// verifyTree checks a tree that was not synced before the machine went down,
// against the layer's digest or its TOC. What survived is marked so; what did
// not is dropped, to be made again from another form.
func (s *Store) verifyTree(ctx context.Context, diffID oci.Digest) error {
	return s.once(ctx, "verify "+string(diffID), func() error {
		var kind int
		err := s.read(ctx, func(t *tx) (err error) {
			kind, _, err = t.tree(diffID)
			return err
		})
		if err != nil || kind == treeNone {
			return err
		}
		good, err := s.treeIntact(ctx, diffID, kind)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if good {
			if s.readOnly != "" {
				return nil
			}
			return s.write(ctx, func(t *tx) error {
				_, err := t.Exec("UPDATE layer SET boot = '' WHERE diffid = ?", diffID)
				return err
			})
		}
		s.log.Warn("store: a layer's tree was damaged when the machine went down", "layer", diffID, "err", err)
		var other bool
		rerr := s.read(ctx, func(t *tx) (err error) {
			other, err = t.exists(`SELECT 1 FROM blob WHERE digest = ?1 OR digest IN (SELECT digest FROM packed WHERE diffid = ?1)`, diffID)
			return err
		})
		if rerr != nil {
			return rerr
		}
		if !other {
			return fmt.Errorf("layer %s was damaged when the machine went down, and the store has no other form of it: %w; build or pull its image again", diffID, oci.ErrCorrupt)
		}
		return s.dropTree(ctx, diffID)
	})
}

// treeIntact reads the whole tree and tells whether it is its layer still.
func (s *Store) treeIntact(ctx context.Context, diffID oci.Digest, kind int) (bool, error) {
	found, err := layer.Pack(ctx, io.Discard, filepath.Join(s.layerPath(diffID), "tree"))
	if err != nil || found.DiffID == diffID || kind == treeCanonical {
		return err == nil && found.DiffID == diffID, err
	}
	toc := s.loadTOC(diffID)
	return toc != nil && sameTree(toc, found, s.rootless), nil
}

// dropTree forgets a tree that is missing or damaged.
func (s *Store) dropTree(ctx context.Context, diffID oci.Digest) error {
	trash := ""
	err := s.write(ctx, func(t *tx) (err error) {
		if trash, err = s.toTrash(filepath.Join(s.layerPath(diffID), "tree")); err != nil {
			return err
		}
		_, err = t.Exec("UPDATE layer SET tree = 0, boot = '' WHERE diffid = ?", diffID)
		return err
	})
	s.empty(trash)
	return err
}

// sameTree tells whether found, read from a tree, is what toc says. The order
// of entries, which member of a hard link comes first, and what the tar only
// implies do not count; nor do device nodes where nobody could make them.
func sameTree(toc, found *layer.TOC, rootless bool) bool {
	want, have := shape(toc), shape(found)
	implied := map[string]bool{".": true}
	for _, p := range toc.Implied() {
		implied[p] = true
	}
	for path, w := range want {
		h, ok := have[path]
		if !ok && !implied[path] && !(rootless && (w.Type == layer.Char || w.Type == layer.Block)) {
			return false
		}
		if ok && w != h {
			return false
		}
		delete(have, path)
	}
	for path := range have {
		if !implied[path] {
			return false
		}
	}
	return true
}

// point is what of an entry must survive.
type point struct {
	Type     layer.Type
	Mode     uint32
	UID, GID int
	Size     int64
	ModTime  int64
	Digest   oci.Digest
	Link     string
	Dev      [2]int64
}

func shape(toc *layer.TOC) map[string]point {
	points := make(map[string]point, len(toc.Entries))
	for i := range toc.Entries {
		e := &toc.Entries[i]
		if e.Type == layer.Opaque {
			points[e.Path+"/\x00opaque"] = point{Type: layer.Opaque}
			continue
		}
		p := point{Type: e.Type, Mode: e.Mode, UID: e.UID, GID: e.GID, Size: e.Size, ModTime: e.ModTime.Unix(), Digest: e.Digest, Link: e.Link, Dev: [2]int64{e.DevMajor, e.DevMinor}}
		switch e.Type {
		case layer.HardLink:
			p = points[e.Link]
		case layer.Whiteout:
			p = point{Type: layer.Whiteout}
		case layer.Dir:
			p.ModTime = 0 // making the tree's own files changes it
		case layer.Symlink:
			p.Mode = 0
		}
		points[e.Path] = p
	}
	return points
}
