package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/userns"
)

// device is a node of /dev.
type device struct {
	name string
	mode uint32 // with the type
	dev  uint64
}

// devices are what docker puts into every /dev.
func devices() []device {
	node := func(name string, major, minor uint32) device {
		return device{name, unix.S_IFCHR | 0o666, unix.Mkdev(major, minor)}
	}
	return []device{node("null", 1, 3), node("zero", 1, 5), node("full", 1, 7), node("random", 1, 8), node("urandom", 1, 9), node("tty", 5, 0)}
}

// hostDevices are all of the machine's, for a privileged process.
func hostDevices() []device {
	var found []device
	filepath.WalkDir("/dev", func(p string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(p, "/dev/")
		switch {
		case err != nil:
			return nil
		case d.IsDir() && (name == "pts" || name == "shm" || name == "mqueue"):
			return fs.SkipDir
		case d.Type()&fs.ModeDevice == 0 || name == "console" || name == "ptmx":
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil {
			found = append(found, device{name, st.Mode, uint64(st.Rdev)})
		}
		return nil
	})
	return found
}

const (
	nosuid  = unix.MS_NOSUID
	noexec  = unix.MS_NOEXEC
	nodev   = unix.MS_NODEV
	rdonly  = unix.MS_RDONLY
	allThat = nosuid | noexec | nodev
)

func systemDirs() []string { return []string{"/proc", "/sys", "/dev"} }

// keepsSystem tells whether those of systemDirs that the root lacks become
// part of what the process writes.
func (b *box) keepsSystem() bool { return b.spec.Step && b.spec.Root.Upper != "" }

// mountSystem mounts what every process finds, with the options that docker
// gives them: /sys and /dev; /proc follows inside the pid namespace.
func (b *box) mountSystem(machine fromMachine) error {
	for _, d := range systemDirs() {
		if b.keepsSystem() {
			if err := unix.Mkdir(d, 0o755); err != nil && err != unix.EEXIST {
				return fmt.Errorf("make %s: %w", d, err)
			}
		}
		info, err := os.Lstat(d)
		if err != nil {
			return fmt.Errorf("mount %s: %w", d, unwrapPath(err))
		}
		if !info.IsDir() {
			return fmt.Errorf("mount %s: the image has something else than a directory there", d)
		}
	}
	sysFlags, devFlags := uintptr(allThat|rdonly), uintptr(nosuid|nodev|unix.MS_STRICTATIME)
	if b.spec.Privileged {
		sysFlags, devFlags = allThat, nosuid|unix.MS_STRICTATIME
	}
	shm := b.spec.ShmSize
	if shm == 0 {
		shm = 64 << 20
	}
	terminals := "newinstance,ptmxmode=0666,mode=0620,gid=5"
	if userns.Single() { // which has no group 5
		terminals = "newinstance,ptmxmode=0666,mode=0620"
	}
	for _, m := range []struct {
		fs, at string
		flags  uintptr
		data   string
		made   bool
	}{
		{"tmpfs", "/dev", devFlags, "mode=755,size=65536k", false},
		{"devpts", "/dev/pts", nosuid | noexec, terminals, true},
		{"tmpfs", "/dev/shm", allThat, "mode=1777,size=" + strconv.FormatInt(shm, 10), true},
		{"mqueue", "/dev/mqueue", allThat, "", true},
		{"sysfs", "/sys", sysFlags, "", false},
	} {
		if m.made {
			if err := unix.Mkdir(m.at, 0o755); err != nil {
				return fmt.Errorf("make %s: %w", m.at, err)
			}
		}
		if m.fs == "devpts" {
			if err := machine.showWitnesses(); err != nil {
				return err
			}
		}
		if m.fs == "sysfs" && machine.sys != nil {
			if err := move(machine.sys); err != nil {
				return fmt.Errorf("mount %s: %w", m.at, err)
			}
			continue
		}
		err := unix.Mount(m.fs, m.at, m.fs, m.flags, m.data)
		if err == unix.ENODEV && m.fs == "mqueue" {
			continue // a kernel without it
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return makeDevices(machine.nodes, machine.host)
}

// mountInside adds to the child's script what shows its own pid and cgroup
// namespace, and hides and protects what docker hides and protects.
func (b *box) mountInside(s *script) {
	s.mount("mount /proc", "proc", "/proc", "proc", allThat, "")
	b.dismissWitnesses(s)
	b.mountCgroups(s)
	if b.spec.Privileged {
		return
	}
	for _, p := range []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
		"/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	} {
		// One of the two fits: the first a file, the second a directory.
		absent := [2]syscall.Errno{unix.ENOENT, unix.ENOTDIR}
		s.mount("mask "+p, "/dev/null", p, "", unix.MS_BIND, "").tolerate = absent
		s.mount("mask "+p, "tmpfs", p, "tmpfs", rdonly, "size=0k").tolerate = absent
	}
	for _, p := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		// Where the path is missing, the second fails with EINVAL.
		s.mount("protect "+p, p, p, "", unix.MS_BIND|unix.MS_REC, "").tolerate[0] = unix.ENOENT
		s.mount("protect "+p, "", p, "", unix.MS_BIND|unix.MS_REMOUNT|allThat|rdonly, "").tolerate[0] = unix.ENOENT
	}
}

// mountCgroups shows the process its cgroups, read-only. Those of version 1
// are a mount each and worth it only where there is a limit to be read.
func (b *box) mountCgroups(s *script) {
	flags := uintptr(allThat | rdonly)
	if b.spec.Privileged {
		flags = allThat
	}
	what := "mount " + cgroupRoot
	if b.cgroup == nil || b.cgroup.v2 {
		s.mount(what, "cgroup", cgroupRoot, "cgroup2", flags, "").any = true // a kernel without
		return
	}
	s.mount(what, "tmpfs", cgroupRoot, "tmpfs", allThat, "mode=755")
	for _, dir := range b.cgroup.dirs {
		controller := strings.SplitN(strings.TrimPrefix(dir, cgroupRoot+"/"), "/", 2)[0]
		at := cgroupRoot + "/" + controller
		s.add("make "+at, unix.SYS_MKDIRAT, 0, s.str(at), 0o755)
		s.mount("mount "+at, "cgroup", at, "cgroup", flags, controller)
	}
	s.mount(what, "", cgroupRoot, "", unix.MS_REMOUNT|unix.MS_BIND|flags, "")
}

// makeNodes makes /dev's nodes in the workshop and clones them for mounting:
// /dev itself is nodev, or else root in the sandbox, who may make nodes, could
// make the machine's disk there and open it.
func (b *box) makeNodes() ([]*pending, error) {
	if err := unix.Mkdir("dev", 0o755); err != nil {
		return nil, err
	}
	var nodes []*pending
	for _, d := range devices() {
		if err := makeNode("dev/", d); err != nil {
			return nil, err
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, "dev/"+d.name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("clone /dev/%s: %w", d.name, err)
		}
		nodes = append(nodes, b.hold(fd, "/dev/"+d.name, false))
	}
	return nodes, nil
}

func makeNode(in string, d device) error {
	if err := unix.Mknod(in+d.name, d.mode, int(d.dev)); err != nil {
		return fmt.Errorf("make /dev/%s: %w", d.name, err)
	}
	return nil
}

func makeDevices(nodes []*pending, host []device) error {
	for _, n := range nodes {
		os.MkdirAll(path.Dir(n.dest), 0o755)
		if f, err := os.OpenFile(n.dest, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666); err == nil {
			f.Close()
		}
		if err := move(n); err != nil {
			return fmt.Errorf("mount %s: %w", n.dest, err)
		}
	}
	for _, d := range host {
		os.MkdirAll(path.Dir("/dev/"+d.name), 0o755)
		if err := makeNode("/dev/", d); err != nil {
			return err
		}
	}
	for _, l := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"},
		{"/proc/self/fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"}, {"/proc/kcore", "/dev/core"},
	} {
		if l[1] == "/dev/core" && unix.Access(l[0], unix.F_OK) != nil {
			continue // a kernel without it; runc makes no link then
		}
		if err := unix.Symlink(l[0], l[1]); err != nil {
			return fmt.Errorf("make %s: %w", l[1], err)
		}
	}
	return nil
}

// openTerminal makes a pseudo-terminal of the sandbox's own /dev/pts and shows
// it as /dev/console too.
func (b *box) openTerminal() error {
	master, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	b.master = os.NewFile(uintptr(master), "/dev/ptmx")
	unlock := int32(0)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock))); e != 0 {
		return fmt.Errorf("unlock the terminal: %w", e)
	}
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("name the terminal: %w", err)
	}
	name := "/dev/pts/" + strconv.FormatUint(uint64(n), 10)
	slave, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	b.slave = os.NewFile(uintptr(slave), name)
	if b.user.uid != 0 {
		if err := unix.Fchown(slave, int(b.user.uid), -1); err != nil {
			return fmt.Errorf("chown %s: %w", name, err)
		}
	}
	console, err := os.OpenFile("/dev/console", os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		console.Close()
		err = unix.Mount(name, "/dev/console", "", unix.MS_BIND, "")
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make /dev/console: %w", err)
	}
	return nil
}
