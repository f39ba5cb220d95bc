package fileop

import (
	"bytes"
	"context"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// node is a path at which the Draft has something to say: what it made there,
// what it copied up from the base because something below changed, or that
// what the base has there is gone.
type node struct {
	inode *inode
	kids  map[string]*node
	// gone: the base has something here, the draft has not.
	gone bool
	// below: a directory in which the base's entries show where kids has none.
	below bool
	// opaque: a directory that hides a directory of the base.
	opaque bool
}

// inode is what hard links share. The Path in e means nothing.
type inode struct {
	e       layer.Entry
	content content
	// names are the paths of an inode that has had more than one.
	names []string
}

// content is where a regular file's bytes come from: a file of a view, the
// spool, or memory.
type content struct {
	view  tree.View
	path  string
	spool *spool
	off   int64
	size  int64
	data  []byte
}

func (c *content) open(ctx context.Context) (io.ReadCloser, error) {
	switch {
	case c.view != nil:
		return c.view.Open(ctx, c.path)
	case c.spool != nil:
		return io.NopCloser(c.spool.read(c.off, c.size)), nil
	}
	return io.NopCloser(bytes.NewReader(c.data)), nil
}

// digest of the content, from whoever knows it already.
func (i *inode) digest(ctx context.Context) (oci.Digest, error) {
	switch {
	case i.e.Digest != "":
		return i.e.Digest, nil
	case i.content.view != nil:
		return i.content.view.Digest(ctx, i.content.path)
	}
	return digest.FromBytes(i.content.data), nil
}

// entry is n as a View shows it at path p.
func (n *node) entry(p string) *layer.Entry {
	e := n.inode.e
	e.Path = p
	if e.Type == layer.Regular && len(n.inode.names) > 1 && n.inode.names[0] != p {
		e.Link = n.inode.names[0]
	}
	return &e
}

// find walks to p. It returns the node at p, or else whether what the base
// has at p is what the draft has there.
func (d *Draft) find(p string) (n *node, shown bool) {
	n = d.root
	if p == "." {
		return n, true
	}
	for p != "" {
		var name string
		name, p, _ = strings.Cut(p, "/")
		k := n.kids[name]
		if k == nil {
			return nil, n.below
		}
		if k.gone {
			return nil, false
		}
		n = k
	}
	return n, true
}

// baseAt is what the base has at name in the directory n, whose path is dir,
// if it shows through there.
func (d *Draft) baseAt(n *node, dir, name string) *layer.Entry {
	if !n.below {
		return nil
	}
	e, err := d.base.Lstat(path.Join(dir, name))
	if err != nil {
		return nil
	}
	return e
}

// own returns the node of p, copied up from the base with all above it if
// there was none; nil if there is nothing at p.
func (d *Draft) own(p string) *node {
	n, at := d.root, "."
	for rest := p; rest != "" && p != "."; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		k := n.kids[name]
		if k == nil {
			e := d.baseAt(n, at, name)
			if e == nil {
				return nil
			}
			k = d.copyUp(e)
			n.set(name, k)
		}
		if k.gone {
			return nil
		}
		n, at = k, path.Join(at, name)
	}
	return n
}

func (d *Draft) copyUp(e *layer.Entry) *node {
	i := &inode{e: *d.relink(e)}
	i.e.Xattrs = maps.Clone(i.e.Xattrs)
	if e.Type == layer.Regular {
		i.e.Link = "" // its content comes along; the other names keep theirs
		i.content = content{view: d.base, path: e.Path}
	}
	return &node{inode: i, below: e.Type == layer.Dir}
}

func (n *node) set(name string, k *node) {
	if n.kids == nil {
		n.kids = make(map[string]*node)
	}
	n.kids[name] = k
}

// dirOf returns the node of the directory that holds p, for a change in it.
func (d *Draft) dirOf(op, p string) (*node, error) {
	parent := d.own(path.Dir(p))
	switch {
	case parent == nil && d.through(path.Dir(p)):
		return nil, pathError(op, p, syscall.ENOTDIR)
	case parent == nil:
		return nil, pathError(op, p, syscall.ENOENT)
	case parent.inode.e.Type != layer.Dir:
		return nil, pathError(op, p, syscall.ENOTDIR)
	}
	return parent, nil
}

// through tells whether something above p is no directory.
func (d *Draft) through(p string) bool {
	for p != "." {
		p = path.Dir(p)
		if e := d.stat(p); e != nil {
			return e.Type != layer.Dir
		}
	}
	return false
}

// put makes i what is at p, in place of whatever was there. The directory that
// holds p changes with it: its time is now.
func (d *Draft) put(op, p string, i *inode) error {
	parent, err := d.dirOf(op, p)
	if err != nil {
		return err
	}
	name := path.Base(p)
	if old := parent.kids[name]; old != nil {
		old.forget(p)
	}
	n := &node{inode: i}
	if i.e.Type == layer.Dir {
		if b := d.baseAt(parent, path.Dir(p), name); b != nil && b.Type == layer.Dir {
			n.opaque = true
		}
	}
	parent.set(name, n)
	parent.inode.e.ModTime = d.now
	return nil
}

// remove takes away what is at p and all below it.
func (d *Draft) remove(p string) error {
	if d.stat(p) == nil {
		return nil
	}
	parent, err := d.dirOf("remove", p)
	if err != nil {
		return err
	}
	name := path.Base(p)
	if old := parent.kids[name]; old != nil {
		old.forget(p)
	}
	if d.baseAt(parent, path.Dir(p), name) != nil {
		parent.set(name, &node{gone: true})
	} else {
		delete(parent.kids, name)
	}
	parent.inode.e.ModTime = d.now
	return nil
}

// link makes p a further name of the file at target.
func (d *Draft) link(target, p string) error {
	t := d.own(target)
	if t == nil {
		return pathError("link", p, syscall.ENOENT)
	}
	if t.inode.e.Type == layer.Dir {
		return pathError("link", p, syscall.EPERM)
	}
	if err := d.put("link", p, t.inode); err != nil {
		return err
	}
	t.inode.name(target)
	t.inode.name(p)
	return nil
}

func (i *inode) name(p string) {
	if !slices.Contains(i.names, p) {
		i.names = append(i.names, p)
	}
}

// forget removes the names at and below p from the inodes that have several.
func (n *node) forget(p string) {
	if n.gone {
		return
	}
	if len(n.inode.names) > 0 {
		n.inode.names = slices.DeleteFunc(n.inode.names, func(s string) bool { return s == p })
	}
	for name, k := range n.kids {
		k.forget(path.Join(p, name))
	}
}
