// Package network makes networks for sandboxes.
//
// An ordinary user may make a network namespace and none of the devices that
// would connect it. So a helper in user space, pasta or slirp4netns, holds the
// other end of the namespace's tap device and speaks to the world with sockets
// of its own. Root may have the same: it needs no bridge, no rule in the
// machine's firewall, and leaves nothing behind when it is killed.
package network

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// User is a network namespace that a helper connects.
type User struct {
	// Helper is its name.
	Helper string
	// ResolvConf is the /etc/resolv.conf that works in it.
	ResolvConf []byte

	file string   // where the namespace is mounted
	ns   *os.File // the namespace
	stop func()
}

// helper is one way to connect a namespace.
type helper struct {
	name  string
	start func(ctx context.Context, u *User, dir string) (stop func(), err error)
}

// helpers lists them, the best first.
func helpers() []helper {
	return []helper{{"pasta", startPasta}, {"slirp4netns", startSlirp}}
}

// ErrNone is a machine on which no helper can work.
var ErrNone = errors.New("no user-mode network")

// Start makes a namespace and starts the helper of that name, or the first one
// installed where name is "". Files that the helper needs lie in dir. With
// nothing to start it fails with ErrNone.
func Start(ctx context.Context, name, dir string) (*User, error) {
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	tun.Close()
	var chosen *helper
	for _, h := range helpers() {
		if name != "" && name != h.name {
			continue
		}
		if _, err := exec.LookPath(h.name); err == nil {
			chosen = &h
			break
		}
	}
	if chosen == nil {
		if name == "" {
			name = "pasta nor slirp4netns"
		}
		return nil, fmt.Errorf("%w: %s is not installed", ErrNone, name)
	}
	u := &User{Helper: chosen.name, file: filepath.Join(dir, "netns"), stop: func() {}}
	if err := u.makeNamespace(); err != nil {
		u.Close()
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	if u.stop, err = chosen.start(ctx, u, dir); err != nil {
		u.stop = func() {}
		u.Close()
		return nil, fmt.Errorf("start %s: %w", chosen.name, err)
	}
	return u, nil
}

// makeNamespace makes the namespace and mounts it as a file, by which helpers
// open it: they drop the right to look into our /proc first.
func (u *User) makeNamespace() error {
	f, err := os.Create(u.file)
	if err != nil {
		return err
	}
	f.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := LoopbackUp(); err != nil {
				return err
			}
			of := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
			if u.ns, err = os.Open(of); err != nil {
				return err
			}
			return unix.Mount(of, u.file, "", unix.MS_BIND, "")
		}()
	}()
	return <-done
}

// Join moves the calling thread, which must be locked, into the network.
func (u *User) Join() error {
	if err := unix.Setns(int(u.ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("join the network namespace: %w", err)
	}
	return nil
}

// Close ends the helper.
func (u *User) Close() {
	u.stop()
	unix.Unmount(u.file, unix.MNT_DETACH)
	if u.ns != nil {
		u.ns.Close()
	}
}

// LoopbackUp brings up the loopback device of the calling thread's network.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err == nil {
		ifr.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
	}
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}

// Shared is a network that several sandboxes of one command share. It is made
// when the first one asks for it, and ends with Close.
type Shared struct {
	// Helper is the one to use, "" for whichever there is.
	Helper string
	// Dir makes the directory for the helper's files.
	Dir func() (string, error)
	// Need makes a machine without helper an error; else Get gives nil there.
	Need bool
	Log  *slog.Logger

	mu   sync.Mutex
	done bool
	user *User
	err  error
}

// Get gives the network, nil where the machine's own must do.
func (s *Shared) Get(ctx context.Context) (*User, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return s.user, s.err
	}
	dir, err := s.Dir()
	if err == nil {
		s.user, err = Start(ctx, s.Helper, dir)
	}
	if ctx.Err() != nil { // somebody gave up; that says nothing about the next
		if s.user != nil {
			s.user.Close()
			s.user = nil
		}
		return nil, ctx.Err()
	}
	if errors.Is(err, ErrNone) && !s.Need {
		s.Log.Warn("network: the machine's own is used", "why", err)
		err = nil
	}
	s.done, s.err = true, err
	return s.user, err
}

// Getter is Get, nil for a nil network.
func (s *Shared) Getter() func(context.Context) (*User, error) {
	if s == nil {
		return nil
	}
	return s.Get
}

// Close ends the network if it was made.
func (s *Shared) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.user != nil {
		s.user.Close()
	}
	s.user, s.done = nil, false
}

// resolvConf is the machine's resolv.conf with other servers: those given, or
// where there are none the machine's that are not on its loopback. It tells
// whether any server is left.
func resolvConf(servers ...string) ([]byte, bool) {
	var best []byte
	// systemd-resolved keeps the true servers in the second one.
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var out bytes.Buffer
		found := len(servers) > 0
		for _, s := range servers {
			fmt.Fprintf(&out, "nameserver %s\n", s)
		}
		for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) > 1 && fields[0] == "nameserver" {
				addr, err := netip.ParseAddr(fields[1])
				if len(servers) > 0 || err != nil || addr.IsLoopback() {
					continue
				}
				found = true
			}
			out.WriteString(lines.Text() + "\n")
		}
		if found {
			return out.Bytes(), true
		}
		best = out.Bytes()
	}
	return best, false
}
