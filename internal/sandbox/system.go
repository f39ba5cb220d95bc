package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// device is a node of /dev.
type device struct {
	name         string
	major, minor uint32
}

func devices() []device {
	return []device{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}
}

const (
	nosuid  = unix.MS_NOSUID
	noexec  = unix.MS_NOEXEC
	nodev   = unix.MS_NODEV
	rdonly  = unix.MS_RDONLY
	allThat = nosuid | noexec | nodev
)

// mountSystem mounts what every process finds: /proc, /sys and /dev, with the
// options that docker gives them.
func (b *box) mountSystem() error {
	for _, d := range []string{"/proc", "/sys", "/dev"} {
		info, err := os.Lstat(d)
		if err != nil {
			return fmt.Errorf("mount %s: %w", d, unwrapPath(err))
		}
		if !info.IsDir() {
			return fmt.Errorf("mount %s: the image has something else than a directory there", d)
		}
	}
	sysFlags := uintptr(allThat | rdonly)
	if b.spec.Privileged {
		sysFlags = allThat
	}
	shm := b.spec.ShmSize
	if shm == 0 {
		shm = 64 << 20
	}
	for _, m := range []struct {
		fs, at string
		flags  uintptr
		data   string
		made   bool
	}{
		{"proc", "/proc", allThat, "", false},
		{"tmpfs", "/dev", nosuid | unix.MS_STRICTATIME, "mode=755,size=65536k", false},
		{"devpts", "/dev/pts", nosuid | noexec, "newinstance,ptmxmode=0666,mode=0620,gid=5", true},
		{"tmpfs", "/dev/shm", allThat, "mode=1777,size=" + strconv.FormatInt(shm, 10), true},
		{"mqueue", "/dev/mqueue", allThat, "", true},
		{"sysfs", "/sys", sysFlags, "", false},
	} {
		if m.made {
			if err := unix.Mkdir(m.at, 0o755); err != nil {
				return fmt.Errorf("make %s: %w", m.at, err)
			}
		}
		err := unix.Mount(m.fs, m.at, m.fs, m.flags, m.data)
		if err == unix.ENODEV && m.fs == "mqueue" {
			continue // a kernel without it
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return makeDevices()
}

func makeDevices() error {
	for _, d := range devices() {
		if err := unix.Mknod("/dev/"+d.name, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("make /dev/%s: %w", d.name, err)
		}
	}
	for _, l := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"},
		{"/proc/self/fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"}, {"/proc/kcore", "/dev/core"},
	} {
		if err := unix.Symlink(l[0], l[1]); err != nil {
			return fmt.Errorf("make %s: %w", l[1], err)
		}
	}
	return nil
}

// mask hides and protects what docker hides and protects.
func mask() error {
	for _, p := range []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
		"/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	} {
		err := unix.Mount("/dev/null", p, "", unix.MS_BIND, "")
		if err == unix.ENOTDIR {
			err = unix.Mount("tmpfs", p, "tmpfs", rdonly, "size=0k")
		}
		if err != nil && err != unix.ENOENT {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	for _, p := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		err := unix.Mount(p, p, "", unix.MS_BIND|unix.MS_REC, "")
		if err == unix.ENOENT {
			continue
		}
		if err == nil {
			err = unix.Mount("", p, "", unix.MS_BIND|unix.MS_REMOUNT|allThat|rdonly, "")
		}
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", p, err)
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
