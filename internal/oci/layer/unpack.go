package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// UnpackOptions says how a tree is made.
type UnpackOptions struct {
	// Unprivileged uses user.overlay xattrs, skips device nodes and chown
	// errors are errors still: the caller is root in a user namespace.
	Unprivileged bool
	// Relocate, if given, maps an entry's Path to where it is unpacked: a
	// layer that writes through a symlink of a layer below needs it. The TOC
	// keeps the tar's paths.
	Relocate func(path string) string
	// Below, if given, returns a regular file of the layers below: what a hard
	// link means whose target is not in this layer. It becomes a copy, with the
	// attributes that the link's header has. oci.ErrNotFound where there is
	// none. Without Below such a link fails with oci.ErrInvalid.
	Below func(path string) (io.ReadCloser, error)
}

// Unpack extracts an uncompressed layer tar into dir, which exists and is
// empty, as a tree for overlayfs, and returns the TOC, digests of contents
// included. The order is content, owner, mode, xattrs, times (chown clears
// setuid bits and capabilities). Directories that the tar does not name get
// mode 0755, owner 0:0 and time 0 and are listed by TOC.Implied. Nothing is
// synced. On an error the caller throws dir away.
func Unpack(ctx context.Context, r io.Reader, dir string, opt UnpackOptions) (*TOC, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	u := &unpacker{s: newScanner(r), base: dir, opt: opt, umask: currentUmask(),
		rooted: os.Geteuid() == 0 && os.Getegid() == 0, prefix: overlayTrusted}
	if opt.Unprivileged {
		u.prefix = overlayUser
	}
	u.dirs = newDirs(root, u.prefix)
	defer u.dirs.close()
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, err := u.s.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = u.entry(ctx, e)
		}
		if err != nil {
			return nil, oci.NoSpace(err)
		}
	}
	if err := u.finishDirs(); err != nil {
		return nil, oci.NoSpace(err)
	}
	return u.s.finish()
}

type unpacker struct {
	s     *scanner
	base  string
	opt   UnpackOptions
	dirs  *dirs
	umask uint32
	// rooted: what this process makes belongs to 0:0. Directories get their
	// setgid bits only at the end, so they pass no group on.
	rooted bool
	prefix string // of overlay's xattrs
	// last is the directory of the entry before, which most entries share.
	lastPath string
	last     *dirNode
}

// entry makes one entry's node. Only real directories that this call has made
// itself are entered, so no symlink is ever followed, whatever the tar says.
func (u *unpacker) entry(ctx context.Context, e *Entry) error {
	p := e.Path
	if u.opt.Relocate != nil {
		if p = u.opt.Relocate(p); checkForeign(p) != nil {
			return fmt.Errorf("unpack %q: relocated to %q: %w", e.Path, p, oci.ErrInvalid)
		}
	}
	err := u.node(ctx, e, p)
	if err == nil {
		return nil
	}
	return fmt.Errorf("unpack %.300q: %w", e.Path, err)
}

func (u *unpacker) node(ctx context.Context, e *Entry, p string) error {
	switch e.Type {
	case Dir:
		return u.dir(p)
	case Opaque:
		d, err := u.dirs.make(p)
		if err != nil {
			return err
		}
		return u.dirs.opaque(d)
	}
	dir, name := splitPath(p)
	if u.last == nil || dir != u.lastPath {
		d, err := u.dirs.make(dir)
		if err != nil {
			return err
		}
		u.last, u.lastPath = d, dir
	}
	switch e.Type {
	case Regular:
		return u.file(ctx, u.last, name, e)
	case Whiteout:
		return u.whiteout(u.last, name)
	case HardLink:
		return u.hardLink(ctx, u.last, name, e)
	}
	return u.special(u.last, name, e)
}

