package local

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// node is an entry of the directory that patterns may show.
type node struct {
	path  string
	entry layer.Entry
	id    identity
	// digest of a regular file that was computed in this run; see file.go.
	digest atomic.Pointer[hashed]
	// keep: patterns show it by itself. Else it is a directory that is shown
	// if anything below it is.
	keep bool
	dir  *dirState // of a directory
}

// dirState is what is found out about a directory when somebody asks.
type dirState struct {
	m    matches
	once sync.Once // lists it
	kids []*node
	err  error

	seek sync.Once // whether anything in it is shown
	some bool
	serr error
}

type hashed struct {
	digest oci.Digest
	// racy: the file changed so lately that another change might not show.
	racy bool
}

// identity is what the kernel says of a file's content without reading it.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds
}

func identityOf(st *unix.Stat_t) identity {
	return identity{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

func child(kids []*node, name string) *node {
	i := sort.Search(len(kids), func(i int) bool { return kids[i].name() >= name })
	if i < len(kids) && kids[i].name() == name {
		return kids[i]
	}
	return nil
}

func (n *node) name() string { return n.path[strings.LastIndexByte(n.path, '/')+1:] }

func (d *Dir) statTop() error {
	var st unix.Stat_t
	if err := unix.Fstat(d.root, &st); err != nil {
		return trouble("stat", d.path, err)
	}
	d.top = &node{path: ".", keep: true}
	d.top.fill(&st)
	return nil
}

// visible tells whether n is shown. Of a directory that no pattern names it
// looks for anything below that is.
func (d *Dir) visible(n *node) (bool, error) {
	if n.keep {
		return true, nil
	}
	s := n.dir
	s.seek.Do(func() {
		kids, err := d.load(n)
		if err != nil {
			s.serr = err
			return
		}
		for _, k := range kids {
			if s.some, s.serr = d.visible(k); s.some || s.serr != nil {
				return
			}
		}
	})
	return s.some, s.serr
}

// openAt opens what is at p below the directory, no component of which may be
// a symlink, not even of somebody who swaps one in at this moment.
func (d *Dir) openAt(p string, flags int) (int, error) {
	for {
		fd, err := unix.Openat2(d.root, p, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// load lists the directory n and stats what patterns may show of it.
func (d *Dir) load(n *node) ([]*node, error) {
	s := n.dir
	s.once.Do(func() {
		f := d.filters.get()
		s.kids, s.err = d.list(n, f)
		d.filters.put(f)
	})
	return s.kids, s.err
}

func (d *Dir) list(n *node, f *filter) ([]*node, error) {
	fd, err := d.openAt(n.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // removed since it was seen: as if it had never been
	}
	if err != nil {
		return nil, trouble("open", n.path, err)
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return nil, trouble("readdir", n.path, err)
	}
	slices.SortFunc(names, func(a, b named) int { return strings.Compare(a.name, b.name) })
	slab := make([]node, len(names)) // one allocation for a directory's nodes
	kids := make([]*node, 0, len(names))
	prefix := n.path + "/"
	if n.path == "." {
		prefix = ""
	}
	for i, x := range names {
		k := &slab[i]
		k.path = prefix + x.name
		may, m, err := f.match(k, n.dir.m, x.typ == unix.DT_DIR || x.typ == unix.DT_UNKNOWN)
		if err != nil {
			return nil, err
		}
		if !may || x.typ == unix.DT_SOCK {
			continue
		}
		switch ok, err := d.look(k, fd, x.name); {
		case err != nil:
			return nil, err
		case !ok || !k.keep && k.dir == nil:
			continue
		case k.dir != nil:
			k.dir.m = m
		}
		kids = append(kids, k)
	}
	return kids, nil
}

// look stats k, which is name in the directory fd. What is gone, or a socket,
// is not shown.
func (d *Dir) look(k *node, fd int, name string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, trouble("lstat", k.path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return false, nil
	case unix.S_IFLNK:
		link, err := readLink(fd, name, st.Size)
		if err != nil {
			return false, trouble("readlink", k.path, err)
		}
		k.entry.Link = link
	}
	k.fill(&st)
	if k.entry.Type == layer.Regular {
		d.known(k, fd, name)
	}
	return true, nil
}

// fill makes the entry from what the kernel says.
func (n *node) fill(st *unix.Stat_t) {
	e := &n.entry
	e.Path, e.Mode, e.ModTime = n.path, st.Mode&0o7777, time.Unix(st.Mtim.Unix())
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type, n.dir = layer.Dir, &dirState{}
	case unix.S_IFLNK:
		e.Type = layer.Symlink
	case unix.S_IFCHR:
		e.Type = layer.Char
	case unix.S_IFBLK:
		e.Type = layer.Block
	case unix.S_IFIFO:
		e.Type = layer.Fifo
	default:
		e.Type, e.Size = layer.Regular, st.Size
		n.id = identityOf(st)
		if st.Nlink > 1 {
			// A name for the inode that no path can be: whoever copies several
			// names of it makes hard links, as BuildKit does.
			e.Link = fmt.Sprintf("//inode/%x/%x", n.id.dev, n.id.ino)
		}
	}
	if e.Type == layer.Char || e.Type == layer.Block {
		e.DevMajor, e.DevMinor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
}

// named is a name in a directory with the type that the directory has for it.
type named struct {
	name string
	typ  byte
}

// readNames reads all names in the directory fd but "." and "..". Unlike
// unix.ParseDirent it keeps the types, which saves a stat of what is excluded.
func readNames(fd int) ([]named, error) {
	var names []named
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return names, err
		}
		// struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name, NUL
		for b := buf[:n]; len(b) > 19; {
			size := int(binary.NativeEndian.Uint16(b[16:]))
			if size < 20 || size > len(b) {
				return nil, unix.EIO
			}
			name := b[19:size]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if s := string(name); s != "." && s != ".." {
				names = append(names, named{s, b[18]})
			}
			b = b[size:]
		}
	}
}

func readLink(fd int, name string, size int64) (string, error) {
	for n := max(size+1, 64); ; n *= 2 {
		b := make([]byte, n)
		got, err := unix.Readlinkat(fd, name, b)
		if err != nil {
			return "", err
		}
		if int64(got) < n {
			return string(b[:got]), nil
		}
	}
}
