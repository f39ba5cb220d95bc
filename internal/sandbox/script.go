package sandbox

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// script is what the child does between fork and exec: a list of system calls,
// written before the fork, because no Go code that could allocate, be
// preempted or grow its stack may run there.
//
// Package syscall's own fork would do for simple cases. Ours is needed because
// only a task inside the new pid namespace can mount its /proc, join a cgroup
// of version 2 and set resource limits; and the seccomp filter is better put
// on the child than on a thread on which Go's runtime still runs.
//
// The child shares our memory and suspends only the thread that forks it
// (CLONE_VFORK), so the size of our process does not matter, and it reports a
// failure by writing it here.
type script struct {
	steps []step
	keep  []any // what steps point to

	at    int // the child's progress
	errno syscall.Errno
}

// step is one system call.
type step struct {
	nr   uintptr
	args [6]uintptr
	what string
	// An error among these is none; any makes every error one of them.
	tolerate [2]syscall.Errno
	any      bool
}

func (s *script) add(what string, nr uintptr, args ...uintptr) *step {
	st := step{nr: nr, what: what}
	copy(st.args[:], args)
	s.steps = append(s.steps, st)
	return &s.steps[len(s.steps)-1]
}

// str gives the address of a C string.
func (s *script) str(text string) uintptr {
	if text == "" {
		text = "\x00"
	}
	p, err := syscall.BytePtrFromString(text)
	if err != nil {
		p = new(byte)
	}
	s.keep = append(s.keep, p)
	return uintptr(unsafe.Pointer(p))
}

func keep[T any](s *script, v *T) uintptr {
	s.keep = append(s.keep, v)
	return uintptr(unsafe.Pointer(v))
}

// strs gives the address of a list of C strings, as execve wants it.
func (s *script) strs(list []string) (uintptr, error) {
	ptrs, err := syscall.SlicePtrFromStrings(list)
	if err != nil {
		return 0, err
	}
	s.keep = append(s.keep, ptrs)
	return uintptr(unsafe.Pointer(&ptrs[0])), nil
}

func (s *script) mount(what, source, target, fstype string, flags uintptr, data string) *step {
	return s.add(what, unix.SYS_MOUNT, s.str(source), s.str(target), s.str(fstype), flags, s.str(data))
}

// run forks a child with the given namespaces and has it play the script, whose
// last step is execve. It returns when the child executes its program.
func (s *script) run(namespaces uintptr) (int, error) {
	const sigsetSize = 8
	all, old, none := ^uint64(0), uint64(0), uint64(0)
	type action struct{ handler, flags, restorer, mask uintptr }
	byDefault := keep(s, &action{})
	reset := make([]step, 0, 64+len(s.steps))
	for sig := uintptr(1); sig <= 64; sig++ {
		reset = append(reset, step{nr: unix.SYS_RT_SIGACTION, args: [6]uintptr{sig, byDefault, 0, sigsetSize}, any: true})
	}
	exec := s.steps[len(s.steps)-1]
	s.steps = append(append(reset, s.steps[:len(s.steps)-1]...),
		step{nr: unix.SYS_RT_SIGPROCMASK, args: [6]uintptr{unix.SIG_SETMASK, keep(s, &none), 0, sigsetSize}, what: "unblock signals"},
		exec)
	first := &s.steps[0]
	allAt, oldAt := keep(s, &all), keep(s, &old)

	// Signals would run Go's handlers in the child.
	syscall.ForkLock.Lock()
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, allAt, oldAt, sigsetSize, 0, 0)
	pid := s.fork(namespaces|unix.CLONE_VM|unix.CLONE_VFORK|uintptr(unix.SIGCHLD), first, len(s.steps))
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, oldAt, 0, sigsetSize, 0, 0)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(s)

	if int(pid) < 0 {
		return 0, fmt.Errorf("fork: %w", syscall.Errno(-pid))
	}
	if s.errno == 0 {
		return int(pid), nil
	}
	for {
		if _, err := unix.Wait4(int(pid), nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	if s.at == len(s.steps)-1 {
		return 0, s.errno // of execve
	}
	return 0, fmt.Errorf("%s: %w", s.steps[s.at].what, s.errno)
}

// fork returns in the parent only. In the child nothing may touch the stack
// that the parent will go on with, but for calls that end before it does.
//
//go:nosplit
//go:noinline
//go:norace
func (s *script) fork(flags uintptr, next *step, n int) (pid uintptr) {
	pid = vfork(flags)
	if pid != 0 {
		return pid
	}
	for s.at = 0; s.at < n; s.at++ {
		_, _, s.errno = syscall.RawSyscall6(next.nr, next.args[0], next.args[1], next.args[2], next.args[3], next.args[4], next.args[5])
		if s.errno != 0 && !next.any && s.errno != next.tolerate[0] && s.errno != next.tolerate[1] {
			break
		}
		s.errno = 0
		next = (*step)(unsafe.Add(unsafe.Pointer(next), unsafe.Sizeof(step{})))
	}
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 253, 0, 0, 0, 0, 0)
	}
}