// finishDirs gives the directories their attributes, once nothing is written
// into them any more.
func (u *unpacker) finishDirs() error {
	return u.dirs.walk(func(d *dirNode) error {
		fd, err := u.dirs.fd(d)
		if err != nil {
			return err
		}
		if d.entry < 0 {
			if d.parent == nil {
				return implied(fd, u.prefix, false)
			}
			return implied(fd, u.prefix, true)
		}
		e := &u.s.toc.Entries[d.entry]
		if d.parent == nil {
			if err := setMark(fd, u.prefix+rootXattr); err != nil {
				return err
			}
		}
		if err := unix.Fchown(fd, e.UID, e.GID); err != nil {
			return u.chownError(e, err)
		}
		if err := unix.Fchmod(fd, e.Mode); err != nil {
			return fmt.Errorf("unpack %.300q: set mode: %w", e.Path, err)
		}
		if err := u.xattrs(e, func(k string, v []byte) error { return unix.Fsetxattr(fd, k, v, 0) }); err != nil {
			return err
		}
		return futimes(fd, e.ModTime)
	})
}

// implied gives the directory the attributes of one that the tar does not
// name. The mark tells Pack to leave it out; the root needs none.
func implied(fd int, prefix string, mark bool) error {
	if mark {
		if err := setMark(fd, prefix+impliedXattr); err != nil {
			return err
		}
	}
	if err := unix.Fchown(fd, 0, 0); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, 0o755); err != nil {
		return err
	}
	return futimes(fd, time.Unix(0, 0))
}

func setMark(fd int, name string) error {
	if err := unix.Fsetxattr(fd, name, []byte("y"), 0); err != nil {
		return fmt.Errorf("set xattr %s: %w", name, err)
	}
	return nil
}

// dir makes a directory or keeps the one that is there; its attributes are set
// at the end.
func (u *unpacker) dir(p string) error {
	index := len(u.s.toc.Entries) - 1
	if p == "." {
		u.dirs.root.entry = index
		return nil
	}
	parent, name := splitPath(p)
	up, err := u.dirs.make(parent)
	if err != nil {
		return err
	}
	d, err := u.dirs.child(up, name, true)
	if err != nil {
		return err
	}
	d.entry = index
	return nil
}

// create calls fn to make the node name in d; what an earlier entry left there
// is removed first.
func (u *unpacker) create(d *dirNode, name string, fn func(at int) (int, error)) (int, error) {
	at, err := u.dirs.fd(d)
	if err != nil {
		return -1, err
	}
	fd, err := fn(at)
	if err == unix.EEXIST {
		if err := u.remove(d, at, name); err != nil {
			return -1, err
		}
		fd, err = fn(at)
	}
	if err != nil {
		return -1, fmt.Errorf("create: %w", err)
	}
	return fd, nil
}

// remove clears the way for a later entry of the same name: the last one wins.
func (u *unpacker) remove(d *dirNode, at int, name string) error {
	delete(d.gone, name)
	err := unix.Unlinkat(at, name, 0)
	if err == unix.EISDIR || err == unix.EPERM {
		u.dirs.forget(d, name)
		u.last = nil
		err = removeTree(u.base, d.path(), name)
	}
	if err != nil {
		return fmt.Errorf("remove the earlier entry: %w", err)
	}
	return nil
}

func removeTree(base, dir, name string) error {
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(join(dir, name))
}

// whiteout hides name of the layers below. What this same layer puts there
// stays, as the specification demands; a directory is made opaque then.
func (u *unpacker) whiteout(d *dirNode, name string) error {
	if kid := d.kids[name]; kid != nil {
		return u.dirs.opaque(kid)
	}
	at, err := u.dirs.fd(d)
	if err != nil {
		return err
	}
	err = unix.Mknodat(at, name, unix.S_IFCHR, 0)
	if err == unix.EPERM {
		return u.xattrWhiteout(d, at, name)
	}
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	d.hide(name)
	// The device's own attributes mean nothing; its time is fixed all the same.
	return utimesAt(at, name, time.Unix(0, 0))
}

// xattrWhiteout is the form for kernels older than 5.8 and for systems that
// forbid mknod: an empty file with an xattr, in a directory marked for it.
func (u *unpacker) xattrWhiteout(d *dirNode, at int, name string) error {
	fd, err := newFile(at, name, 0)
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	defer unix.Close(fd)
	d.hide(name)
	if err := setMark(fd, u.prefix+whiteoutXattr); err != nil {
		return err
	}
	if d.opaque {
		return nil
	}
	if err := unix.Fsetxattr(at, u.prefix+opaqueXattr, []byte("x"), 0); err != nil {
		return fmt.Errorf("mark directory of whiteouts: %w", err)
	}
	return nil
}

