package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// Pack writes the canonical tar of the overlay tree dir, an upper directory or
// what Unpack made, to w and returns its TOC. Sockets are left out, as docker
// does. With io.Discard it is how a RUN's diffID is computed.
//
// The root is an entry only where Unpack made it one: what a RUN does to "/"
// itself is in no layer, as with docker. dir must not be written meanwhile; a
// file that changes while it is read fails with oci.ErrConflict.
func Pack(ctx context.Context, w io.Writer, dir string) (*TOC, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	return (&packer{ctx: ctx, w: NewWriter(w), inodes: map[inode]string{}}).pack(root)
}

// PackBuilt is Pack of a directory that a build's step or a container wrote.
// What BuiltXattrs leaves out it takes off the files, so that the tree is the
// layer's.
func PackBuilt(ctx context.Context, w io.Writer, dir string) (*TOC, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	return (&packer{ctx: ctx, w: NewWriter(w), inodes: map[inode]string{}, built: true}).pack(root)
}

func (p *packer) pack(root int) (*TOC, error) {
	if err := p.dir(root, "."); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return p.w.Close()
}

type inode struct{ dev, ino uint64 }

type packer struct {
	ctx    context.Context
	w      *Writer
	inodes map[inode]string // the first path of each that has several
	list   []byte           // of xattr names
	value  []byte
	built  bool
}

// dir writes the entries of an open directory and all below it.
func (p *packer) dir(fd int, path string) error {
	if strings.Count(path, "/") >= maxDepth {
		return fmt.Errorf("%.100q… is deeper than %d directories: %w", path, maxDepth, oci.ErrUnsupported)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %q: %w", path, err)
	}
	x, err := p.xattrs(path, openFile(fd))
	if err != nil {
		return err
	}
	if path != "." && !x.implied || path == "." && x.root {
		e := entryOf(path, Dir, &st, x.keep)
		if err := p.w.Write(e, nil); err != nil {
			return err
		}
	}
	if x.opaque {
		if err := p.w.Write(Entry{Path: path, Type: Opaque}, nil); err != nil {
			return err
		}
	}
	names, err := readNames(fd)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", path, err)
	}
	for _, name := range names {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		if err := p.child(fd, path, name); err != nil {
			return err
		}
	}
	return nil
}

// readNames lists an open directory in canonical order.
func readNames(fd int) ([]string, error) {
	dup, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), "")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (p *packer) child(at int, dir, name string) error {
	path := join(dir, name)
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat %q: %w", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open directory %q: %w", path, err)
		}
		defer unix.Close(fd)
		return p.dir(fd, path)
	case unix.S_IFREG:
		return p.file(at, name, path)
	case unix.S_IFSOCK:
		return nil
	}
	return p.special(at, name, path, &st)
}

// linked writes e as a hard link where an entry before it is the same inode.
// The kernel hard-links whiteouts with each other: they never come here.
func (p *packer) linked(e *Entry, st *unix.Stat_t) (bool, error) {
	if st.Nlink < 2 {
		return false, nil
	}
	key := inode{uint64(st.Dev), st.Ino}
	first, ok := p.inodes[key]
	if !ok {
		p.inodes[key] = e.Path
		return false, nil
	}
	e.Type, e.Link, e.Size = HardLink, first, 0
	return true, p.w.Write(*e, nil)
}

func (p *packer) file(at int, name, path string) error {
	// O_NONBLOCK: should it have become a fifo, we must not hang.
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %q: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%q changed while it was read: %w", path, oci.ErrConflict)
	}
	x, err := p.xattrs(path, openFile(fd))
	if err != nil {
		return err
	}
	if x.whiteout && st.Size == 0 {
		return p.w.Write(Entry{Path: path, Type: Whiteout}, nil)
	}
	e := entryOf(path, Regular, &st, x.keep)
	e.Size = st.Size
	if done, err := p.linked(&e, &st); done || err != nil {
		return err
	}
	if err := p.w.Write(e, fdReader(fd)); err != nil {
		if errors.Is(err, oci.ErrInvalid) {
			var now unix.Stat_t
			if unix.Fstat(fd, &now) == nil && now.Size != st.Size {
				return fmt.Errorf("%q changed while it was read (%d bytes, then %d): %w", path, st.Size, now.Size, oci.ErrConflict)
			}
		}
		return err
	}
	return nil
}

