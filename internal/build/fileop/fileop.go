// Package fileop does what LLB's file operation does (copy, mkdir, mkfile, rm,
// symlink) without a tree on disk: a Draft is a View with pending changes, and
// its changes are written as one layer, contents streaming from where they
// are.
//
// What each action means is BuildKit's (solver/llbsolver/file and
// tonistiigi/fsutil/copy, v0.33): which attributes new parent directories get,
// what happens to an existing destination, which errors say what. Where
// BuildKit's result is an accident of its host (paths of mounts in errors),
// ours is what was meant.
//
// Invariants: nothing outside of a view's root is ever reached, whatever
// symlinks say; a layer holds every directory above what it changes, with its
// attributes, as overlayfs would have copied it up; the same actions on the
// same views with the same time give the same layer.
package fileop

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Draft is a view of a base with pending changes. It implements tree.View; use
// by several goroutines is fine as long as none of them calls Apply.
type Draft struct {
	base  tree.View
	root  *node
	spool *spool
	now   time.Time // of the action being applied
}

var _ tree.View = (*Draft)(nil)

// New returns a Draft without changes. A nil base is scratch: an empty root.
func New(base tree.View) *Draft {
	root := &inode{e: layer.Entry{Path: ".", Type: layer.Dir, Mode: 0o755}}
	if base != nil {
		if e, err := base.Lstat("."); err == nil && e.Type == layer.Dir {
			root.e = *e
		}
	}
	return &Draft{base: base, root: &node{inode: root, below: base != nil}}
}

// Apply makes the changes of action a. src is what a copy copies from, users
// gives the view in which a NamedUserOpt's name is looked up, and now is the
// time of what is made or changed where the action names none.
//
// An action that fails may have been done in part: the Draft is good for
// nothing then but to be thrown away.
func (d *Draft) Apply(ctx context.Context, a *pb.FileAction, src tree.View, users func(input int64) (tree.View, error), now time.Time) error {
	d.now = now
	switch t := a.GetAction().(type) {
	case *pb.FileAction_Mkdir:
		o, err := ownerOf(ctx, t.Mkdir.Owner, users)
		if err != nil {
			return err
		}
		return d.mkdir(t.Mkdir, o)
	case *pb.FileAction_Mkfile:
		o, err := ownerOf(ctx, t.Mkfile.Owner, users)
		if err != nil {
			return err
		}
		return d.mkfile(t.Mkfile, o)
	case *pb.FileAction_Symlink:
		o, err := ownerOf(ctx, t.Symlink.Owner, users)
		if err != nil {
			return err
		}
		return d.symlink(t.Symlink, o)
	case *pb.FileAction_Rm:
		return d.rm(t.Rm)
	case *pb.FileAction_Copy:
		o, err := ownerOf(ctx, t.Copy.Owner, users)
		if err != nil {
			return err
		}
		if src == nil {
			src = New(nil)
		}
		return d.copy(ctx, t.Copy, src, o)
	}
	return fmt.Errorf("file action of an unknown type %T: %w", a.GetAction(), oci.ErrUnsupported)
}

// Close frees the disk space that unpacked archives take while they wait to
// be written. The Draft must not be used after it.
func (d *Draft) Close() error { return d.spool.close() }

// SpoolIn names the directory for the contents of archives that are unpacked
// (ADD of a tar), which wait there for Write; the default is os.TempDir.
func (d *Draft) SpoolIn(dir string) { d.spool = &spool{dir: dir} }

// Lstat implements tree.View.
func (d *Draft) Lstat(p string) (*layer.Entry, error) {
	if e := d.stat(p); e != nil {
		return e, nil
	}
	return nil, pathError("lstat", p, syscall.ENOENT)
}

// stat is Lstat without the cost of an error: nil says there is nothing.
func (d *Draft) stat(p string) *layer.Entry {
	n, shown := d.find(p)
	switch {
	case n != nil:
		return n.entry(p)
	case shown:
		if e, err := d.base.Lstat(p); err == nil {
			return d.relink(e)
		}
	}
	return nil
}

// relink cuts a hard link of the base from its group if the group's first
// member is not what it was any more: its content stays, its name does not.
func (d *Draft) relink(e *layer.Entry) *layer.Entry {
	if e.Link == "" || e.Type != layer.Regular {
		return e
	}
	if n, shown := d.find(e.Link); n == nil && shown {
		return e
	}
	c := *e
	c.Link = ""
	return &c
}

// ReadDir implements tree.View.
func (d *Draft) ReadDir(p string) ([]*layer.Entry, error) {
	n, shown := d.find(p)
	if n == nil {
		if !shown {
			return nil, pathError("readdir", p, syscall.ENOENT)
		}
		all, err := d.base.ReadDir(p)
		return d.relinkAll(all), err
	}
	if n.inode.e.Type != layer.Dir {
		return nil, pathError("readdir", p, syscall.ENOTDIR)
	}
	var out []*layer.Entry
	if n.below {
		all, err := d.base.ReadDir(p)
		if err != nil {
			return nil, err
		}
		out = make([]*layer.Entry, 0, len(all)+len(n.kids))
		for _, e := range all {
			if _, ok := n.kids[path.Base(e.Path)]; !ok {
				out = append(out, d.relink(e))
			}
		}
	}
	for name, k := range n.kids {
		if !k.gone {
			out = append(out, k.entry(path.Join(p, name)))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out, nil
}

func (d *Draft) relinkAll(all []*layer.Entry) []*layer.Entry {
	for i, e := range all {
		if r := d.relink(e); r != e {
			all = append([]*layer.Entry(nil), all...)
			all[i] = r
		}
	}
	return all
}

// Open implements tree.View.
func (d *Draft) Open(ctx context.Context, p string) (io.ReadCloser, error) {
	n, shown := d.find(p)
	switch {
	case n != nil && n.inode.e.Type == layer.Regular:
		return n.inode.content.open(ctx)
	case n != nil:
		return nil, pathError("open", p, syscall.EINVAL)
	case shown:
		return d.base.Open(ctx, p)
	}
	return nil, pathError("open", p, syscall.ENOENT)
}

// Digest implements tree.View.
func (d *Draft) Digest(ctx context.Context, p string) (oci.Digest, error) {
	n, shown := d.find(p)
	switch {
	case n != nil && n.inode.e.Type == layer.Regular:
		return n.inode.digest(ctx)
	case n != nil:
		return "", pathError("digest", p, syscall.EINVAL)
	case shown:
		return d.base.Digest(ctx, p)
	}
	return "", pathError("digest", p, syscall.ENOENT)
}

// pathError names p as the build sees it: from the root of the view.
func pathError(op, p string, err error) error {
	return &fs.PathError{Op: op, Path: slash(p), Err: err}
}

// slash writes a view's path as people do: "." is "/", "a" is "/a".
func slash(p string) string { return path.Join("/", p) }

// rel turns an absolute or relative path as an action names it into a view's.
func rel(p string) string {
	if p = strings.TrimPrefix(path.Join("/", p), "/"); p != "" {
		return p
	}
	return "."
}
