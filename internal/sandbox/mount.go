package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/rootfs"
	"github.com/strake-project/strake/internal/userns"
)

// The root is put together in the thread's own mount namespace in two acts.
//
// Outside: a small tmpfs, the workshop, is laid over "/" (where only who holds
// its descriptor sees it). In it are made what the overlay and the binds need:
// short symbolic links to the layers' trees, so that any number of layers fits
// the one page that mount(2) takes, and no path has to be escaped; a lowest
// layer of empty mount points, so that none has to be made in the upper
// directory; the generated /etc files; the device nodes. What is to be
// bind-mounted is cloned into detached mounts, held by descriptors.
//
// Inside: after pivot_root every destination is resolved by the kernel in the
// root it belongs to, so that no symbolic link of an image leads out of it.

const stubDir = "s"

// pending is a mount that waits for the root to be entered.
type pending struct {
	fd   int
	dest string
	dir  bool
	mode uint32 // of a mount point that must be made
}

// hold makes fd, a detached mount, wait. It is closed by release.
func (b *box) hold(fd int, dest string, dir bool) *pending {
	w := &pending{fd: fd, dest: dest, dir: dir}
	b.held = append(b.held, w)
	return w
}

// release closes what was held: what is attached stays, what is not goes.
func (b *box) release() {
	for _, w := range b.held {
		unix.Close(w.fd)
	}
	b.held = nil
}

func (b *box) mountAll() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := enterWorkshop(); err != nil {
		return err
	}
	defer b.release()
	files, err := b.generate()
	if err != nil {
		return err
	}
	machine, err := b.take()
	if err != nil {
		return err
	}
	for _, w := range machine.witnesses {
		b.witnesses = append(b.witnesses, w.dest)
	}
	mounts := slices.Clone(b.spec.Mounts)
	slices.SortStableFunc(mounts, func(x, y Mount) int {
		return strings.Count(path.Clean(x.Destination), "/") - strings.Count(path.Clean(y.Destination), "/")
	})
	waiting := make([]*pending, len(mounts))
	for i := range mounts {
		if waiting[i], err = b.prepareMount(i, &mounts[i]); err != nil {
			return err
		}
	}
	if err := b.mountRoot(slices.Concat(waiting, files)); err != nil {
		return err
	}
	if err := pivot(); err != nil {
		return err
	}
	if err := b.mountSystem(machine); err != nil {
		return err
	}
	for _, f := range files {
		if !covers(mounts, f.dest) {
			if err := b.attach(f); err != nil {
				return err
			}
		}
	}
	for _, w := range waiting {
		if err := b.attach(w); err != nil {
			return err
		}
	}
	if b.spec.ReadOnly {
		// A working directory is made as ever; chdir says why it could not be.
		_ = os.MkdirAll(b.spec.Cwd, 0o755)
		if err := remountReadOnly("/"); err != nil {
			return err
		}
	}
	return nil
}

// covers tells whether the caller mounts something of its own at dest.
func covers(mounts []Mount, dest string) bool {
	return slices.ContainsFunc(mounts, func(m Mount) bool { return path.Clean(m.Destination) == dest })
}

func enterWorkshop() error {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen tmpfs: %w: running processes needs Linux 5.2 or later", err)
	}
	defer unix.Close(fs)
	if err = unix.FsconfigSetString(fs, "mode", "0755"); err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return fmt.Errorf("make tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make tmpfs: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	for _, d := range []string{stubDir, "root"} {
		if err := unix.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// stub makes an empty mount point in the lowest layer. Where the image has
// something at that path, the image's is seen.
func stub(dest string, dir bool) {
	p := path.Join(stubDir, path.Clean("/"+dest))
	if !dir {
		os.MkdirAll(path.Dir(p), 0o755)
		if f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o755); err == nil {
			f.Close()
		}
		return
	}
	os.MkdirAll(p, 0o755)
}

