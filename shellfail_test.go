package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal with somebody at it.
type terminal struct {
	master, slave *os.File
	mu            sync.Mutex
	seen          bytes.Buffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals: %v", err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	tt := &terminal{master: master, slave: slave}
	t.Cleanup(func() { master.Close(); slave.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			tt.mu.Lock()
			tt.seen.Write(buf[:n])
			tt.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return tt
}

func (tt *terminal) text() string {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	return tt.seen.String()
}

// expect waits for text to be shown.
func (tt *terminal) expect(t *testing.T, text string) {
	t.Helper()
	for range 600 {
		if strings.Contains(tt.text(), text) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("never shown: %q; but\n%s", text, tt.text())
}

// A failed RUN opens a shell where it stood, and the build fails as it would
// have; without a terminal, or without a shell, it says so.
func TestShellOnFail(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("RUN needs root")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	strake := filepath.Join(dir, "strake")
	if err := os.Symlink(self, strake); err != nil {
		t.Fatal(err)
	}
	if err := busyboxTar(filepath.Join(dir, "base.tar")); err != nil {
		t.Fatal(err)
	}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(strake, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "STRAKE_ROOT="+filepath.Join(dir, "store"), "BUILDKIT_PROGRESS=")
		return cmd
	}
	if out, err := command("import", "base.tar", "base:1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, text := range map[string]string{
		"Dockerfile": "FROM base:1\nENV NAME=value\nWORKDIR /work\nRUN --mount=type=secret,id=s,required echo here > left && sh -c 'exit 7'\n",
		"noshell":    "FROM scratch\nCOPY secret /x\nRUN [\"/x\"]\n",
		"secret":     "hidden",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"build", "--shell-on-fail", "--secret", "id=s,src=secret"}
	out, err := command(append(args, ".")...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--shell-on-fail needs a terminal") {
		t.Errorf("without a terminal: %v\n%s", err, out)
	}
	for _, progress := range []string{"plain", "tty"} {
		t.Run(progress, func(t *testing.T) {
			tt := newTerminal(t)
			cmd := command(append(args, "--progress", progress, ".")...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tt.slave, tt.slave, tt.slave
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			tt.expect(t, "This is a shell in it")
			fmt.Fprintln(tt.master, "echo $(pwd) $(cat left) $NAME $(cat /run/secrets/s) $((40+2)); exit 3")
			tt.expect(t, "/work here value hidden 42")
			err := cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("the build ended with %v\n%s", err, tt.text())
			}
			tt.expect(t, "did not complete successfully: exit code: 7")
		})
	}
	tt := newTerminal(t)
	cmd := command(append(args, "--progress", "plain", "-f", "noshell", ".")...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tt.slave, tt.slave, tt.slave
	if err := cmd.Run(); err == nil {
		t.Error("the build did not fail")
	}
	tt.expect(t, "no shell: the image has none of /bin/bash, /bin/sh, /busybox/sh, /bin/ash, /bin/busybox sh")
}
