package fileop

import (
	"context"
	"fmt"
	"path"
	"slices"

	"github.com/strake-project/strake/internal/oci/layer"
)

// Write writes the changes as a layer to w, which the caller closes: every
// entry that was made or changed, the directories above them, whiteouts of
// what was removed. A file whose name is a whiteout's is one (layer.Hidden).
// Contents are read now, and their digests taken from where
// they are known.
func (d *Draft) Write(ctx context.Context, w *layer.Writer) error {
	o := &output{ctx: ctx, w: w, first: map[*inode]string{}}
	return o.kids(d.root, "")
}

type output struct {
	ctx   context.Context
	w     *layer.Writer
	first map[*inode]string // the first path written, of inodes with several
}

func (o *output) kids(n *node, dir string) error {
	names := make([]string, 0, len(n.kids))
	for name, k := range n.kids {
		hides, _, reserved := layer.Hidden(name)
		switch {
		case !reserved || k.gone || k.inode.e.Type == layer.Dir:
			names = append(names, name)
		case hides != "" && n.kids[hides] == nil:
			names = append(names, hides)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		k, p := n.kids[name], path.Join(dir, name)
		if k == nil || k.gone {
			if err := o.w.Write(layer.Entry{Path: p, Type: layer.Whiteout}, nil); err != nil {
				return err
			}
			continue
		}
		if err := o.one(k, p); err != nil {
			return err
		}
		if err := o.kids(k, p); err != nil {
			return err
		}
	}
	return nil
}

func (o *output) one(n *node, p string) error {
	if err := o.ctx.Err(); err != nil {
		return err
	}
	e := n.inode.e
	e.Path, e.Offset, e.Xattrs = p, 0, layer.BuiltXattrs(e.Xattrs)
	if len(n.inode.names) > 1 {
		if first, ok := o.first[n.inode]; ok {
			e.Type, e.Link, e.Size, e.Digest = layer.HardLink, first, 0, ""
			return o.w.Write(e, nil)
		}
		o.first[n.inode] = p
	}
	if e.Type == layer.Regular {
		return o.file(n.inode, e)
	}
	if err := o.w.Write(e, nil); err != nil {
		return err
	}
	if n.opaque || n.hides() {
		return o.w.Write(layer.Entry{Path: p, Type: layer.Opaque}, nil)
	}
	return nil
}

// hides tells whether a directory has the file that makes it opaque.
func (n *node) hides() bool {
	for name, k := range n.kids {
		if _, all, _ := layer.Hidden(name); all && !k.gone && k.inode.e.Type != layer.Dir {
			return true
		}
	}
	return false
}

func (o *output) file(i *inode, e layer.Entry) error {
	var err error
	if e.Digest, err = i.digest(o.ctx); err != nil {
		return err
	}
	r, err := i.content.open(o.ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := o.w.Write(e, r); err != nil {
		return fmt.Errorf("write %s: %w", slash(e.Path), err)
	}
	return nil
}
