// Package userns lets an ordinary user be root: of a user namespace, in which
// the user's own id is 0 and the subordinate ids of /etc/subuid and
// /etc/subgid are the others.
//
// A process of several threads, which every Go process is, can neither enter
// nor make a user namespace for itself. So the program is run again: a fork of
// it waits, in new user and mount namespaces, until newuidmap and newgidmap
// have mapped the ids, becomes root there and executes the same program with
// the same arguments. The first process stays as its shadow: it passes signals
// on, ends as it ends, and takes it along when it is killed.
package userns

import (
	"errors"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// marker is the environment variable that tells the program that Enter started
// it; its value is the user's id outside.
const marker = "_STRAKE_USERNS"

// namespace is a user namespace.
type namespace struct {
	other      bool // than the machine's
	uids, gids []span
}

// own is what this process's namespace maps, read once: where a container has
// been entered, its /proc may not be there.
var own = sync.OnceValue(func() (m namespace) {
	const machines = "user:[4026531837]" // a constant of the kernel
	name, err := os.Readlink("/proc/self/ns/user")
	m.other = err == nil && name != machines
	m.uids, m.gids = mapped("/proc/self/uid_map"), mapped("/proc/self/gid_map")
	return m
})

// Inside tells whether this process lives in another user namespace than the
// machine's: one that Enter made, or that of an unprivileged container. There
// the kernel lets nobody make device nodes or set trusted xattrs.
func Inside() bool { return own().other }

// Entered tells whether Enter started this process, and forgets the mark, so
// that what this process starts does not find it.
func Entered() bool {
	_, ok := os.LookupEnv(marker)
	os.Unsetenv(marker)
	return ok && os.Geteuid() == 0 && Inside()
}

// Needed tells whether this process must Enter before it can mount anything.
func Needed() bool {
	if os.Geteuid() != 0 {
		return true
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0
}

// ErrNoID is an id that the namespace does not have.
var ErrNoID = errors.New("the user namespace does not have this id: add a range for the user to /etc/subuid and /etc/subgid, and install newuidmap (package uidmap)")

// Mapped tells whether the namespace has these ids.
func Mapped(uid, gid uint32) bool {
	return !Inside() || has(own().uids, uid) && has(own().gids, gid)
}

func has(spans []span, id uint32) bool {
	return slices.ContainsFunc(spans, func(s span) bool { return s.inside <= int64(id) && int64(id) < s.inside+s.count })
}

// Single tells whether this namespace has no other group than 0: setgroups is
// refused then.
func Single() bool {
	return Inside() && len(own().gids) == 1 && own().gids[0].count == 1
}
