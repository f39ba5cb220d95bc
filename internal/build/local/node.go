package local

import (
	"errors"
	"path"
	"sort"
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
	path string
	typ  layer.Type
	// keep: patterns show it by itself. Else it is a directory that is shown
	// if anything below it is.
	keep  bool
	m     matches
	entry *layer.Entry
	id    identity
	// digest of a regular file that was computed in this run; see file.go.
	digest atomic.Pointer[hashed]

	once sync.Once
	kids []*node
	err  error

	seek sync.Once // whether anything below is shown
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
	i := sort.Search(len(kids), func(i int) bool { return path.Base(kids[i].path) >= name })
	if i < len(kids) && path.Base(kids[i].path) == name {
		return kids[i]
	}
	return nil
}

func (d *Dir) statTop() error {
	d.top.seek.Do(func() {
		var st unix.Stat_t
		if err := unix.Fstat(d.root, &st); err != nil {
			d.top.serr = trouble("stat", d.path, err)
			return
		}
		d.top.some = true
		d.top.fill(&st, "")
	})
	return d.top.serr
}

// visible tells whether n is shown. Of a directory that no pattern names it
// looks for anything below that is.
func (d *Dir) visible(n *node) (bool, error) {
	if n.keep {
		return true, nil
	}
	n.seek.Do(func() {
		kids, err := d.load(n, d.filter.own())
		if err != nil {
			n.serr = err
			return
		}
		for _, k := range kids {
			if n.some, n.serr = d.visible(k); n.some || n.serr != nil {
				return
			}
		}
	})
	return n.some, n.serr
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
func (d *Dir) load(n *node, f *filter) ([]*node, error) {
	n.once.Do(func() { n.kids, n.err = d.list(n, f) })
	return n.kids, n.err
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
	sort.Strings(names)
	kids := make([]*node, 0, len(names))
	for _, name := range names {
		p := name
		if n.path != "." {
			p = n.path + "/" + name
		}
		k := &node{path: p}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			return nil, trouble("lstat", p, err)
		}
		may, err := f.match(k, n.m, st.Mode&unix.S_IFMT == unix.S_IFDIR)
		if err != nil {
			return nil, err
		}
		if !may || st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			continue
		}
		link := ""
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			if link, err = readLink(fd, name, st.Size); err != nil {
				return nil, trouble("readlink", p, err)
			}
		}
		k.fill(&st, link)
		d.known(k, fd, name)
		kids = append(kids, k)
	}
	return kids, nil
}

// fill makes the entry from what the kernel says.
func (n *node) fill(st *unix.Stat_t, link string) {
	e := &layer.Entry{Path: n.path, Mode: st.Mode & 0o7777, ModTime: time.Unix(st.Mtim.Unix()), Link: link}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = layer.Dir
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
	}
	if e.Type == layer.Char || e.Type == layer.Block {
		e.DevMajor, e.DevMinor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	n.typ, n.entry = e.Type, e
}

// readNames reads all names in the directory fd but "." and "..".
func readNames(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
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