// mountRoot mounts the overlay at root in the workshop.
func (b *box) mountRoot(points []*pending) error {
	if !b.keepsSystem() {
		for _, d := range systemDirs() {
			stub(d, true)
		}
	}
	for _, p := range points {
		stub(p.dest, p.dir)
	}
	return mountOverlay(&b.spec.Root, "root", stubDir, "", b.spec.Privileged)
}

// mountOverlay mounts r at target, with the directory lowest, if there is one,
// below its layers. Names in the workshop begin with prefix.
func mountOverlay(r *rootfs.Root, target, lowest, prefix string, dev bool) error {
	var opts strings.Builder
	opts.WriteString("lowerdir=")
	link := func(to, name string) error {
		if err := unix.Symlink(to, name); err != nil {
			return fmt.Errorf("link to layer %s: %w", to, err)
		}
		return nil
	}
	n := 0
	for _, l := range r.Lowers {
		name := prefix + strconv.Itoa(n)
		if err := link(l, name); err != nil {
			return err
		}
		if n > 0 {
			opts.WriteByte(':')
		}
		opts.WriteString(name)
		n++
	}
	if lowest != "" {
		if n > 0 {
			opts.WriteByte(':')
		}
		opts.WriteString(lowest)
		n++
	}
	// Device nodes can be made and not opened. docker's device cgroup allows
	// those of /dev besides; a cgroup for each step would cost more than it.
	flags := uintptr(unix.MS_NODEV)
	if dev {
		flags = 0
	}
	if r.Upper != "" {
		if err := link(r.Upper, prefix+"u"); err != nil {
			return err
		}
		if err := link(r.Work, prefix+"w"); err != nil {
			return err
		}
		opts.WriteString(",upperdir=" + prefix + "u,workdir=" + prefix + "w")
	} else {
		flags |= unix.MS_RDONLY
		if n < 2 { // an overlay without upper directory wants two layers
			empty := prefix + "e"
			if err := unix.Mkdir(empty, 0o755); err != nil {
				return err
			}
			opts.WriteString(":" + empty)
		}
	}
	// Without these an upper directory is no plain diff of the layers.
	opts.WriteString(",metacopy=off,index=off")
	if userns.Inside() {
		opts.WriteString(",userxattr") // implies that redirect_dir is off, and may not be told so
	} else {
		opts.WriteString(",redirect_dir=off")
	}
	data := opts.String()
	if r.Upper != "" {
		// volatile: the unmount does not sync all of the disk. The store knows
		// what was not synced and checks it after a crash of the machine.
		os.RemoveAll(path.Join(r.Work, "work/incompat"))
		err := unix.Mount("overlay", target, "overlay", flags, data+",volatile")
		if err != unix.EINVAL { // before Linux 5.10
			return overlayError(r, err)
		}
	}
	return overlayError(r, unix.Mount("overlay", target, "overlay", flags, data))
}

func overlayError(r *rootfs.Root, err error) error {
	if err == nil {
		return nil
	}
	for _, d := range append(slices.Clone(r.Lowers), r.Upper, r.Work) {
		if d == "" {
			continue
		}
		if _, statErr := os.Stat(d); statErr != nil {
			return fmt.Errorf("mount overlay: %w", statErr)
		}
	}
	return fmt.Errorf("mount overlay of %d layers: %w", len(r.Lowers), err)
}

// pivot makes the overlay the thread's root and lets the machine's go.
func pivot() error {
	if err := unix.Chdir("root"); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// The old root lies on the new one now, and the workshop on the old one.
	for range 2 {
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount old root: %w", err)
		}
	}
	return unix.Chdir("/")
}

