package container

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
	"github.com/strake-project/strake/internal/rootfs"
	"github.com/strake-project/strake/internal/userns"
)

func (c *Set) upper(one *Container) string { return filepath.Join(c.dir(one.ID), "upper") }

// base shows the image's files and, above them, the container's own, which are
// read where they lie.
func (c *Set) base(ctx context.Context, one *Container, above ...*layer.TOC) (*tree.Stack, error) {
	tocs := make([]*layer.TOC, len(one.Layers))
	for i, d := range one.Layers {
		var err error
		if tocs[i], err = c.store.TOC(ctx, d); err != nil {
			return nil, err
		}
	}
	return tree.New(append(tocs, above...), func(ctx context.Context, i int, e *layer.Entry) (io.ReadCloser, error) {
		if i < len(one.Layers) {
			return c.store.OpenFile(ctx, one.Layers[i], e)
		}
		return os.OpenInRoot(c.upper(one), e.Path)
	}), nil
}

// Commit makes what the container changed a layer of the store, under ctx's
// lease; nil if it changed nothing. The container keeps its files.
func (c *Set) Commit(ctx context.Context, one *Container) (*layer.TOC, error) {
	root, err := rootfs.Prepare(ctx, c.store, one.Layers)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	go func() {
		_, err := layer.Pack(ctx, pw, c.upper(one))
		pw.CloseWithError(err)
	}()
	_, err = layer.Unpack(ctx, pr, root.Upper, layer.UnpackOptions{Unprivileged: userns.Inside()})
	pr.CloseWithError(err)
	if err != nil {
		return nil, err
	}
	return rootfs.Commit(ctx, c.store, root)
}

// Export writes the container's whole file system as a tar. Each name of a
// file with several is a file of its own.
func (c *Set) Export(ctx context.Context, one *Container, w io.Writer) error {
	top, err := layer.Pack(ctx, io.Discard, c.upper(one))
	if err != nil {
		return err
	}
	view, err := c.base(ctx, one, top)
	if err != nil {
		return err
	}
	out := layer.NewWriter(w)
	err = tree.Walk(view, ".", func(e *layer.Entry) error {
		if e.Path == "." {
			return nil
		}
		if e.Type != layer.Regular {
			return out.Write(*e, nil)
		}
		f, err := view.Open(ctx, e.Path)
		if err != nil {
			return err
		}
		defer f.Close()
		one := *e
		one.Link = ""
		return out.Write(one, f)
	})
	if err != nil {
		return err
	}
	_, err = out.Close()
	return err
}

// Diff lists what the container changed, in path order: of what is deleted
// only its topmost directory, of what changed all directories above as well.
func (c *Set) Diff(ctx context.Context, one *Container) ([]tree.Change, error) {
	top, err := layer.Pack(ctx, io.Discard, c.upper(one))
	if err != nil {
		return nil, err
	}
	view, err := c.base(ctx, one)
	if err != nil {
		return nil, err
	}
	kinds := map[string]byte{}
	for i := range top.Entries {
		e := &top.Entries[i]
		if e.Path == "." || e.Type == layer.Opaque {
			continue
		}
		old, err := view.Lstat(e.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		switch {
		case e.Type == layer.Whiteout && old == nil:
			continue
		case e.Type == layer.Whiteout:
			kinds[e.Path] = 'D'
		case old == nil:
			kinds[e.Path] = 'A'
		case old.Type == layer.Dir && e.Type == layer.Dir && old.Mode == e.Mode && old.UID == e.UID && old.GID == e.GID:
			continue // it is listed if something in it is
		default:
			kinds[e.Path] = 'C'
		}
		for up := path.Dir(e.Path); up != "."; up = path.Dir(up) {
			if kinds[up] == 0 {
				kinds[up] = 'C'
			}
		}
	}
	var list []tree.Change
	for p, k := range kinds {
		list = append(list, tree.Change{Path: p, Kind: k})
	}
	slices.SortFunc(list, func(a, b tree.Change) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}
