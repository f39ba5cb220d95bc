package userns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain makes the test binary a program that enters a namespace, where it
// does what its first argument says.
func TestMain(m *testing.M) {
	if os.Getenv("STRAKE_USERNS_PROGRAM") == "" {
		os.Exit(m.Run())
	}
	if Entered() {
		os.Exit(inside(os.Args[1]))
	}
	code, err := Enter(os.Args)
	if err != nil {
		fmt.Println(err)
		code = 125
	}
	os.Exit(code)
}

func inside(what string) int {
	_, marked := os.LookupEnv(marker)
	switch what {
	case "tell":
		fmt.Println("ids", os.Geteuid(), os.Getegid(), "inside", Inside(), "needed", Needed(), "single", Single(), "marked", marked)
		fmt.Println("mapped", Mapped(0, 0), Mapped(1, 1), Mapped(65536, 65536), Mapped(65537, 0), Mapped(0, 65537))
		fmt.Println("setgroups", unix.Setgroups([]int{0}) == nil, "args", os.Args[2:])
		return 7
	case "die":
		unix.Kill(os.Getpid(), unix.SIGTERM)
		select {}
	case "wait": // for SIGTERM, or to be killed
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGTERM)
		fmt.Println("waiting")
		fmt.Println(<-signals)
		return 3
	}
	return 1
}

// program is the test binary as the given user runs it, with args.
func program(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become other users")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "strake-userns-") // where other users may look
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "program")
	if err := errors.Join(os.WriteFile(file, body, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(file, args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "STRAKE_USERNS_PROGRAM=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential(t, name)}
	return cmd
}

func credential(t *testing.T, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Skipf("test.sh makes this user: %v", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func code(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// An ordinary user is root inside: with the subordinate ids where there are
// any and newuidmap may map them, else with the one id.
func TestEnter(t *testing.T) {
	for _, c := range []struct{ name, user, path, want string }{
		{"subordinate ids", "strake-test", os.Getenv("PATH"),
			"ids 0 0 inside true needed false single false marked false\nmapped true true true false false\nsetgroups true args [a b]\n"},
		{"none", "nobody", os.Getenv("PATH"),
			"ids 0 0 inside true needed false single true marked false\nmapped true false false false false\nsetgroups false args [a b]\n"},
		{"no newuidmap", "strake-test", "/nowhere",
			"ids 0 0 inside true needed false single true marked false\nmapped true false false false false\nsetgroups false args [a b]\n"},
		{"root", "root", os.Getenv("PATH"),
			"ids 0 0 inside true needed false single false marked false\nmapped true true true true true\nsetgroups true args [a b]\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := exec.LookPath("newuidmap"); err != nil {
				t.Skip("needs newuidmap")
			}
			cmd := program(t, c.user, "tell", "a", "b")
			cmd.Env = append(cmd.Env, "PATH="+c.path)
			out, err := cmd.CombinedOutput()
			if string(out) != c.want || code(err) != 7 {
				t.Errorf("exit code %d, not 7:\n%s", code(err), out)
			}
		})
	}
}

// A newuidmap that refuses is told of with its own words and the way out.
func TestEnterRefused(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"newuidmap", "newgidmap"} {
		if err := os.WriteFile(filepath.Join(dir, p), []byte("#!/bin/sh\necho $0: no such luck >&2\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := program(t, "strake-test", "tell")
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Env = append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if code(err) != 125 || !strings.HasPrefix(string(out), "map the ids of a user namespace: newuidmap: ") || !strings.Contains(string(out), "no such luck") || !strings.Contains(string(out), "/etc/subuid") {
		t.Errorf("exit code %d:\n%s", code(err), out)
	}
}

// The first process ends as the one inside did, passes signals on, and takes it
// along when it is killed.
func TestShadow(t *testing.T) {
	if err := program(t, "nobody", "die").Run(); !signaled(err, unix.SIGTERM) {
		t.Errorf("inside a process killed itself with SIGTERM; outside: %v", err)
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		cmd := program(t, "nobody", "wait")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = w, w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		out := bufio.NewReader(r)
		if line, err := out.ReadString('\n'); line != "waiting\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		err = cmd.Wait()
		// The pipe ends when nobody has it any more.
		rest, rerr := io.ReadAll(out)
		r.Close()
		switch {
		case rerr != nil:
			t.Error(rerr)
		case sig == unix.SIGTERM && (code(err) != 3 || string(rest) != "terminated\n"):
			t.Errorf("SIGTERM: %v, %q", err, rest)
		case sig == unix.SIGKILL && (!signaled(err, sig) || len(rest) > 0):
			t.Errorf("SIGKILL: %v, %q", err, rest)
		}
	}
}

func signaled(err error, sig unix.Signal) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled() && exit.Sys().(syscall.WaitStatus).Signal() == sig
}

// A program that cannot be executed is told of by the call that failed.
func TestChildFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to map ids without help")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, err := start("/nowhere/strake", []string{"strake"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := errors.Join(plan().write(c.pid), c.proceed()); err != nil {
		t.Fatal(err)
	}
	status, err := c.wait()
	if err != nil || status.ExitStatus() != 125 {
		t.Errorf("status %v, %v", status, err)
	}
	if err := c.failed(); !errors.Is(err, unix.ENOENT) || !strings.HasPrefix(err.Error(), "execute strake again: ") {
		t.Errorf("failure: %v", err)
	}
	if _, err := start("/bin/true", []string{"a\x00b"}, nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an argument with a NUL: %v", err)
	}
}