// prepareMount makes what m mounts, detached.
func (b *box) prepareMount(i int, m *Mount) (*pending, error) {
	if !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" {
		return nil, fmt.Errorf("invalid mount destination %q: it needs to be an absolute path other than /", m.Destination)
	}
	if clean := path.Clean(m.Destination); clean == "/proc" || strings.HasPrefix(clean, "/proc/") {
		return nil, fmt.Errorf("%q cannot be mounted because it is inside /proc", m.Destination)
	}
	at := "m" + strconv.Itoa(i)
	var fd int
	var err error
	switch m.Type {
	case "bind":
		if m.Selector != "" {
			fd, err = cloneIn(m.Source, m.Selector, cloneFlags(m.Recursive))
		} else {
			fd, err = cloneTree(m.Source, m.Recursive)
		}
	case "tmpfs":
		fd, err = newTmpfs(m)
	case "overlay":
		if m.Overlay == nil {
			return nil, fmt.Errorf("mount %s: no overlay given", m.Destination)
		}
		fd, err = cloneOverlay(m, at)
	case "file":
		fd, err = makeFile(m, fmt.Sprintf("file%d", i))
	default:
		return nil, fmt.Errorf("mount %s: unknown type %q", m.Destination, m.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
	}
	w := b.hold(fd, path.Clean(m.Destination), true)
	w.mode = m.Mode
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	w.dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	var attr unix.MountAttr
	if m.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if !b.spec.Privileged {
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV // as for the root
	}
	if attr.Attr_set != 0 {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	return w, nil
}

func cloneTree(source string, recursive bool) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, cloneFlags(recursive))
	if err != nil {
		return -1, fmt.Errorf("bind source path %s: %w", source, err)
	}
	return fd, nil
}

func cloneFlags(recursive bool) uint {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return flags
}

// cloneIn gives what selector names in the directory top; symbolic links do not
// lead out of it, whoever writes to it meanwhile.
func cloneIn(top, selector string, flags uint) (int, error) {
	dir, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	sub, err := unix.Openat2(dir, path.Clean("/"+selector), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("%s: %w", selector, err)
	}
	defer unix.Close(sub)
	return unix.OpenTree(sub, "", flags|unix.AT_EMPTY_PATH)
}

// makeFile writes m's content to a file of the workshop, which is on a tmpfs
// that nobody else sees, and clones it for mounting.
func makeFile(m *Mount, at string) (int, error) {
	err := os.WriteFile(at, m.Content, 0o600)
	if err == nil {
		err = os.Chown(at, m.UID, m.GID)
	}
	if err == nil {
		err = unix.Chmod(at, m.Mode) // after chown, which clears bits
	}
	if err != nil {
		return -1, err
	}
	return unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

func newTmpfs(m *Mount) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	mode := m.Mode
	if mode == 0 {
		mode = 0o1777
	}
	err = unix.FsconfigSetString(fs, "mode", strconv.FormatUint(uint64(mode), 8))
	if err == nil && m.Size > 0 {
		err = unix.FsconfigSetString(fs, "size", strconv.FormatInt(m.Size, 10))
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// cloneOverlay gives an overlay, or what Selector names in it.
func cloneOverlay(m *Mount, at string) (int, error) {
	from := at
	if r := m.Overlay; r.Upper == "" && len(r.Lowers) == 1 {
		from = r.Lowers[0] // one layer needs no overlay
		m.ReadOnly = true
	} else {
		if err := unix.Mkdir(at, 0o755); err != nil {
			return -1, err
		}
		if err := mountOverlay(r, at, "", at+"_", false); err != nil {
			return -1, err
		}
	}
	return cloneIn(from, m.Selector, cloneFlags(false))
}

// attach mounts w at its destination in the root.
func (b *box) attach(w *pending) error {
	err := move(w)
	if errors.Is(err, fs.ErrNotExist) {
		// A symbolic link of the image hides the mount point in the lowest layer.
		if err = b.stubs.make(w); err == nil {
			err = move(w)
		}
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", w.dest, unwrapPath(err))
	}
	return nil
}

func move(w *pending) error {
	return unix.MoveMount(w.fd, "", unix.AT_FDCWD, w.dest, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}

func remountReadOnly(p string) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, p, 0, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", p, err)
	}
	return nil
}
