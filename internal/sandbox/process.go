package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is what a running process is made of.
type process struct {
	pid  int
	over chan struct{} // closed when the thread has nothing left to do but die
	done chan struct{} // closed when Wait may return
	exit Exit
	err  error

	mu    sync.Mutex
	ended bool // reaped: its pid may belong to somebody else

	copies sync.WaitGroup // of its output
	master *os.File
	box    *box
}

// start prepares what needs no namespace, hands the rest to a thread of its
// own and returns when the process runs.
func start(ctx context.Context, spec *Spec) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, err := newBox(spec)
	if err != nil {
		return nil, err
	}
	p := &Process{process{over: make(chan struct{}), done: make(chan struct{}), box: b}}
	started := make(chan error, 1)
	onOwnThread(func() { p.live(started) })
	if err := <-started; err != nil {
		p.threadGone()
		if b.master != nil {
			b.master.Close()
		}
		b.close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { p.kill(unix.SIGKILL) })
	go p.finish(stop)
	if p.master != nil && spec.OnTerminal != nil {
		spec.OnTerminal(p.master)
	}
	return p, nil
}

// onOwnThread runs f on a thread that dies with it. It is never the process's
// first thread: that one cannot end, and /proc/self shows its namespaces.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		if unix.Gettid() == unix.Getpid() {
			// This goroutine keeps the first thread while the other one, of
			// necessity, finds a different one.
			chosen := make(chan struct{})
			go func() {
				runtime.LockOSThread()
				close(chosen)
				f()
			}()
			<-chosen
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
}

// live is the life of the sandbox's thread: it becomes the sandbox, forks the
// process and waits for it. It must outlive the process, because the process's
// parent-death signal watches the thread that forked it: that is what kills
// the process when strake is killed.
func (p *Process) live(started chan<- error) {
	defer close(p.over)
	b := p.box
	b.tid = unix.Gettid()
	if err := b.enter(); err != nil {
		started <- err
		return
	}
	pid, err := b.spawn()
	if err != nil {
		started <- err
		return
	}
	p.pid, p.master = pid, b.master
	b.io.started(&p.process)
	started <- nil

	// Wait without reaping first, so that kill never meets a reused pid.
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			p.err = fmt.Errorf("wait for process %d: %w", pid, err)
		}
		break
	}
	p.exit = exitOf(status)
}

// finish does what is left when the process and then its thread have ended.
func (p *Process) finish(stop func() bool) {
	p.threadGone()
	stop()
	p.copies.Wait()
	p.exit.OOM = p.box.cgroup.oomKilled()
	if err := p.box.close(); err != nil && p.err == nil {
		p.err = err
	}
	close(p.done)
}

// threadGone waits until the sandbox's thread has left the kernel and with it
// the mount namespace: only then the overlay is unmounted and its upper
// directory may be used.
func (p *Process) threadGone() {
	<-p.over
	tid := p.box.tid
	fd, err := unix.PidfdOpen(tid, unix.PIDFD_THREAD)
	if err == nil {
		defer unix.Close(fd)
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if err != unix.EINTR {
				break
			}
		}
	}
	// Linux before 6.9 has no pidfds of threads; and a pidfd is ready when the
	// thread is a zombie, a moment before it is gone.
	for wait := 20 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		if unix.Tgkill(unix.Getpid(), tid, 0) == unix.ESRCH {
			return
		}
		time.Sleep(wait)
	}
}

// kill signals pid 1 of the sandbox. SIGKILL ends everything in it: the kernel
// kills a pid namespace with its first process.
func (p *process) kill(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return os.ErrProcessDone
	}
	return unix.Kill(p.pid, sig)
}

func exitOf(status unix.WaitStatus) Exit {
	if status.Signaled() {
		return Exit{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}
	}
	return Exit{Code: status.ExitStatus()}
}

// ---- standard streams

// stdio is the process's three standard files and our ends of their pipes.
type stdio struct {
	child  [3]*os.File
	own    []*os.File // of child: to be closed once the process has its copies
	ours   []*os.File // the other ends, until copying began
	copies []func()
	stdin  func()
}

// open fills the three files. Files of the caller's are given to the process
// as they are where that gives away nothing: not terminals, which a process
// could type into, and not directories, which lead to the machine's files.
func (s *stdio) open(spec *Spec) error {
	null := func(flag int) (*os.File, error) {
		f, err := os.OpenFile("/dev/null", flag, 0)
		if err == nil {
			s.own = append(s.own, f)
		}
		return f, err
	}
	var err error
	if f, ok := spec.Stdin.(*os.File); spec.Stdin == nil {
		s.child[0], err = null(os.O_RDONLY)
	} else if ok && harmless(f) {
		s.child[0] = f
	} else {
		var r, w *os.File
		if r, w, err = os.Pipe(); err == nil {
			s.child[0], s.own, s.ours = r, append(s.own, r), append(s.ours, w)
			s.stdin = func() {
				io.Copy(w, spec.Stdin)
				w.Close()
			}
		}
	}
	if err != nil {
		return err
	}
	for i, out := range []io.Writer{spec.Stdout, spec.Stderr} {
		if f, ok := out.(*os.File); out == nil {
			s.child[1+i], err = null(os.O_WRONLY)
		} else if ok && harmless(f) {
			s.child[1+i] = f
		} else if i == 1 && same(out, spec.Stdout) {
			s.child[2] = s.child[1]
		} else {
			var r, w *os.File
			if r, w, err = os.Pipe(); err == nil {
				s.child[1+i], s.own, s.ours = w, append(s.own, w), append(s.ours, r)
				s.copies = append(s.copies, func() {
					io.Copy(out, r)
					r.Close()
				})
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// same tells whether two writers are one, so that one pipe keeps their order.
func same(a, b io.Writer) bool {
	defer func() { recover() }() // writers of a type that cannot be compared
	return a == b
}

func harmless(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.IsDir() {
		return false
	}
	if info.Mode()&os.ModeCharDevice == 0 {
		return true
	}
	return !isTerminal(f)
}

func isTerminal(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	tty := false
	raw.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		tty = err == nil
	})
	return tty
}

// close closes what nobody uses any more: the process's ends, of which it has
// copies, and ours where it never started.
func (s *stdio) close() {
	for _, f := range append(s.own, s.ours...) {
		f.Close()
	}
	s.own, s.ours = nil, nil
}

// started begins to copy.
func (s *stdio) started(p *process) {
	s.ours = nil
	s.close()
	if s.stdin != nil {
		go s.stdin() // not waited for: its reader may block for ever
	}
	for _, c := range s.copies {
		p.copies.Go(c)
	}
}
