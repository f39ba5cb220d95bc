package layer

import (
	"container/list"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// openDirs is how many directories stay open: enough for the paths of any
// sane tar, and far from every file limit.
const openDirs = 64

// dirs are the directories of a tree that is being unpacked, every one of
// them made by us, so that whether a name is a directory needs no system call
// and entering one follows no symlink.
type dirs struct {
	root *dirNode
	open *list.List // of *dirNode, most recently used first, without the root
	// prefix of overlay's xattrs
	prefix string
}

type dirNode struct {
	name   string
	parent *dirNode
	kids   map[string]*dirNode
	gone   map[string]bool // the whiteouts in it
	entry  int             // in the TOC, -1 where the tar does not name it
	opaque bool
	file   int // descriptor, -1 where it is not open
	pins   int // while above 0 it stays open
	use    *list.Element
}

func newDirs(root int, prefix string) *dirs {
	return &dirs{root: &dirNode{file: root, entry: -1}, open: list.New(), prefix: prefix}
}

func (t *dirs) close() {
	unix.Close(t.root.file)
	for el := t.open.Front(); el != nil; el = el.Next() {
		unix.Close(el.Value.(*dirNode).file)
	}
}

// fd returns d's descriptor; it is good until the next call, or while d is
// pinned.
func (t *dirs) fd(d *dirNode) (int, error) {
	if d.file >= 0 {
		if d.use != nil {
			t.open.MoveToFront(d.use)
		}
		return d.file, nil
	}
	at, err := t.fd(d.parent)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Openat(at, d.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open directory %.300q: %w", d.path(), err)
	}
	for el := t.open.Back(); el != nil && t.open.Len() >= openDirs; {
		old, before := el.Value.(*dirNode), el.Prev()
		if old.pins == 0 {
			t.shut(old)
		}
		el = before
	}
	d.file, d.use = fd, t.open.PushFront(d)
	return fd, nil
}

func (t *dirs) shut(d *dirNode) {
	if d.use != nil {
		unix.Close(d.file)
		t.open.Remove(d.use)
		d.file, d.use = -1, nil
	}
}

// find returns the directory at p, or nil.
func (t *dirs) find(p string) *dirNode {
	d := t.root
	if p == "." {
		return d
	}
	for d != nil {
		name, rest, more := strings.Cut(p, "/")
		if d = d.kids[name]; !more {
			break
		}
		p = rest
	}
	return d
}

// make returns the directory at p and makes what is missing of it.
func (t *dirs) make(p string) (*dirNode, error) {
	d := t.root
	if p == "." {
		return d, nil
	}
	for {
		name, rest, more := strings.Cut(p, "/")
		kid := d.kids[name]
		if kid == nil {
			var err error
			if kid, err = t.child(d, name, false); err != nil {
				return nil, err
			}
		}
		d = kid
		if !more {
			return d, nil
		}
		p = rest
	}
}

// child makes the directory name in d. A whiteout in its place becomes an
// opaque directory, which hides as much; anything else is replaced only if
// replace is true.
func (t *dirs) child(d *dirNode, name string, replace bool) (*dirNode, error) {
	if kid := d.kids[name]; kid != nil {
		return kid, nil
	}
	at, err := t.fd(d)
	if err != nil {
		return nil, err
	}
	gone := d.gone[name]
	err = unix.Mkdirat(at, name, 0o700)
	if err == unix.EEXIST {
		if !gone && !replace {
			return nil, fmt.Errorf("lies in %.300q, which is no directory: %w", join(d.path(), name), oci.ErrInvalid)
		}
		if err := unix.Unlinkat(at, name, 0); err != nil {
			return nil, fmt.Errorf("remove the earlier entry: %w", err)
		}
		delete(d.gone, name)
		err = unix.Mkdirat(at, name, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("make directory %.300q: %w", join(d.path(), name), err)
	}
	kid := &dirNode{name: strings.Clone(name), parent: d, entry: -1, file: -1}
	if d.kids == nil {
		d.kids = map[string]*dirNode{}
	}
	d.kids[kid.name] = kid
	if gone {
		return kid, t.opaque(kid)
	}
	return kid, nil
}

// opaque marks d: it hides what the layers below have there.
func (t *dirs) opaque(d *dirNode) error {
	if d.opaque {
		return nil
	}
	fd, err := t.fd(d)
	if err != nil {
		return err
	}
	d.opaque = true
	return setMark(fd, t.prefix+opaqueXattr)
}

// forget drops the directory name of d and all below it.
func (t *dirs) forget(d *dirNode, name string) {
	kid := d.kids[name]
	if kid == nil {
		return
	}
	delete(d.kids, name)
	var shut func(*dirNode)
	shut = func(k *dirNode) {
		t.shut(k)
		for _, kk := range k.kids {
			shut(kk)
		}
	}
	shut(kid)
}

// walk calls fn for every directory, children before parents.
func (t *dirs) walk(fn func(*dirNode) error) error {
	var visit func(*dirNode) error
	visit = func(d *dirNode) error {
		names := make([]string, 0, len(d.kids))
		for n := range d.kids {
			names = append(names, n)
		}
		sort.Strings(names)
		for _, n := range names {
			if err := visit(d.kids[n]); err != nil {
				return err
			}
		}
		return fn(d)
	}
	return visit(t.root)
}

// hide notes the whiteout name in d.
func (d *dirNode) hide(name string) {
	if d.gone == nil {
		d.gone = map[string]bool{}
	}
	d.gone[strings.Clone(name)] = true
}

// holds tells whether k is d or lies below it.
func (d *dirNode) holds(k *dirNode) bool {
	for ; k != nil; k = k.parent {
		if k == d {
			return true
		}
	}
	return false
}

func (d *dirNode) path() string {
	if d.parent == nil {
		return "."
	}
	return join(d.parent.path(), d.name)
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// checkForeign accepts a path that is clean and stays inside the root.
func checkForeign(p string) error {
	clean, err := cleanName(p)
	if err == nil && clean != p {
		err = oci.ErrInvalid
	}
	return err
}

// procPath names a file for the system calls that take no descriptor.
func procPath(at int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(at) + "/" + name
}

// futimes sets access and modification time of an open file.
func futimes(fd int, t time.Time) error {
	ts := [2]unix.Timespec{timespec(t), timespec(t)}
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if e != 0 {
		return fmt.Errorf("set time: %w", e)
	}
	return nil
}

func utimesAt(at int, name string, t time.Time) error {
	ts := [2]unix.Timespec{timespec(t), timespec(t)}
	if err := unix.UtimesNanoAt(at, name, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// currentUmask reads the umask; umask(2) could only do so by changing it under
// other threads. Where /proc is missing, all bits: every file is chmoded.
func currentUmask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err == nil {
		if _, after, ok := strings.Cut(string(b), "\nUmask:"); ok {
			line, _, _ := strings.Cut(after, "\n")
			if v, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32); err == nil {
				return uint32(v)
			}
		}
	}
	return 0o777
}
