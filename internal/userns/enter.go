package userns

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Enter runs this program once more with args, its whole argument list, as root
// of a new user namespace, and returns its exit code when it has ended.
func Enter(args []string) (code int, err error) {
	runtime.LockOSThread() // the child dies with the thread that forked it
	defer runtime.UnlockOSThread()
	path, err := os.Executable()
	if err != nil || unix.Access(path, unix.X_OK) != nil {
		path = "/proc/self/exe" // it was replaced meanwhile
	}
	signals := make(chan os.Signal, 64)
	signal.Reset() // from here on the child decides what a signal does
	signal.Notify(signals)
	defer signal.Stop(signals)

	c, err := start(path, args, append(os.Environ(), marker+"="+strconv.Itoa(os.Geteuid())))
	if err != nil {
		return 0, fmt.Errorf("make a user namespace: %w%s", err, hint(err))
	}
	defer c.close()
	err = plan().write(c.pid)
	if err == nil {
		err = c.proceed()
	}
	if err != nil {
		unix.Kill(c.pid, unix.SIGKILL)
		c.wait()
		return 0, fmt.Errorf("map the ids of a user namespace: %w", err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go shadow(c.pid, signals, ended)
	status, err := c.wait()
	if err != nil {
		return 0, fmt.Errorf("wait for process %d: %w", c.pid, err)
	}
	if err := c.failed(); err != nil {
		return 0, fmt.Errorf("enter a user namespace: %w%s", err, hint(err))
	}
	if status.Signaled() {
		signal.Reset()
		unix.Kill(os.Getpid(), status.Signal()) // end as it ended
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// shadow passes signals on. Those that a terminal sends, it sends to the whole
// foreground group, and so to the child too.
func shadow(pid int, signals <-chan os.Signal, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case s := <-signals:
			switch s {
			case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE, unix.SIGWINCH, unix.SIGCONT, unix.SIGTTIN, unix.SIGTTOU:
				continue
			case unix.SIGTSTP:
				unix.Kill(os.Getpid(), unix.SIGSTOP)
				continue
			case unix.SIGINT, unix.SIGQUIT:
				if inForeground() {
					continue
				}
			}
			unix.Kill(pid, s.(syscall.Signal))
		}
	}
}

// inForeground tells whether the terminal's keys reach this process.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// hint names the switch that a machine's administrator turned.
func hint(err error) string {
	read := func(file string) string {
		data, _ := os.ReadFile("/proc/sys/" + file)
		return strings.TrimSpace(string(data))
	}
	switch {
	case read("user/max_user_namespaces") == "0":
		return ": this machine allows none (sysctl user.max_user_namespaces)"
	case read("kernel/unprivileged_userns_clone") == "0":
		return ": this machine allows none to ordinary users (sysctl kernel.unprivileged_userns_clone)"
	case read("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return ": AppArmor restricts them on this machine (sysctl kernel.apparmor_restrict_unprivileged_userns)"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
		return ": the kernel, or the container that strake runs in, allows none"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return ": too many of them are in use (sysctl user.max_user_namespaces)"
	}
	return ""
}
