package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// Remake makes a layer's damaged tree again from the layer's table of contents
// and from what the tree's files hold: modes, owners, times, xattrs, links and
// empty files come back, changed contents do not. It tells whether that gave
// the layer's own bytes; if not, nothing was changed.
func (s *Store) Remake(ctx context.Context, diffID oci.Digest) (bool, error) {
	if checkDigest(diffID) != nil {
		return false, nil
	}
	s.forgetTOCs([]oci.Digest{diffID})
	toc := s.loadTOC(diffID)
	if toc == nil {
		return false, nil
	}
	lock, err := s.lockLayer(ctx, diffID)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	dir := filepath.Join(s.layerPath(diffID), "tree.new")
	if err := removeAll(dir); err != nil {
		return false, s.failed(dir, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return false, s.failed(dir, err)
	}
	defer removeAll(dir) // after the rename there is none
	made, err := s.retell(ctx, toc, dir)
	if ctx.Err() != nil || errors.Is(err, oci.ErrNoSpace) {
		return false, s.failed(dir, errors.Join(ctx.Err(), err))
	}
	if err != nil || made.DiffID != diffID {
		s.log.Debug("store: remake tree", "layer", diffID, "err", err)
		return false, nil
	}
	trash := ""
	defer func() { s.empty(trash) }()
	err = s.write(ctx, func(t *tx) (err error) {
		if err := t.knowLayer(made); err != nil {
			return err
		}
		trash, err = s.placeTree(t, diffID, dir, treeCanonical)
		return err
	})
	return err == nil, s.failed(dir, err)
}

// retell unpacks into dir the tar that toc tells of, with the contents of the
// files of the layer's tree.
func (s *Store) retell(ctx context.Context, toc *layer.TOC, dir string) (*layer.TOC, error) {
	root, err := os.OpenRoot(filepath.Join(s.layerPath(toc.DiffID), "tree"))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	r, w := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.CloseWithError(rewrite(w, toc, root))
	}()
	made, err := layer.Unpack(ctx, r, dir, layer.UnpackOptions{Unprivileged: s.rootless})
	r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	<-written
	return made, err
}

// rewrite writes the canonical tar of what toc says. Contents are hashed again:
// the sum decides.
func rewrite(to io.Writer, toc *layer.TOC, root *os.Root) error {
	w := layer.NewWriter(to)
	for _, e := range toc.Entries {
		if e.Type != layer.Regular || e.Size == 0 {
			if err := w.Write(e, strings.NewReader("")); err != nil {
				return err
			}
			continue
		}
		e.Digest = ""
		if err := rewriteFile(w, e, root); err != nil {
			return err
		}
	}
	_, err := w.Close()
	return err
}

func rewriteFile(w *layer.Writer, e layer.Entry, root *os.Root) error {
	fi, err := root.Lstat(e.Path) // before it is opened: a pipe would not let go
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != e.Size {
		return fmt.Errorf("%s: its content was changed: %w", e.Path, oci.ErrCorrupt)
	}
	f, err := root.Open(e.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	return w.Write(e, f)
}
