package sandbox

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// capabilities is a set, one bit each.
type capabilities uint64

// names of the capabilities in the order of their numbers.
func capNames() []string {
	return strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
		LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE
		SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
		SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
		WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)
}

const defaultCaps = "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"

func capSet(list []string) (capabilities, error) {
	var set capabilities
next:
	for _, given := range list {
		name := strings.TrimPrefix(strings.ToUpper(given), "CAP_")
		if name == "ALL" {
			return ^capabilities(0) >> (64 - len(capNames())), nil
		}
		for i, n := range capNames() {
			if n == name {
				set |= 1 << i
				continue next
			}
		}
		return 0, fmt.Errorf("invalid capability: %q", given)
	}
	return set, nil
}

// newCapabilities works out the bounding set: docker's fourteen, or all for a
// privileged process; less CapDrop, plus CapAdd. CapAdd of ALL is all less
// CapDrop; CapDrop of ALL leaves CapAdd.
func newCapabilities(spec *Spec) (capabilities, error) {
	add, err := capSet(spec.CapAdd)
	if err != nil {
		return 0, err
	}
	drop, err := capSet(spec.CapDrop)
	if err != nil {
		return 0, err
	}
	all, _ := capSet([]string{"ALL"})
	if spec.Privileged {
		return all, nil
	}
	switch set, _ := capSet(strings.Fields(defaultCaps)); {
	case add == all:
		if drop == all {
			return all, nil
		}
		return all &^ drop, nil
	case drop == all:
		return add, nil
	default:
		return set&^drop | add, nil
	}
}

// list names the set as profiles do.
func (c capabilities) list() []string {
	var list []string
	for i, n := range capNames() {
		if c&(1<<i) != 0 {
			list = append(list, "CAP_"+n)
		}
	}
	return list
}

// bound adds to the child's script that it drops what is not in the set from
// its bounding set. That is what decides: a process of root's gets the bounding
// set with its exec, any other user's gets nothing.
func (c capabilities) bound(s *script) error {
	for i := 0; ; i++ {
		have, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0)
		if err != nil {
			break // past the kernel's last one
		}
		if have == 1 && (i > 63 || c&(1<<i) == 0) {
			s.add("drop capabilities", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(i))
		}
	}
	// Inheritable capabilities would come back with the exec.
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	s.add("set capabilities", unix.SYS_CAPSET, keep(s, header), keep(s, &data))
	s.add("clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	return nil
}
