package output

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Dir lays the parts over the directory dest, made if it is missing. What has
// a name that the image has too is replaced, a directory joined; the rest of
// dest stays. Files belong to who runs this, as docker's do. Special files that
// this user may not make are left out and returned.
func Dir(ctx context.Context, dest string, parts []Part) (skipped []string, err error) {
	if err := os.MkdirAll(dest, 0o700); err != nil {
		return nil, err
	}
	root, err := openDir(unix.AT_FDCWD, dest, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dest, Err: err}
	}
	defer unix.Close(root)
	seen := map[string]bool{}
	for i := range parts {
		p := &parts[i]
		d := &dirWriter{ctx: ctx, part: p, root: root, uid: os.Getuid(), gid: os.Getgid(), firsts: tree.FirstNames{}, seen: seen}
		if err := d.run(); err != nil {
			return skipped, fmt.Errorf("%s: %w", dest, err)
		}
		skipped = append(skipped, d.skipped...)
	}
	return skipped, nil
}

// openDir opens the directory name of at. Only dest itself may be a symlink:
// the user named it.
func openDir(at int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// dirWriter writes one part.
type dirWriter struct {
	ctx      context.Context
	part     *Part
	root     int
	uid, gid int
	firsts   tree.FirstNames
	asides   atomic.Int64 // files that were written aside
	// seen are the files that were written, so that of two platforms without a
	// directory each none overwrites the other's.
	seen    map[string]bool
	skipped []string
}

func (d *dirWriter) run() error {
	top := d.root
	fresh := false
	if d.part.Dir != "" {
		var err error
		at := time.Now()
		if d.part.Time != nil {
			at = *d.part.Time
		}
		e := &layer.Entry{Path: d.part.Dir, Type: layer.Dir, Mode: 0o755, ModTime: at}
		if top, fresh, err = d.makeDir(d.root, d.part.Dir, false); err != nil {
			return err
		}
		defer unix.Close(top)
		d.root = top
		defer func() { _ = d.finish(top, e) }() // its time only
	}
	if err := d.fill(top, ".", fresh); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(d.part.Extra)) {
		body := d.part.Extra[name]
		it := item{Entry: layer.Entry{Path: name, Type: layer.Regular, Mode: 0o600, Size: int64(len(body)), ModTime: time.Now()}, body: body}
		if d.part.Time != nil {
			it.ModTime = *d.part.Time
		}
		if err := d.place(top, &it, fresh); err != nil {
			return err
		}
	}
	return nil
}

// fill writes what the view has in dir into fd. In a fresh directory, one that
// was made just now, nothing is in the way.
func (d *dirWriter) fill(fd int, dir string, fresh bool) error {
	kids, err := d.part.View.ReadDir(dir)
	if err != nil {
		return err
	}
	var files errgroup.Group
	files.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	var rest []item
	for _, e := range kids {
		if err := checkContext(d.ctx); err != nil {
			_ = files.Wait() // they end with ctx too
			return err
		}
		it := d.part.item(e, d.firsts)
		if it.Type != layer.Dir && d.part.Dir == "" {
			if d.seen[it.Path] {
				_ = files.Wait() // the error that stands is ours
				return fmt.Errorf("cannot overwrite %s from another platform when split option is disabled", it.Path)
			}
			d.seen[it.Path] = true
		}
		if it.Type == layer.Regular {
			files.Go(func() error { return d.place(fd, &it, fresh) })
		} else {
			rest = append(rest, it)
		}
	}
	if err := files.Wait(); err != nil {
		return err
	}
	for i := range rest {
		it := &rest[i]
		if e := &it.Entry; e.Type == layer.Dir {
			err = d.dir(fd, it, fresh)
		} else {
			err = d.place(fd, it, fresh)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dir writes a directory with all below it.
func (d *dirWriter) dir(at int, it *item, fresh bool) error {
	fd, fresh, err := d.makeDir(at, path.Base(it.Path), fresh)
	if err != nil {
		return &os.PathError{Op: "mkdir", Path: it.Path, Err: err}
	}
	defer unix.Close(fd)
	if err := d.fill(fd, it.Path, fresh); err != nil {
		return err
	}
	if err := d.finish(fd, &it.Entry); err != nil {
		return &os.PathError{Op: "chmod", Path: it.Path, Err: err}
	}
	return nil
}

// makeDir makes or opens a directory; fresh tells whether it was made.
func (d *dirWriter) makeDir(at int, name string, fresh bool) (int, bool, error) {
	err := unix.Mkdirat(at, name, 0o700)
	if err == nil {
		fd, err := openDir(at, name, unix.O_NOFOLLOW)
		return fd, true, err
	}
	if err != unix.EEXIST || fresh {
		return -1, false, err
	}
	fd, err := openDir(at, name, unix.O_NOFOLLOW)
	if err == nil {
		return fd, false, nil
	}
	if err != unix.ENOTDIR && err != unix.ELOOP {
		return -1, false, err
	}
	if err := unix.Unlinkat(at, name, 0); err != nil {
		return -1, false, err
	}
	return d.makeDir(at, name, true)
}

// finish gives what fd is, a file or directory, its attributes: the mode after
// the owner, which would clear setuid.
func (d *dirWriter) finish(fd int, e *layer.Entry) error {
	if err := setXattrs(fd, e.Xattrs); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, e.Mode&0o7777); err != nil {
		return err
	}
	return setTime(fd, "", e.ModTime, unix.AT_EMPTY_PATH)
}

func setTime(at int, name string, t time.Time, flags int) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return err
	}
	err = unix.UtimesNanoAt(at, name, []unix.Timespec{ts, ts}, flags)
	if flags == unix.AT_EMPTY_PATH && (err == unix.ENOENT || err == unix.EINVAL) {
		// Before Linux 5.8.
		return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", at), []unix.Timespec{ts, ts}, 0)
	}
	return err
}

