package fileop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/moby/buildkit/solver/pb"
	mode "github.com/tonistiigi/dchapes-mode"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

const defaultDirMode = 0o755

// copier copies one source into a Draft.
type copier struct {
	d       *Draft
	v       tree.View
	owner   *owner
	mode    *uint32   // octal, with setuid, setgid and sticky
	modeSet *mode.Set // symbolic
	utime   *time.Time
	replace bool
	// dst is where the source goes.
	dst string
	// links has the copy of each inode: later names of it become hard links.
	links map[string]string
	// above are the directories entered and not left, outermost first.
	above []entered
	// created are the directories made above dst.
	created []*inode
}

type entered struct {
	rel  string
	e    *layer.Entry
	made bool // or it was there; either way it needs nothing more
	new  bool
	was  *layer.Entry // what was at its place
}

func (d *Draft) copy(ctx context.Context, a *pb.FileActionCopy, src tree.View, o *owner) error {
	c := &copier{d: d, v: src, owner: o, replace: a.AlwaysReplaceExistingDestPaths}
	if a.Timestamp != -1 {
		t := time.Unix(0, a.Timestamp)
		c.utime = &t
	}
	if err := c.setMode(a); err != nil {
		return err
	}
	if !a.CreateDestPath {
		p, err := statter(d.stat).resolve(a.Dest, true)
		if err != nil {
			return err
		}
		if d.stat(path.Dir(p)) == nil {
			return fmt.Errorf("failed to stat %s: %w", a.Dest, pathError("lstat", path.Dir(p), syscall.ENOENT))
		}
	}
	all, err := sources(src, a)
	if err != nil {
		return err
	}
	if len(all) == 0 && !a.AllowEmptyWildcard {
		return fmt.Errorf("%s not found: %w", slash(a.Src), oci.ErrNotFound)
	}
	for _, s := range all {
		if a.AttemptUnpackDockerCompatibility {
			if done, err := d.unpack(ctx, src, s, a, o); err != nil || done {
				if err != nil {
					return err
				}
				continue
			}
		}
		w, err := newWalker(ctx, src, a, c)
		if err != nil {
			return err
		}
		if err := c.one(w, s, a); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) setMode(a *pb.FileActionCopy) error {
	switch {
	case a.ModeStr != "":
		set, err := parseMode(a.ModeStr)
		if err != nil {
			return err
		}
		c.modeSet = set
	case a.Mode != -1:
		m := uint32(a.Mode) & 0o7777
		c.mode = &m
	}
	return nil
}

// one copies s to where a says: into the directory that dest is or becomes, or
// to dest itself.
func (c *copier) one(w *walker, s source, a *pb.FileActionCopy) error {
	c.links, c.above, c.created = map[string]string{}, nil, nil
	dir := path.Join("/", a.Dest)
	if !strings.HasSuffix(a.Dest, "/") && !strings.HasSuffix(a.Dest, "/.") {
		dir = path.Dir(dir)
	}
	dir, err := statter(c.d.stat).resolve(dir, true)
	if err != nil {
		return err
	}
	if err := c.parents(dir); err != nil {
		return err
	}
	if c.dst, err = statter(c.d.stat).resolve(a.Dest, true); err != nil {
		return err
	}
	e, err := c.v.Lstat(s.at)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return pathError("lstat", s.name, syscall.ENOENT)
		}
		return err
	}
	isDir := e.Type == layer.Dir
	there := c.d.stat(c.dst)
	if isDir && !a.DirCopyContents && there != nil ||
		!isDir && there != nil && there.Type == layer.Dir {
		c.dst = path.Join(c.dst, s.base())
	}
	dir = path.Dir(c.dst)
	if isDir && a.DirCopyContents && there == nil {
		dir = c.dst
	}
	if err := c.parents(dir); err != nil {
		return err
	}
	if err := w.walk("", e, matches{}); err != nil {
		return err
	}
	if c.utime != nil { // what was put into them gave them another
		for _, i := range c.created {
			i.e.ModTime = *c.utime
		}
	}
	return nil
}

// parents makes the directory p and those above it. New ones get the octal
// mode of the copy, if it has one: a quirk that images depend on.
func (c *copier) parents(p string) error {
	m, at := uint32(defaultDirMode), c.d.now
	if c.mode != nil {
		m = *c.mode & 0o777
	}
	if c.utime != nil {
		at = *c.utime
	}
	all, err := c.d.mkdirAll(p, m, c.owner, at)
	c.created = append(c.created, all...)
	return err
}

func (c *copier) to(rel string) string { return path.Join(c.dst, rel) }

func (c *copier) enter(rel string, e *layer.Entry, include bool) error {
	x := entered{rel: rel, e: e}
	if include {
		if err := c.flush(); err != nil {
			return err
		}
		dst := c.to(rel)
		was := c.d.stat(dst)
		if c.replace && was != nil && was.Type != layer.Dir {
			if err := c.d.remove(dst); err != nil {
				return err
			}
			was = nil
		}
		created, err := c.mkdir(dst, e, was, rel != "")
		if err != nil {
			return err
		}
		x.made, x.new, x.was = true, created, was
	}
	c.above = append(c.above, x)
	return nil
}