type fdReader int

func (fd fdReader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, fmt.Errorf("read: %w", err)
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (p *packer) special(at int, name, path string, st *unix.Stat_t) error {
	var t Type
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		t = Symlink
	case unix.S_IFIFO:
		t = Fifo
	case unix.S_IFBLK:
		t = Block
	case unix.S_IFCHR:
		if isWhiteout(st) {
			return p.w.Write(Entry{Path: path, Type: Whiteout}, nil)
		}
		t = Char
	default:
		return fmt.Errorf("%q has the unknown type %#o: %w", path, st.Mode, oci.ErrUnsupported)
	}
	x, err := p.xattrs(path, namedFile(procPath(at, name)))
	if err != nil {
		return err
	}
	e := entryOf(path, t, st, x.keep)
	switch t {
	case Symlink:
		var b [maxPath]byte
		n, err := unix.Readlinkat(at, name, b[:])
		if err != nil {
			return fmt.Errorf("read link %q: %w", path, err)
		}
		e.Link = string(b[:n])
	case Char, Block:
		e.DevMajor, e.DevMinor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if done, err := p.linked(&e, st); done || err != nil {
		return err
	}
	return p.w.Write(e, nil)
}

func entryOf(path string, t Type, st *unix.Stat_t, xattrs map[string]string) Entry {
	return Entry{
		Path: path, Type: t, Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Xattrs: xattrs,
	}
}

// found is what the xattrs of a node say.
type found struct {
	keep                            map[string]string
	opaque, implied, root, whiteout bool
}

// holder is a file as far as its xattrs go: open, or by a name that is not
// followed.
type holder interface {
	list([]byte) (int, error)
	get(string, []byte) (int, error)
	remove(string) error
}

type openFile int

func (f openFile) list(b []byte) (int, error)          { return unix.Flistxattr(int(f), b) }
func (f openFile) get(n string, b []byte) (int, error) { return unix.Fgetxattr(int(f), n, b) }
func (f openFile) remove(n string) error               { return unix.Fremovexattr(int(f), n) }

type namedFile string

func (f namedFile) list(b []byte) (int, error)          { return unix.Llistxattr(string(f), b) }
func (f namedFile) get(n string, b []byte) (int, error) { return unix.Lgetxattr(string(f), n, b) }
func (f namedFile) remove(n string) error               { return unix.Lremovexattr(string(f), n) }

// xattrs reads the xattrs of a node. Most have none, which costs one call.
func (p *packer) xattrs(path string, h holder) (found, error) {
	var f found
	if p.list == nil {
		p.list, p.value = make([]byte, 64<<10), make([]byte, maxXattr)
	}
	n, err := h.list(p.list)
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("list xattrs of %q: %w", path, err)
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(p.list[:n]), "\x00"), "\x00") {
		own, isOverlay := strings.CutPrefix(name, overlayTrusted)
		if !isOverlay {
			own, isOverlay = strings.CutPrefix(name, overlayUser)
		}
		if !isOverlay && !portable(name) {
			continue
		}
		if !isOverlay && p.built && name != capability {
			if err := h.remove(name); err != nil {
				return f, fmt.Errorf("remove xattr %s of %q: %w", name, path, err)
			}
			continue
		}
		n, err := h.get(name, p.value)
		if err != nil {
			return f, fmt.Errorf("read xattr %s of %q: %w", name, path, err)
		}
		v := string(p.value[:n])
		if !isOverlay {
			if f.keep == nil {
				f.keep = map[string]string{}
			}
			f.keep[name] = v
			continue
		}
		switch own {
		case opaqueXattr:
			f.opaque = v == "y" // "x" marks a directory of xattr whiteouts
		case impliedXattr:
			f.implied = true
		case rootXattr:
			f.root = true
		case whiteoutXattr:
			f.whiteout = true
		case "redirect", "metacopy":
			return f, fmt.Errorf("%q is not whole in this tree: overlayfs was mounted with %s on: %w", path, own, oci.ErrUnsupported)
		}
	}
	return f, nil
}
