package fileop

import (
	"errors"
	"io/fs"
	"path"
	"syscall"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/oci/layer"
)

const setgid = 0o2000

var errEmptyPath = errors.New("rmPath: invalid empty path")

// timeOf is the time that an action names, or now: -1 is none.
func (d *Draft) timeOf(ts int64) time.Time {
	if ts == -1 {
		return d.now
	}
	return time.Unix(0, ts)
}

// made is the inode of something new: root's, if nobody else is named.
func made(t layer.Type, mode uint32, o *owner, at time.Time) *inode {
	i := &inode{e: layer.Entry{Type: t, Mode: mode, ModTime: at}}
	if o != nil {
		i.e.UID, i.e.GID = o.uid, o.gid
	}
	return i
}

// inherit does to something new what Linux does below a directory with the
// setgid bit: it has that directory's group, unless it is given an owner, and a
// directory has the bit too.
func (d *Draft) inherit(i *inode, dir string, o *owner) {
	e := d.stat(dir)
	if e == nil || e.Mode&setgid == 0 {
		return
	}
	if o == nil {
		i.e.GID = e.GID
	}
	if i.e.Type == layer.Dir {
		i.e.Mode |= setgid
	}
}

func (d *Draft) mkdir(a *pb.FileActionMkDir, o *owner) error {
	p, err := statter(d.stat).resolve(a.Path, true)
	if err != nil {
		return err
	}
	mode := uint32(a.Mode) & 0o777
	if a.MakeParents {
		_, err := d.mkdirAll(p, mode, o, d.timeOf(a.Timestamp))
		return err
	}
	if d.stat(p) != nil {
		return nil // whatever it is, as in BuildKit
	}
	i := made(layer.Dir, mode, o, d.timeOf(a.Timestamp))
	d.inherit(i, path.Dir(p), o)
	err = d.put("mkdir", p, i)
	return err
}

// mkdirAll makes the directory p, which has no symlinks, and those above it.
// All that are new get the same attributes, those that exist keep theirs. It
// returns the new ones.
func (d *Draft) mkdirAll(p string, mode uint32, o *owner, at time.Time) ([]*inode, error) {
	e := d.stat(p)
	switch {
	case e != nil && e.Type == layer.Dir:
		return nil, nil
	case e != nil:
		return nil, pathError("mkdir", p, syscall.ENOTDIR)
	}
	all, err := d.mkdirAll(path.Dir(p), mode, o, at)
	if err != nil {
		return nil, err
	}
	i := made(layer.Dir, mode, o, at)
	d.inherit(i, path.Dir(p), o)
	err = d.put("mkdir", p, i)
	return append(all, i), err
}

func (d *Draft) mkfile(a *pb.FileActionMkFile, o *owner) error {
	p, err := statter(d.stat).resolve(a.Path, true)
	if err != nil {
		return err
	}
	if p == "." {
		return pathError("mkfile", p, syscall.EISDIR)
	}
	if e := d.stat(p); e != nil && e.Type == layer.Dir {
		return pathError("rename", p, syscall.EEXIST)
	}
	i := made(layer.Regular, uint32(a.Mode)&0o777, o, d.timeOf(a.Timestamp))
	d.inherit(i, path.Dir(p), o)
	i.content.data, i.e.Size = a.Data, int64(len(a.Data))
	err = d.put("open", p, i)
	return err
}

func (d *Draft) symlink(a *pb.FileActionSymlink, o *owner) error {
	p, err := statter(d.stat).resolve(a.Newpath, true)
	if err != nil {
		return err
	}
	if d.stat(p) != nil {
		return &linkError{"symlink", a.Oldpath, slash(p), syscall.EEXIST}
	}
	i := made(layer.Symlink, 0o777, o, d.timeOf(a.Timestamp))
	i.e.Link = a.Oldpath
	if err = d.put("symlink", p, i); err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			return &linkError{"symlink", a.Oldpath, slash(p), pe.Err}
		}
	}
	return err
}

// linkError reads as os.LinkError does.
type linkError struct {
	op, old, new string
	err          error
}

func (e *linkError) Error() string { return e.op + " " + e.old + " " + e.new + ": " + e.err.Error() }
func (e *linkError) Unwrap() error { return e.err }

func (d *Draft) rm(a *pb.FileActionRm) error {
	if !a.AllowWildcard {
		return d.rmPath(a.Path, a.AllowNotFound)
	}
	all, err := glob(d, a.Path, false)
	if err != nil {
		return err
	}
	for _, p := range all {
		if err := d.rmPath(p, a.AllowNotFound); err != nil {
			return err
		}
	}
	return nil
}

func (d *Draft) rmPath(p string, allowNotFound bool) error {
	dir, name := path.Split(path.Join("/", p))
	if name == "" {
		return errEmptyPath
	}
	dir, err := statter(d.stat).resolve(dir, true)
	if err != nil {
		return err
	}
	p = path.Join(dir, name)
	if d.stat(p) == nil {
		if allowNotFound {
			return nil
		}
		return pathError("stat", p, syscall.ENOENT)
	}
	return d.remove(p)
}
