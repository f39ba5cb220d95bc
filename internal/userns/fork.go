package userns

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is one system call of the forked child. The child is a copy of one
// thread of a Go program: nothing but system calls written down before the
// fork may happen in it.
type call struct {
	nr   uintptr
	args [6]uintptr
	what string
	may  bool // fail
}

// progress is where the child is. It lies in memory that both processes see.
type progress struct {
	at    int
	errno syscall.Errno
}

// child is a fork that waits until go is written to its pipe.
type child struct {
	pid   int
	calls []call
	now   *progress
	page  []byte
	gate  *os.File
	keep  []any
}

// start forks a child into new user and mount namespaces. Once it is told to
// go on, it executes path as the namespace's root. The calling thread must be
// locked and outlive the child, which dies with it.
func start(path string, args, env []string) (*child, error) {
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return nil, err
	}
	envv, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return nil, err
	}
	file, err := syscall.BytePtrFromString(path)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	c := &child{gate: w, keep: []any{argv, envv, file}}
	if c.page, err = unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON); err != nil {
		w.Close()
		return nil, err
	}
	c.now = (*progress)(unsafe.Pointer(&c.page[0]))
	c.write(r, w, uintptr(unsafe.Pointer(file)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])))
	if err := c.fork(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// write writes the child's calls down.
func (c *child) write(r, w *os.File, file, argv, envv uintptr) {
	add := func(what string, may bool, nr uintptr, args ...uintptr) {
		s := call{nr: nr, what: what, may: may}
		copy(s.args[:], args)
		c.calls = append(c.calls, s)
	}
	type action struct{ handler, flags, restorer, mask uintptr }
	byDefault, token, none := &action{}, new(byte), new(uint64)
	c.keep = append(c.keep, byDefault, token, none)
	die := func() {
		add("set parent-death signal", false, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	}
	die()
	add("close", true, unix.SYS_CLOSE, w.Fd())
	add("wait for the ids", false, unix.SYS_READ, r.Fd(), uintptr(unsafe.Pointer(token)), 1)
	add("become group 0 of the user namespace", false, unix.SYS_SETRESGID, 0, 0, 0)
	add("become root of the user namespace", false, unix.SYS_SETRESUID, 0, 0, 0)
	die() // again: a change of ids clears it
	for sig := uintptr(1); sig <= 64; sig++ {
		add("reset signal", true, unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(byDefault)), 0, 8)
	}
	add("unblock signals", false, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(none)), 0, 8)
	add("execute strake again", false, unix.SYS_EXECVE, file, argv, envv)
}

func (c *child) fork() error {
	all, old := ^uint64(0), uint64(0)
	// Go's signal handlers must not run in the child.
	syscall.ForkLock.Lock()
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	pid, errno := forkAndPlay(unix.CLONE_NEWUSER|unix.CLONE_NEWNS|uintptr(unix.SIGCHLD), c.now, &c.calls[0], len(c.calls))
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(c)
	if errno != 0 {
		return errno
	}
	c.pid = int(pid)
	return nil
}

// forkAndPlay returns in the parent only. The child has a stack of its own, a
// copy of this one.
//
//go:nosplit
//go:noinline
//go:norace
func forkAndPlay(flags uintptr, now *progress, next *call, n int) (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	for now.at = 0; now.at < n; now.at++ {
		_, _, errno = syscall.RawSyscall6(next.nr, next.args[0], next.args[1], next.args[2], next.args[3], next.args[4], next.args[5])
		if errno != 0 && !next.may {
			now.errno = errno
			break
		}
		next = (*call)(unsafe.Add(unsafe.Pointer(next), unsafe.Sizeof(call{})))
	}
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 125, 0, 0, 0, 0, 0)
	}
}

// proceed lets the child go on.
func (c *child) proceed() error {
	_, err := c.gate.Write([]byte{1})
	return err
}

// failed is what kept the child from executing the program, nil once it did.
func (c *child) failed() error {
	if c.now.errno == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", c.calls[c.now.at].what, c.now.errno)
}

// wait waits for the child to end.
func (c *child) wait() (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(c.pid, &status, 0, nil)
		if err != unix.EINTR {
			return status, err
		}
	}
}

func (c *child) close() {
	c.gate.Close()
	unix.Munmap(c.page)
}
