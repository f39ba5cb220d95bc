package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes the test binary answer to the names strake and docker: the
// scripts run it as processes of their own.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"strake": main, "docker": main})
}

// TestScripts runs testdata/script/*.txtar, each with a store and a home of
// its own. Beside testscript's commands there are:
//
//	exit CODE PROGRAM [ARG...]   run it; it must end with exactly that code
//	rootfs FILE [NAME=TEXT...]   make a small root file system's tar, the same
//	                             bytes each time; NAME/ is a directory
//	busyboxfs FILE               the same with a busybox that runs
//	registry [VAR]               serve a registry with a store of its own until
//	                             the script ends; its address is in $REGISTRY or $VAR
//	silent VAR                   a server that accepts connections, and no more;
//	                             its address is in $VAR
//	masked stdout|stderr|FILE GOLDEN
//	                             compare after ids, digests, ages and the width
//	                             of columns were made the same
//
// and the condition [root], which an ordinary user in TestRootlessScripts
// fulfils too. What only such a user can run is in testdata/rootless.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			for _, kv := range []string{
				"STRAKE_ROOT=" + filepath.Join(env.WorkDir, ".store"),
				"DOCKER_CONFIG=" + filepath.Join(env.WorkDir, ".docker"),
				"TZ=UTC", "DOCKER_HOST=", "DOCKER_DEFAULT_PLATFORM=", "BUILDKIT_PROGRESS=",
			} {
				env.Vars = append(env.Vars, kv)
			}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0 || os.Getenv("STRAKE_TEST_ROOTLESS") != "", nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit":      cmdExit,
			"busyboxfs": cmdBusybox,
			"rootfs":    cmdRootfs,
			"registry":  cmdRegistry,
			"silent":    cmdSilent,
			"masked":    cmdMasked,
		},
	})
}

func cmdExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE PROGRAM [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func cmdRootfs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: rootfs FILE [NAME=TEXT...]")
	}
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	tw := tar.NewWriter(f)
	for _, a := range append([]string{"etc/", "etc/passwd=root:x:0:0::/:/bin/sh\n"}, args[1:]...) {
		name, text, file := strings.Cut(a, "=")
		h := &tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeDir, ModTime: time.Unix(1e9, 0)}
		if file {
			h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, int64(len(text))
		}
		ts.Check(tw.WriteHeader(h))
		_, err := io.WriteString(tw, text)
		ts.Check(err)
	}
	ts.Check(tw.Close())
}

func cmdBusybox(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: busyboxfs FILE")
	}
	ts.Check(busyboxTar(ts.MkAbs(args[0])))
}

// busyboxTar makes a root file system's tar with a busybox that runs.
func busyboxTar(file string) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	tw := tar.NewWriter(f)
	var errs []error
	add := func(h *tar.Header, data []byte) {
		h.Size, h.ModTime = int64(len(data)), time.Unix(1e9, 0)
		err := tw.WriteHeader(h)
		if err == nil {
			_, err = tw.Write(data)
		}
		errs = append(errs, err)
	}
	for _, d := range []string{"bin/", "etc/", "tmp/"} {
		add(&tar.Header{Name: d, Mode: 0o755, Typeflag: tar.TypeDir}, nil)
	}
	add(&tar.Header{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("root:x:0:0::/:/bin/sh\n"))
	add(&tar.Header{Name: "bin/busybox", Mode: 0o755, Typeflag: tar.TypeReg}, binary)
	for a := range strings.FieldsSeq(string(applets)) {
		if a != "busybox" {
			add(&tar.Header{Name: "bin/" + a, Linkname: "busybox", Mode: 0o777, Typeflag: tar.TypeSymlink}, nil)
		}
	}
	return errors.Join(append(errs, tw.Close())...)
}

func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	name := "REGISTRY"
	if len(args) > 0 {
		name = args[0]
	}
	self, err := os.Executable()
	ts.Check(err)
	cmd := exec.Command(self, "--debug", "registry", "serve", "--addr", "127.0.0.1:0")
	cmd.Args[0] = "strake"
	if path, err := exec.LookPath("strake"); err == nil { // testscript's link to this binary
		cmd.Path = path
	}
	cmd.Env = append(os.Environ(), "STRAKE_ROOT="+ts.MkAbs("."+name), "HOME="+ts.MkAbs("."))
	log, err := os.Create(ts.MkAbs("." + name + ".log"))
	ts.Check(err)
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			ts.Logf("registry: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	ts.Check(err)
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "Listening on ")
	if !ok {
		ts.Fatalf("registry said %q", line)
	}
	ts.Setenv(name, addr)
}

func cmdSilent(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], l.Addr().String()) // the kernel accepts
}

func cmdMasked(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: masked stdout|stderr|FILE GOLDEN")
	}
	got, want := mask(ts, ts.ReadFile(args[0])), mask(ts, ts.ReadFile(args[1]))
	if got != want {
		ts.Fatalf("%s is\n%s\nwant\n%s", args[0], got, want)
	}
}

// mask makes what differs from run to run the same: what a registry's address,
// an ID or an age is, and how wide it makes its column.
func mask(ts *testscript.TestScript, s string) string {
	if r := ts.Getenv("REGISTRY"); r != "" {
		s = strings.ReplaceAll(s, r, "REGISTRY")
	}
	for _, m := range []struct{ what, by string }{
		{`sha256:[0-9a-f]{64}`, "<digest>"},
		{`\b[0-9a-f]{64}\b`, "<hex>"},
		{`\b[0-9a-f]{12}\b`, "<id>"},
		{`(Less than a second|About a minute|\d+ (seconds?|minutes?)) ago`, "<age>"},
		{`\d{4}-\d\d-\d\d[T ][0-9:.]+(Z| \+0000 UTC)`, "<time>"},
		{`(\S) {3,}`, "$1   "},
		{` +\n`, "\n"},
	} {
		s = regexp.MustCompile(m.what).ReplaceAllString(s, m.by)
	}
	return fmt.Sprintln(strings.TrimRight(s, "\n"))
}
