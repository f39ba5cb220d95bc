package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ordinaryUser is who the rootless tests run as: test.sh makes this user, with
// a range of subordinate ids.
const ordinaryUser = "strake-test"

// asOrdinaryUser prepares a directory of the user's, with a copy of this
// program in it, and returns a function that runs the program there as him,
// under the name that args begins with.
func asOrdinaryUser(t *testing.T) (dir string, run func(env []string, args ...string) (string, error)) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	u, err := user.Lookup(ordinaryUser)
	if err != nil {
		t.Skipf("needs the user %s: %v", ordinaryUser, err)
	}
	for _, p := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s", p)
		}
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if dir, err = os.MkdirTemp("/var/tmp", "strake-rootless-"); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"strake.test", "strake", "docker"} {
		to := filepath.Join(dir, name)
		if name == "strake.test" {
			err = copyFile(self, to)
		} else {
			err = os.Symlink("strake.test", to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, scripts := range []string{"testdata/script", "testdata/rootless"} {
		if err := os.CopyFS(filepath.Join(dir, "testdata/script"), os.DirFS(scripts)); err != nil {
			t.Fatal(err)
		}
	}
	err = filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, uid, gid))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir, func(env []string, args ...string) (string, error) {
		cmd := ordinaryCommand(t, dir, args...)
		cmd.Env = append(cmd.Env, env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// ordinaryCommand is the program args[0] in dir, to be run by the user.
func ordinaryCommand(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	u, err := user.Lookup(ordinaryUser)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	cmd := exec.Command(filepath.Join(dir, args[0]), args[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "HOME=" + dir, "USER=" + ordinaryUser, "TMPDIR=" + dir,
		"STRAKE_ROOT=" + filepath.Join(dir, "store"), "TZ=UTC", "CI=" + os.Getenv("CI")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return cmd
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// TestRootlessScripts runs the scripts that run or build something as an
// ordinary user.
func TestRootlessScripts(t *testing.T) {
	_, run := asOrdinaryUser(t)
	out, err := run([]string{"STRAKE_TEST_ROOTLESS=1"}, "strake.test", "-test.v", "-test.run",
		"^TestScripts$/^(buildexplain|buildodd|commit|imageprune|lookinto|mutate|rmiused|roundtrip|rootless|run|saveload|systemprune)$")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(out, "--- PASS: TestScripts/rootless") {
		t.Errorf("the scripts did not run:\n%s", out)
	}
	if strings.Contains(out, "--- SKIP") && os.Getenv("CI") != "" {
		t.Errorf("a script skipped:\n%s", out)
	}
}

// TestRootlessDigests: what an ordinary user builds has the digests that it has
// when root builds it.
func TestRootlessDigests(t *testing.T) {
	dir, run := asOrdinaryUser(t)
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("needs busybox")
	}
	if err := busyboxTar(filepath.Join(dir, "box.tar")); err != nil {
		t.Fatal(err)
	}
	// What a step makes of these, where the image lacks them, has the time of day.
	tar := exec.Command("tar", "-rf", "box.tar", "--owner=0", "--group=0", "--mtime=@0", "dev", "proc", "sys")
	tar.Dir = dir
	for _, d := range tar.Args[6:] {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	context := filepath.Join(dir, "context")
	if err := os.Mkdir(context, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"file": "content", "Dockerfile": `FROM box:1
RUN mkdir -p /a/b /old && echo x >/a/b/f && chown 1000:33 /a/b && chmod 4711 /a/b/f && chown 5:6 /a /etc/passwd && touch /old/gone /a/keep && find / -xdev -exec touch -h -d @0 {} + ; ln /a/keep /a/hard && mkfifo /a/p && touch -h -d @0 /a /a/p
COPY --chown=70:80 --chmod=2750 file /copied
RUN rm -r /old /a/keep && mkdir /old && rm -rf /a/b && mkdir /a/b && touch -d @0 /old / /a/b /a
USER 1234:4321
RUN touch -d @0 /tmp/mine && id -u >/tmp/mine && touch -d @0 /tmp/mine /tmp ; true
`} {
		if err := os.WriteFile(filepath.Join(context, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(context, name), time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	asRoot := func(_ []string, args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(dir, args[0]), args[1:]...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "STRAKE_ROOT="+filepath.Join(dir, "rootstore"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	var layers [2]string
	for i, by := range []func([]string, ...string) (string, error){asRoot, run} {
		for _, args := range [][]string{
			{"strake", "import", "box.tar", "box:1"},
			{"strake", "build", "-t", "made", "context"},
			{"strake", "inspect", "--format", "{{range .RootFS.Layers}}{{println .}}{{end}}", "made"},
		} {
			out, err := by(nil, args...)
			if err != nil {
				t.Fatalf("%v: %v\n%s", args, err, out)
			}
			layers[i] = out
		}
	}
	if layers[0] != layers[1] {
		t.Errorf("root made\n%sand %s\n%s", layers[0], ordinaryUser, layers[1])
	}
	if n := strings.Count(layers[0], "sha256:"); n != 5 {
		t.Errorf("%d layers", n)
	}
	t.Setenv("STRAKE_ROOT", "") // root may not take the user's store for its own
	if out, err := exec.Command(filepath.Join(dir, "strake"), "--root", filepath.Join(dir, "store"), "images").CombinedOutput(); err == nil || !strings.Contains(string(out), "use it as that user") {
		t.Errorf("root in the user's store: %v\n%s", err, out)
	}
	// Everything goes away again, also what belongs to subordinate ids.
	for _, sub := range [][]string{{"prune", "-af"}, {"reclaim"}} {
		if out, err := run(nil, append([]string{"strake", "system"}, sub...)...); err != nil {
			t.Errorf("system %v: %v\n%s", sub, err, out)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "store/layers/*/*/tree"))
	if err != nil || len(left) > 0 {
		t.Errorf("after system prune there is still %v, %v", left, err)
	}
}

// TestSingleID: without subordinate ids there is one id, and what belongs to
// others is refused with the way out.
func TestSingleID(t *testing.T) {
	dir, run := asOrdinaryUser(t)
	if err := busyboxTar(filepath.Join(dir, "box.tar")); err != nil {
		t.Skip(err)
	}
	// Not found: newuidmap is on no other path than this one.
	if err := os.Mkdir(filepath.Join(dir, "nobin"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := "PATH=" + filepath.Join(dir, "nobin")
	for _, tt := range []struct {
		args []string
		want string
		fail bool
	}{
		{[]string{"strake", "import", "box.tar", "box:1"}, "sha256:", false},
		{[]string{"strake", "run", "--rm", "--network", "host", "box:1", "id", "-u"}, "0\n", false},
		{[]string{"strake", "run", "--rm", "--network", "host", "box:1", "chown", "5:5", "/etc/passwd"}, "Invalid argument", true},
		{[]string{"strake", "run", "--rm", "--network", "host", "-u", "5", "box:1", "true"}, "/etc/subuid", true},
	} {
		out, err := run([]string{path}, tt.args...)
		if !strings.Contains(out, tt.want) || (err != nil) != tt.fail {
			t.Errorf("%v: %v\n%swant %q", tt.args, err, out, tt.want)
		}
	}
	if out := fmt.Sprint(run([]string{path}, "strake", "rmi", "box:1")); !strings.Contains(out, "Untagged: box:1") {
		t.Errorf("rmi: %s", out)
	}
}

// TestRootlessQuestion: while a command inside the user namespace waits for an
// answer, the process outside does not draw over the question.
func TestRootlessQuestion(t *testing.T) {
	dir, run := asOrdinaryUser(t)
	if err := busyboxTar(filepath.Join(dir, "box.tar")); err != nil {
		t.Skip(err)
	}
	for _, args := range [][]string{{"strake", "import", "box.tar", "box:1"}, {"strake", "run", "--network", "host", "box:1", "true"}} {
		if out, err := run(nil, args...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	tt := newTerminal(t)
	cmd := ordinaryCommand(t, dir, "strake", "container", "prune")
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tt.slave, tt.slave, tt.slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tt.expect(t, "[y/N] ")
	time.Sleep(1500 * time.Millisecond) // longer than anybody waits before drawing
	fmt.Fprintln(tt.master, "n")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if got := tt.text(); strings.Contains(got, "[+]") {
		t.Errorf("the terminal shows %q", got)
	}
}
