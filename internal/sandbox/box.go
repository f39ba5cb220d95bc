package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/sandbox/network"
	"github.com/strake-project/strake/internal/sandbox/seccomp"
	"github.com/strake-project/strake/internal/userns"
)

// box is a sandbox in the making. newBox and close run anywhere; enter and
// spawn run on the sandbox's own thread, as do all file operations in them.
type box struct {
	spec    *Spec
	tid     int
	io      stdio
	user    identity
	caps    capabilities
	filter  *seccomp.Program // nil: unconfined
	stubs   stubs
	cgroup  *cgroup // nil without limits
	rlimits []rlimit
	master  *os.File // of the terminal
	slave   *os.File
	held    []*pending
	// witnesses are mounts that go when the process has its /proc.
	witnesses []string
}

func newBox(spec *Spec) (*box, error) {
	b := &box{spec: spec}
	if len(spec.Args) == 0 {
		return nil, errors.New("no command specified")
	}
	if spec.Cwd != "" && !path.IsAbs(spec.Cwd) {
		return nil, fmt.Errorf("the working directory '%s' is invalid, it needs to be an absolute path", spec.Cwd)
	}
	var err error
	if b.caps, err = newCapabilities(spec); err != nil {
		return nil, err
	}
	if b.filter, err = filterFor(spec, b.caps); err != nil {
		return nil, err
	}
	if b.rlimits, err = newRlimits(spec.Rlimits); err != nil {
		return nil, err
	}
	if b.stubs, err = newStubs(spec.Root.Upper); err != nil {
		return nil, err
	}
	if b.cgroup, err = newCgroup(spec.Limits); err != nil {
		b.close()
		return nil, err
	}
	if !spec.Terminal {
		if err := b.io.open(spec); err != nil {
			b.close()
			return nil, err
		}
	}
	return b, nil
}

// close gives back what the sandbox took on the machine.
func (b *box) close() error {
	b.io.close()
	if b.slave != nil {
		b.slave.Close()
	}
	return errors.Join(b.stubs.remove(), b.cgroup.remove())
}

// enter makes the calling thread the sandbox: after it, the thread sees what
// the process will see.
func (b *box) enter() error {
	// What strake was started with must not leak into the sandbox: an open
	// directory of the machine would be a way out.
	if err := closeOnExec(); err != nil {
		return fmt.Errorf("keep the machine's files out: %w", err)
	}
	flags := unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	if b.spec.Network == None {
		flags |= unix.CLONE_NEWNET
	}
	if err := unix.Unshare(flags); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("make namespaces: %w: run strake as root", err)
		}
		return fmt.Errorf("make namespaces: %w", err)
	}
	unix.Umask(0)
	if b.spec.Network == None {
		if err := network.LoopbackUp(); err != nil {
			return err
		}
	}
	if b.spec.Network == User {
		if err := b.spec.UserNet.Join(); err != nil {
			return err
		}
	}
	if b.spec.Hostname != "" {
		if err := unix.Sethostname([]byte(b.spec.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", b.spec.Hostname, err)
		}
	}
	if err := b.mountAll(); err != nil {
		return err
	}
	var err error
	if b.user, err = lookUp(b.spec.User, b.spec.Groups); err != nil {
		return err
	}
	if err := b.chdir(); err != nil {
		return err
	}
	if b.spec.Terminal {
		if err := b.openTerminal(); err != nil {
			return err
		}
	}
	// A session keyring of its own: keys of strake's session stay out of reach.
	// A kernel without keyrings, or a profile that forbids them, has none to keep.
	// Only a null pointer asks for a keyring without a name.
	switch _, _, errno := unix.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0); errno {
	case 0, unix.ENOSYS, unix.EPERM:
	default:
		return fmt.Errorf("make a session keyring: %w", errno)
	}
	unix.Umask(0o022)
	return nil
}

// closeOnExec marks all descriptors above stderr to be closed by exec.
func closeOnExec() error {
	if unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	return closeEachOnExec() // before Linux 5.11, or under an older profile of a container
}

func closeEachOnExec() error {
	open, err := os.ReadDir("/proc/self/fd")
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return err
}

// chdir enters the working directory as root, as docker does: the user may
// lack the right to look it up.
func (b *box) chdir() error {
	cwd := b.spec.Cwd
	if cwd == "" {
		cwd = "/"
	}
	err := unix.Chdir(cwd)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(cwd, 0o755); err == nil {
			err = unix.Chdir(cwd)
		}
	}
	if err != nil {
		return fmt.Errorf("chdir to cwd (%q): %w", cwd, unwrapPath(err))
	}
	return nil
}