// setXattrs sets what may be set: without root, or on a file system that has
// none, they are left out as docker leaves them out.
func setXattrs(fd int, xattrs map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		err := unix.Fsetxattr(fd, name, []byte(xattrs[name]), 0)
		if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	return nil
}

// place writes anything but a directory: where something may be in the way,
// aside and then renamed.
func (d *dirWriter) place(at int, it *item, fresh bool) error {
	name := path.Base(it.Path)
	err := unix.EEXIST
	tmp := name
	if !fresh {
		// Not made of name, which may be as long as names can be.
		tmp = fmt.Sprintf(".strake-%d-%d", os.Getpid(), d.asides.Add(1))
		_ = unix.Unlinkat(at, tmp, 0) // of one who died with this pid
	}
	if err := d.make(at, tmp, it); err != nil {
		if errors.Is(err, unix.EPERM) && (it.Type == layer.Char || it.Type == layer.Block) {
			d.skipped = append(d.skipped, "/"+it.Path)
			return nil
		}
		return fmt.Errorf("%s: %w", it.Path, err)
	}
	if fresh {
		return nil
	}
	defer unix.Unlinkat(at, tmp, 0) // also after a rename: of two names of one file it does nothing
	if err = renameat(at, tmp, name); err == unix.EISDIR || err == unix.ENOTEMPTY || err == unix.EEXIST {
		if rerr := removeAll(at, name); rerr != nil {
			return fmt.Errorf("%s: %w", it.Path, rerr)
		}
		err = renameat(at, tmp, name)
	}
	if err != 0 {
		return &os.PathError{Op: "rename", Path: it.Path, Err: err}
	}
	return nil
}

func renameat(at int, from, to string) unix.Errno {
	err := unix.Renameat(at, from, at, to)
	if err == nil {
		return 0
	}
	return err.(unix.Errno)
}

// removeAll removes the directory name of at, without leaving it.
func removeAll(at int, name string) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", at))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}

func (d *dirWriter) make(at int, name string, it *item) error {
	switch it.Type {
	case layer.Regular:
		return d.file(at, name, it)
	case layer.HardLink:
		if it.from != "" && it.Link == "" {
			return dangling(&it.Entry)
		}
		return d.link(at, name, it.Link)
	case layer.Symlink:
		if err := unix.Symlinkat(it.Link, at, name); err != nil {
			return err
		}
	case layer.Fifo:
		if err := unix.Mknodat(at, name, unix.S_IFIFO|it.Mode&0o7777, 0); err != nil {
			return err
		}
	case layer.Char, layer.Block:
		kind := uint32(unix.S_IFCHR)
		if it.Type == layer.Block {
			kind = unix.S_IFBLK
		}
		if err := unix.Mknodat(at, name, kind|it.Mode&0o7777, int(unix.Mkdev(uint32(it.DevMajor), uint32(it.DevMinor)))); err != nil {
			return err
		}
	default:
		return dangling(&it.Entry)
	}
	if it.Type != layer.Symlink {
		// The umask has been at it. The name is ours: nothing follows a link.
		if err := unix.Fchmodat(at, name, it.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return setTime(at, name, it.ModTime, unix.AT_SYMLINK_NOFOLLOW)
}

// link makes a further name of a file that was written before.
func (d *dirWriter) link(at int, name, target string) error {
	fd := d.root
	if dir := path.Dir(target); dir != "." {
		var err error
		fd, err = unix.Openat2(d.root, dir, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
		if err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	return unix.Linkat(fd, path.Base(target), at, name, 0)
}

// file writes a regular file.
func (d *dirWriter) file(at int, name string, it *item) error {
	fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), it.Path)
	defer f.Close()
	if it.body != nil {
		if _, err := f.Write(it.body); err != nil {
			return err
		}
	} else if it.Size > 0 {
		if err := d.content(f, it); err != nil {
			return err
		}
	}
	if err := d.finish(fd, &it.Entry); err != nil {
		return err
	}
	return f.Close()
}

// copyBuffer is how much of a file is read at once.
const copyBuffer = 256 << 10

func (d *dirWriter) content(f *os.File, it *item) error {
	r, err := d.part.View.Open(d.ctx, it.from)
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, r, make([]byte, min(copyBuffer, it.Size+1)))
	if err == nil && n != it.Size {
		err = &oci.SizeError{Digest: it.Digest, Want: it.Size, Got: n}
	}
	return err
}
