package sandbox

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/userns"
)

// fromMachine is what the sandbox's /dev and /sys are made of.
type fromMachine struct {
	nodes []*pending // of /dev, to be mounted there
	host  []device   // further ones to be made, for a privileged process
	sys   *pending   // the machine's /sys; nil: a fresh one is mounted
	// witnesses are the machine's /proc and /sys. In a user namespace the kernel
	// mounts a fresh one only where the mount namespace shows all of an older
	// one, so they stay mounted, out of the way, until /proc is.
	witnesses []*pending
}

// take collects it. In a user namespace nobody may make nodes, so the machine's
// are shown; and a fresh /sys needs a network of the namespace's own.
func (b *box) take() (m fromMachine, err error) {
	if !userns.Inside() {
		if b.spec.Privileged {
			m.host = hostDevices()
		} else {
			m.nodes, err = b.makeNodes()
		}
		return m, err
	}
	list := devices()
	if b.spec.Privileged {
		list = append(list, hostDevices()...)
	}
	shown := map[string]bool{}
	for i, d := range list {
		if shown[d.name] {
			continue
		}
		shown[d.name] = true
		fd, err := cloneTree("/dev/"+d.name, false)
		if err != nil && i < len(devices()) {
			return m, err
		}
		if err == nil {
			m.nodes = append(m.nodes, b.hold(fd, "/dev/"+d.name, false))
		}
	}
	for _, fs := range []string{"proc", "sys"} {
		fd, err := cloneTree("/"+fs, true)
		if err != nil {
			return m, err
		}
		m.witnesses = append(m.witnesses, b.hold(fd, "/dev/.machine-"+fs, true))
	}
	if b.spec.Network == Host {
		m.sys, err = b.machineSys()
	}
	return m, err
}

// showWitnesses mounts them in the /dev that was mounted a moment ago.
func (m fromMachine) showWitnesses() error {
	for _, w := range m.witnesses {
		if err := unix.Mkdir(w.dest, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", w.dest, err)
		}
		if err := move(w); err != nil {
			return fmt.Errorf("mount %s: %w", w.dest, err)
		}
	}
	return nil
}

// dismissWitnesses adds to the child's script that they go.
func (b *box) dismissWitnesses(s *script) {
	for _, at := range b.witnesses {
		s.add("unmount "+at, unix.SYS_UMOUNT2, s.str(at), unix.MNT_DETACH)
		s.add("remove "+at, unix.SYS_UNLINKAT, 0, s.str(at), unix.AT_REMOVEDIR)
	}
}

// machineSys clones the machine's /sys with all that is mounted in it.
func (b *box) machineSys() (*pending, error) {
	fd, err := cloneTree("/sys", true)
	if err != nil {
		return nil, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if !b.spec.Privileged {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	sys := b.hold(fd, "/sys", true)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return nil, fmt.Errorf("make /sys read-only: %w", err)
	}
	return sys, nil
}
