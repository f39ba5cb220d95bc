// Package sandbox runs a process isolated from the machine: its own mounts,
// pids, hostname, IPC and, if asked, network; a pivoted root; masked paths;
// docker's default capabilities and seccomp profile; cgroup limits.
//
// There is no re-executed init. One locked OS thread unshares its namespaces,
// mounts and pivots; the Go runtime never reuses such a thread, it dies with
// its goroutine. It then forks a child that plays a prepared list of system
// calls (script.go): what has to happen inside the new pid namespace, cgroup
// and user, then the seccomp filter, then exec. That saves the start-up of a
// second Go program for each RUN. Mounts live in the thread's namespace only,
// so that a killed strake leaves none behind.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/strake-project/strake/internal/rootfs"
	"github.com/strake-project/strake/internal/sandbox/network"
)

// Spec says what to run, where and how isolated. The zero value of each field
// is docker's default.
type Spec struct {
	Root rootfs.Root
	// ReadOnly remounts the root read-only after the mounts are made.
	ReadOnly bool
	Mounts   []Mount

	Args []string
	Env  []string // KEY=value; PATH decides where Args[0] is found
	Cwd  string   // made if missing, as docker does; "" is /
	// User is docker's USER: name or uid, optionally :group or :gid, looked up
	// in the root's own /etc/passwd and /etc/group. HOME is added to Env where
	// it is missing.
	User   string
	Groups []string // --group-add

	Hostname string
	// Hosts and ResolvConf are the contents of the two files, bind-mounted
	// over the root's; nil means made from the machine's.
	Hosts, ResolvConf []byte
	ExtraHosts        []string // "name:ip"
	Network           Network
	UserNet           *network.User // what Network User joins
	// Step makes this a step of a build and no container, as BuildKit's
	// executor runs it: /etc/hosts is of its own making and read-only, as
	// /etc/resolv.conf is; /etc/hostname is the image's and may be written;
	// and where the root has no /dev, /proc or /sys, they are made in it and
	// stay.
	Step bool

	Privileged      bool
	NoNewPrivileges bool
	CapAdd, CapDrop []string // with or without CAP_, ALL
	// Seccomp is "" for docker's default profile, "unconfined", or a profile in
	// docker's JSON.
	Seccomp string

	Limits  Limits
	Rlimits []Rlimit
	ShmSize int64 // bytes of /dev/shm; 0 is 64 MiB

	// Terminal gives the process a pseudo-terminal; its master is handed to
	// OnTerminal, and Stdin, Stdout, Stderr are not used.
	Terminal   bool
	OnTerminal func(master *os.File)
	Stdin      io.Reader // nil is /dev/null
	Stdout     io.Writer // nil is /dev/null
	Stderr     io.Writer
}

// Network is the process's network.
type Network string

// The networks a process may have.
const (
	Host Network = "host"
	None Network = "none" // loopback only
	User Network = "user" // Spec.UserNet
)

// Mount is one further mount, made in the order of destinations.
type Mount struct {
	Type        string // "bind", "tmpfs", "overlay", "file"
	Source      string // of a bind: absolute path on the machine
	Overlay     *rootfs.Root
	Destination string // resolved inside the root; made if missing
	ReadOnly    bool
	// Recursive binds what is mounted below Source too.
	Recursive bool
	Size      int64  // of a tmpfs, bytes; 0 no limit
	Mode      uint32 // of a tmpfs, a file, and of a made mount point
	// Content of a "file" mount (a secret): a file with UID, GID and Mode on a
	// tmpfs that only this sandbox sees; it never reaches a disk.
	Content  []byte
	UID, GID int
	// Selector is a path inside an Overlay or a bind's Source, resolved there,
	// that is mounted in the place of all of it.
	Selector string
}

// Limits are cgroup limits; 0 is no limit.
type Limits struct {
	Memory, MemorySwap  int64 // bytes
	CPUShares           uint64
	CPUPeriod, CPUQuota int64 // microseconds
	CPUSetCPUs          string
	CPUSetMems          string
	Pids                int64
	CgroupParent        string
}

// Rlimit is one --ulimit.
type Rlimit struct {
	Name       string // "nofile"
	Soft, Hard uint64
}

// Exit is how a process ended.
type Exit struct {
	Code   int  // docker's: 128+n for signal n
	OOM    bool // the kernel killed something in its cgroup for memory
	Signal int
}

// StartError is a failure to start the process; Code is docker's exit code:
// 127 not found, 126 not executable, 125 everything else.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// Process is a running process.
type Process struct{ process }

// Start starts the process. It fails with a *StartError in docker's words.
// When ctx ends the process and all its children are killed.
func Start(ctx context.Context, spec *Spec) (*Process, error) {
	p, err := start(ctx, spec)
	if err != nil {
		var failed *StartError
		if !errors.As(err, &failed) {
			err = &StartError{Code: 125, Err: err}
		}
		return nil, err
	}
	return p, nil
}

// Wait waits for the process to end and its output to be read whole. When it
// returns nothing of the sandbox is mounted any more.
func (p *Process) Wait() (Exit, error) {
	<-p.done
	return p.exit, p.err
}

// Signal sends a signal to the process; os.ErrProcessDone if it has ended.
func (p *Process) Signal(sig os.Signal) error {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal %v: %w", sig, errors.ErrUnsupported)
	}
	return p.kill(n)
}

// Pid is the process's id on the machine.
func (p *Process) Pid() int { return p.pid }