// mkdir makes the directory dst as a copy of e, or merges with the directory
// that is there, which takes e's mode if it is below the source's top.
func (c *copier) mkdir(dst string, e, was *layer.Entry, overwrite bool) (created bool, err error) {
	switch {
	case was == nil:
		err := c.d.put("mkdir", dst, &inode{e: layer.Entry{Type: layer.Dir, Mode: e.Mode, ModTime: c.d.now}})
		return true, err
	case was.Type != layer.Dir:
		return false, fmt.Errorf("cannot copy to non-directory: %s", slash(dst))
	case overwrite:
		c.d.own(dst).inode.e.Mode = e.Mode
	}
	return false, nil
}

// flush makes the directories that waited for something to be copied in them.
func (c *copier) flush() error {
	for i := range c.above {
		x := &c.above[i]
		if x.made {
			continue
		}
		dst := c.to(x.rel)
		created, err := c.mkdir(dst, x.e, c.d.stat(dst), true)
		if err != nil {
			return err
		}
		if created {
			c.attributes(c.d.own(dst).inode, x.e)
		}
		x.made = true
	}
	return nil
}

func (c *copier) leave(rel string, e *layer.Entry, include bool) error {
	x := c.above[len(c.above)-1]
	c.above = c.above[:len(c.above)-1]
	if !include {
		return nil
	}
	switch {
	case rel != "" || x.new:
		c.attributes(c.d.own(c.to(rel)).inode, e)
	case x.was != nil:
		// What was there keeps all but its time.
		if n := c.d.own(c.to(rel)); c.utime != nil {
			n.inode.e.ModTime = *c.utime
		} else {
			n.inode.e.ModTime = e.ModTime
		}
	}
	return nil
}

func (c *copier) file(rel string, e *layer.Entry) error {
	dst := c.to(rel)
	was := c.d.stat(dst)
	if c.replace && was != nil && was.Type == layer.Dir {
		if err := c.d.remove(dst); err != nil {
			return err
		}
		was = nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	if was != nil && was.Type == layer.Dir {
		return fmt.Errorf("cannot replace to directory %s with file", slash(dst))
	}
	i := &inode{e: layer.Entry{Type: e.Type, Mode: e.Mode, Size: e.Size, Digest: e.Digest,
		DevMajor: e.DevMajor, DevMinor: e.DevMinor}}
	switch e.Type {
	case layer.Regular:
		group := e.Link
		if group == "" {
			group = e.Path
		}
		if first, ok := c.links[group]; ok {
			if err := c.d.link(first, dst); err != nil {
				return err
			}
			c.attributes(c.d.own(dst).inode, e)
			return nil
		}
		c.links[group] = dst
		i.content = content{view: c.v, path: e.Path}
	case layer.Symlink:
		i.e.Link = e.Link
	case layer.Block:
		i.e.Type = layer.Char // as docker's copy has it; an ADDed archive's stays one
	case layer.Char, layer.Fifo:
	default:
		return fmt.Errorf("%s: cannot copy an entry of type %q: %w", slash(e.Path), e.Type, oci.ErrInvalid)
	}
	c.attributes(i, e)
	err := c.d.put("open", dst, i)
	return err
}

// attributes gives i the owner, mode, time and xattrs of its source e, as the
// copy overrides them.
func (c *copier) attributes(i *inode, e *layer.Entry) {
	i.e.UID, i.e.GID = e.UID, e.GID
	if c.owner != nil {
		i.e.UID, i.e.GID = c.owner.uid, c.owner.gid
	}
	i.e.Mode = c.modeOf(e)
	i.e.ModTime = e.ModTime
	if c.utime != nil {
		i.e.ModTime = *c.utime
	}
	if len(e.Xattrs) > 0 {
		if i.e.Xattrs == nil {
			i.e.Xattrs = make(map[string]string, len(e.Xattrs))
		}
		maps.Copy(i.e.Xattrs, e.Xattrs)
	}
}

func (c *copier) modeOf(e *layer.Entry) uint32 {
	switch {
	case e.Type == layer.Symlink:
		return e.Mode
	case c.modeSet != nil:
		return applyMode(c.modeSet, e)
	case c.mode != nil:
		return *c.mode
	}
	return e.Mode
}

// parseMode reads a symbolic mode, "u=rwX,go-w", as chmod(1) with umask 0.
func parseMode(s string) (*mode.Set, error) {
	set, err := mode.ParseWithUmask(s, 0)
	if err != nil {
		return nil, fmt.Errorf("mode %q: %v: %w", s, err, oci.ErrInvalid)
	}
	return &set, nil
}

func applyMode(set *mode.Set, e *layer.Entry) uint32 {
	m := set.Apply(e.FileMode())
	out := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		out |= syscall.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		out |= syscall.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		out |= syscall.S_ISVTX
	}
	return out
}
