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
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// marker is the environment variable that tells the program that Enter started
// it; its value is the user's id outside.
const marker = "_STRAKE_USERNS"

// Inside tells whether this process lives in another user namespace than the
// machine's: one that Enter made, or that of an unprivileged container. There
// the kernel lets nobody make device nodes or set trusted xattrs.
func Inside() bool { return inside() }

var inside = sync.OnceValue(func() bool {
	m, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(m)), " ") != "0 0 4294967295"
})

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

// Single tells whether this namespace has no other id than 0: setgroups is
// refused then, and chown to anybody else fails.
func Single() bool { return single() }

var single = sync.OnceValue(func() bool {
	m, err := os.ReadFile("/proc/self/gid_map")
	f := strings.Fields(string(m))
	return err == nil && len(f) == 3 && f[2] == "1"
})