// spawn writes the child's script and plays it. The order matters: mounts need
// the new pid namespace; a filter without no_new_privs needs CAP_SYS_ADMIN and
// so comes before the user changes, one with it can come last; changing the
// user clears the parent-death signal.
func (b *box) spawn() (int, error) {
	env := b.env()
	argv0, err := find(b.spec.Args[0], env)
	if err != nil {
		return 0, err
	}
	s := &script{}
	die := func() {
		s.add("set parent-death signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	}
	die()
	b.cgroup.enter(s)
	s.add("make cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP).tolerate[0] = unix.EINVAL
	b.mountInside(s)
	for _, r := range b.rlimits {
		s.add("set ulimit "+r.name, unix.SYS_PRLIMIT64, 0, uintptr(r.resource), keep(s, &r.limit), 0)
	}
	s.add("setsid", unix.SYS_SETSID)
	files, done, err := b.files()
	defer done()
	if err != nil {
		return 0, err
	}
	for i, fd := range files {
		s.add("dup3", unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	if b.slave != nil {
		s.add("set controlling terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	if err := b.caps.bound(s); err != nil {
		return 0, err
	}
	if b.spec.NoNewPrivileges {
		s.add("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
	} else {
		b.restrain(s)
	}
	groups := append(slices.Clone(b.user.groups), 0) // never empty: it has an address
	if !userns.Single() {
		s.add("setgroups", unix.SYS_SETGROUPS, uintptr(len(groups)-1), keep(s, &groups[0]))
	}
	if !userns.Mapped(b.user.uid, b.user.gid) {
		return 0, fmt.Errorf("user %d:%d: %w", b.user.uid, b.user.gid, userns.ErrNoID)
	}
	s.add("setgid", unix.SYS_SETGID, uintptr(b.user.gid))
	s.add("setuid", unix.SYS_SETUID, uintptr(b.user.uid))
	die()
	if b.spec.NoNewPrivileges {
		b.restrain(s)
	}
	argv, err := s.strs(b.spec.Args)
	if err != nil {
		return 0, fmt.Errorf("arguments with a NUL: %w", err)
	}
	envp, err := s.strs(env)
	if err != nil {
		return 0, fmt.Errorf("environment with a NUL: %w", err)
	}
	s.add("exec", unix.SYS_EXECVE, s.str(argv0), argv, envp)
	pid, err := s.run(unix.CLONE_NEWPID)
	if errno, ok := err.(syscall.Errno); ok {
		return 0, execError(argv0, errno)
	}
	return pid, err
}

// files gives the three files of the process as descriptors above them, so
// that duplicating one never overwrites another.
func (b *box) files() (fds [3]int, done func(), err error) {
	var extra []int
	done = func() {
		for _, fd := range extra {
			unix.Close(fd)
		}
		runtime.KeepAlive(b)
	}
	for i := range fds {
		f := b.io.child[i]
		if b.slave != nil {
			f = b.slave
		} else {
			b.giveTo(f)
		}
		fds[i] = int(f.Fd())
		if fds[i] < 3 {
			fds[i], err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				return fds, done, fmt.Errorf("dup %s: %w", f.Name(), err)
			}
			extra = append(extra, fds[i])
		}
	}
	return fds, done, nil
}

// giveTo lets the process reopen a pipe through /dev/stdout, as programs that
// log to it do: pipes belong to who made them.
func (b *box) giveTo(f *os.File) {
	const pipefs = 0x50495045
	var st unix.Statfs_t
	fd := int(f.Fd())
	if b.user.uid != 0 && unix.Fstatfs(fd, &st) == nil && st.Type == pipefs {
		unix.Fchown(fd, int(b.user.uid), int(b.user.gid))
	}
}

func (b *box) env() []string {
	env := slices.Clone(b.spec.Env)
	for _, kv := range env {
		if strings.HasPrefix(kv, "HOME=") {
			return env
		}
	}
	return append(env, "HOME="+b.user.home)
}

// find looks the command up inside the root, in the words of runc.
func find(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
				return "", &StartError{127, fmt.Errorf("exec: %q: stat %s: %w", name, name, unwrapPath(err))}
			}
			return "", notExecutable(name, err)
		}
		return name, nil
	}
	var denied error
	for _, kv := range env {
		list, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for dir := range strings.SplitSeq(list, ":") {
			if !path.IsAbs(dir) {
				continue // relative to what? exec.LookPath refuses these too
			}
			file := path.Join(dir, name)
			err := executable(file)
			if err == nil {
				return file, nil
			}
			if errors.Is(err, fs.ErrPermission) && denied == nil && !errors.Is(err, unix.EISDIR) {
				denied = err
			}
		}
		break
	}
	if denied != nil {
		return "", notExecutable(name, denied)
	}
	return "", &StartError{127, fmt.Errorf("exec: %q: executable file not found in $PATH", name)}
}

func notExecutable(name string, err error) error {
	if errors.Is(err, unix.EISDIR) {
		return &StartError{126, fmt.Errorf("exec: %q: is a directory: %w", name, fs.ErrPermission)}
	}
	return &StartError{126, fmt.Errorf("exec: %q: %w", name, unwrapPath(err))}
}

func executable(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return unix.EISDIR
	}
	if info.Mode()&0o111 == 0 {
		return fs.ErrPermission
	}
	return nil
}

// execError puts a failed exec into the words and the exit code that a docker
// container ends with.
func execError(argv0 string, err error) error {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &StartError{126, fmt.Errorf("exec: %q: %w", argv0, fs.ErrPermission)}
	default:
		// The wrong architecture, a script without #! or without its interpreter.
		return &StartError{255, fmt.Errorf("exec %s: %w", argv0, err)}
	}
}

// unwrapPath drops the operation and the path, which the message has already.
func unwrapPath(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}