func (u *unpacker) hardLink(ctx context.Context, d *dirNode, name string, e *Entry) error {
	link := e.Link
	if u.opt.Relocate != nil {
		link = u.opt.Relocate(link)
	}
	tdir, tname := splitPath(link)
	td := u.dirs.find(tdir)
	if td == d && tname == name || d.kids[name] != nil && d.kids[name].holds(td) {
		return fmt.Errorf("hard link to %.300q, which it replaces: %w", e.Link, oci.ErrInvalid)
	}
	if td == nil || td.gone[tname] {
		return u.borrow(ctx, d, name, link, e)
	}
	if td.kids[tname] != nil {
		return fmt.Errorf("hard link to the directory %.300q: %w", e.Link, oci.ErrInvalid)
	}
	from, err := u.dirs.fd(td)
	if err != nil {
		return err
	}
	td.pins++
	defer func() { td.pins-- }()
	// Asked first, because making the link may remove an earlier entry.
	var st unix.Stat_t
	if err := unix.Fstatat(from, tname, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
		return u.borrow(ctx, d, name, link, e)
	} else if err != nil {
		return fmt.Errorf("hard link to %.300q: %w", e.Link, err)
	}
	_, err = u.create(d, name, func(at int) (int, error) {
		return 0, unix.Linkat(from, tname, at, name, 0)
	})
	return err
}

// borrow makes a hard link to a file of a layer below a copy of it.
func (u *unpacker) borrow(ctx context.Context, d *dirNode, name, link string, e *Entry) error {
	missing := fmt.Errorf("hard link to %.300q, which this layer does not have: %w", e.Link, oci.ErrInvalid)
	if u.opt.Below == nil {
		return missing
	}
	r, err := u.opt.Below(link)
	if errors.Is(err, oci.ErrNotFound) {
		return missing
	}
	if err != nil {
		return fmt.Errorf("hard link to %.300q: %w", e.Link, err)
	}
	defer r.Close()
	fd, err := u.create(d, name, func(at int) (int, error) { return newFile(at, name, e.Mode&0o777) })
	if err != nil {
		return err
	}
	for err == nil {
		if err = ctx.Err(); err != nil {
			break
		}
		var n int
		n, err = r.Read(u.s.buf)
		if werr := writeAll(fd, u.s.buf[:n]); werr != nil {
			err = werr
		}
	}
	if err == io.EOF {
		err = u.attributes(fd, e)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	return closeFile(fd)
}

// special makes symlinks, devices and fifos.
func (u *unpacker) special(d *dirNode, name string, e *Entry) error {
	if (e.Type == Char || e.Type == Block) && u.opt.Unprivileged {
		return nil
	}
	_, err := u.create(d, name, func(at int) (int, error) {
		switch e.Type {
		case Symlink:
			return 0, unix.Symlinkat(e.Link, at, name)
		case Fifo:
			return 0, unix.Mknodat(at, name, unix.S_IFIFO|0o600, 0)
		case Char:
			return 0, unix.Mknodat(at, name, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(e.DevMajor), uint32(e.DevMinor))))
		}
		return 0, unix.Mknodat(at, name, unix.S_IFBLK|0o600, int(unix.Mkdev(uint32(e.DevMajor), uint32(e.DevMinor))))
	})
	if err != nil {
		return err
	}
	at, err := u.dirs.fd(d)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(at, name, e.UID, e.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return u.chownError(e, err)
	}
	if e.Type != Symlink {
		// The node was made a moment ago in a directory that only we write.
		if err := unix.Fchmodat(at, name, e.Mode, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if len(e.Xattrs) > 0 {
		full := procPath(at, name)
		if err := u.xattrs(e, func(k string, v []byte) error { return unix.Lsetxattr(full, k, v, 0) }); err != nil {
			return err
		}
	}
	return utimesAt(at, name, e.ModTime)
}
