package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/rootfs"
)

// upper lists what is in an upper directory.
func upper(t *testing.T, r rootfs.Root) string {
	t.Helper()
	var all []string
	filepath.WalkDir(r.Upper, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			t.Error(err)
		}
		if p != r.Upper {
			all = append(all, strings.TrimPrefix(p, r.Upper))
		}
		return nil
	})
	return strings.Join(all, " ")
}

func TestProcess(t *testing.T) {
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the machine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, script, want string
		spec               Spec
		code               int
		upper              string
	}{
		{name: "it is pid 1", script: "set -- /proc/[0-9]*; echo $$ $#", want: "1 1\n"},
		{name: "exit code", script: "exit 7", code: 7},
		{name: "killed by a signal is 128+n", script: "exec 2>/dev/null; sh -c 'kill -9 $$'; exit $?", code: 137},
		{name: "root has docker's capabilities", script: "grep CapEff /proc/self/status", want: "CapEff:\t00000000a80425fb\n"},
		{name: "CapDrop", spec: Spec{CapDrop: []string{"ALL"}, CapAdd: []string{"cap_chown"}}, script: "grep CapBnd /proc/self/status", want: "CapBnd:\t0000000000000001\n"},
		{name: "a user has none", spec: Spec{User: "joe"}, script: "id; echo $HOME; grep -E 'Cap(Eff|Prm|Amb)' /proc/self/status",
			want: "uid=1000(joe) gid=1000(joe) groups=10(wheel),1000(joe)\n/home/joe\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n"},
		{name: "a user by number with a group", spec: Spec{User: "1234:wheel"}, script: "id -u; id -g; echo $HOME", want: "1234\n10\n/\n"},
		{name: "further groups", spec: Spec{User: "joe", Groups: []string{"77"}}, script: "id -G", want: "1000 10 77\n"},
		{name: "HOME of the caller's wins", spec: Spec{Env: []string{testPath, "HOME=/x"}}, script: "echo $HOME", want: "/x\n"},
		{name: "no_new_privs", spec: Spec{NoNewPrivileges: true}, script: "grep NoNewPrivs /proc/self/status", want: "NoNewPrivs:\t1\n"},
		{name: "the filter is in force", script: "grep Seccomp: /proc/self/status", want: "Seccomp:\t2\n"},
		{name: "no network", spec: Spec{Network: None}, script: "ip -o link | cut -d: -f2; ip -o addr | grep -c 127.0.0.1", want: " lo\n1\n"},
		{name: "hostname", spec: Spec{Hostname: "boat", Network: None}, script: "hostname; cat /etc/hostname; tail -n1 /etc/hosts", want: "boat\nboat\n127.0.0.1\tboat\n"},
		{name: "extra hosts", spec: Spec{Hosts: []byte{}, ExtraHosts: []string{"db:10.0.0.1", "six:[::1]"}}, script: "cat /etc/hosts", want: "10.0.0.1\tdb\n::1\tsix\n"},
		{name: "working directory is made", spec: Spec{Cwd: "/a/b"}, script: "pwd", want: "/a/b\n", upper: "/a /a/b"},
		{name: "a bind mount, its way not left behind", spec: Spec{Mounts: []Mount{{Type: "bind", Source: host, Destination: "/mnt/deep/er"}}},
			script: "cat /mnt/deep/er/file; echo x >/mnt/deep/er/new", want: "from the machine\n"},
		{name: "a file bind, read-only", spec: Spec{Mounts: []Mount{{Type: "bind", Source: host + "/file", Destination: "/etc/file", ReadOnly: true}}},
			script: "cat /etc/file; echo x >/etc/file || echo no", want: "from the machine\nsh: can't create /etc/file: Read-only file system\nno\n"},
		{name: "nested mounts in any order", spec: Spec{Mounts: []Mount{{Type: "tmpfs", Destination: "/m/t"}, {Type: "bind", Source: host, Destination: "/m"}}},
			script: "cat /m/file; echo x >/m/t/y; ls /m/t", want: "from the machine\ny\n"},
		{name: "tmpfs with size and mode", spec: Spec{Mounts: []Mount{{Type: "tmpfs", Destination: "/t", Size: 1 << 20, Mode: 0o700}}},
			script: "stat -c %a /t; df -k /t | awk 'END{print $2}'", want: "700\n1024\n"},
		{name: "read-only root", spec: Spec{ReadOnly: true}, script: "echo x >/x || echo no; echo x >/dev/shm/x && echo yes", want: "sh: can't create /x: Read-only file system\nno\nyes\n"},
		{name: "changes land in the upper directory", script: "echo x >/tmp/x; rm /etc/group", upper: "/etc /etc/group /tmp /tmp/x"},
		{name: "umask", script: "umask", want: "0022\n"},
		{name: "devices work", script: "echo x >/dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; test -c /dev/tty && ls /dev/fd/ >/dev/null && echo ok", want: "3\n3\nok\n"},
		{name: "device nodes can be made and not opened", script: "mknod /tmp/n c 1 3 && cat /tmp/n; mknod /dev/n c 1 3 && cat /dev/n; rm /tmp/n",
			want: "cat: can't open '/tmp/n': Permission denied\ncat: can't open '/dev/n': Permission denied\n", upper: "/tmp"},
		{name: "masked and read-only paths", script: "cat /proc/keys | wc -c; ls /sys/firmware | wc -l; echo 1 >/proc/sys/kernel/panic || echo no",
			want: "0\n0\nsh: can't create /proc/sys/kernel/panic: Read-only file system\nno\n"},
		{name: "shm size", spec: Spec{ShmSize: 1 << 20}, script: "df -k /dev/shm | awk 'END{print $2}'", want: "1024\n"},
		{name: "a user may reopen its output", spec: Spec{User: "joe"}, script: "echo x >/dev/stdout; echo y >/proc/self/fd/2", want: "x\ny\n"},
		{name: "no descriptor of the machine's leaks in", script: "ls /proc/self/fd | wc -l", want: "4\n"},
		{name: "own session", script: `cut -d" " -f4-6 /proc/1/stat`, want: "0 1 1\n"},
		{name: "rlimits", spec: Spec{Rlimits: []Rlimit{{"nofile", 100, 200}, {"core", 0, 0}}}, script: "ulimit -n; ulimit -Hn; ulimit -c", want: "100\n200\n0\n"},
		{name: "privileged", spec: Spec{Privileged: true}, script: "mount -t tmpfs none /tmp && echo ok; grep Seccomp: /proc/self/status; test -c /dev/kmsg && echo kmsg; echo x >/dev/null && rm /dev/null", want: "ok\nSeccomp:\t0\nkmsg\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.Root = busybox(t)
			out, exit := sh(t, c.spec, c.script)
			if out != c.want {
				t.Errorf("got  %q\nwant %q", out, c.want)
			}
			if exit.Code != c.code {
				t.Errorf("exit code %d, want %d", exit.Code, c.code)
			}
			if got := upper(t, c.spec.Root); got != c.upper {
				t.Errorf("upper directory: %q, want %q", got, c.upper)
			}
		})
	}
}

// Mount points that the image's own links and whiteouts hide are made in the
// upper directory and taken away again, with the times as they were.
func TestStubsLeaveNothing(t *testing.T) {
	root := busybox(t)
	lower := root.Lowers[0]
	long := time.Date(2020, 1, 2, 3, 4, 5, 678, time.UTC)
	os.MkdirAll(filepath.Join(lower, "run"), 0o755)
	os.MkdirAll(filepath.Join(lower, "var"), 0o755)
	os.Symlink("../run", filepath.Join(lower, "var/run"))
	os.Symlink("../run/systemd/resolve/stub.conf", filepath.Join(lower, "etc/resolv.conf"))
	os.Symlink("/tmp/../home/joe", filepath.Join(lower, "joe"))
	for _, d := range []string{"run", "home/joe", "etc", "."} {
		os.Chtimes(filepath.Join(lower, d), long, long)
	}
	host := t.TempDir()
	mounts := []Mount{
		{Type: "bind", Source: host, Destination: "/var/run/deep/sock"},
		{Type: "tmpfs", Destination: "/joe/cache"},
	}
	spec := Spec{Root: fresh(t, lower), Mounts: mounts, ResolvConf: []byte("nameserver 192.0.2.1\n")}
	out, _ := sh(t, spec, "cat /etc/resolv.conf; grep -cE ' /(run/deep/sock|home/joe/cache) ' /proc/mounts")
	if out != "nameserver 192.0.2.1\n2\n" {
		t.Errorf("%q", out)
	}
	if got := upper(t, spec.Root); got != "" {
		t.Errorf("left in the upper directory: %s", got)
	}

	// What the process itself did beside a stub stays, as it left it.
	spec.Root = fresh(t, lower)
	sh(t, spec, "echo x >/joe/kept; touch -d '2021-01-01 00:00:00' /joe; chmod 700 /run")
	if got := upper(t, spec.Root); got != "/home /home/joe /home/joe/kept /run" {
		t.Errorf("upper directory: %q", got)
	}
	info, err := os.Stat(filepath.Join(spec.Root.Upper, "home/joe"))
	if err != nil || info.ModTime().Year() != 2021 {
		t.Errorf("%v %v", info, err)
	}
	info, err = os.Stat(filepath.Join(spec.Root.Upper, "run"))
	if err != nil || !info.ModTime().Equal(long) || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info, err)
	}
}

// An image's links must not lead a mount out of its root.
func TestHostileLinks(t *testing.T) {
	root := busybox(t)
	victim := t.TempDir()
	os.Symlink(strings.Repeat("../", 20)+victim, filepath.Join(root.Lowers[0], "out"))
	spec := Spec{Root: root, Mounts: []Mount{{Type: "tmpfs", Destination: "/out/x"}}}
	sh(t, spec, "echo x >/out/x/y")
	if left, _ := os.ReadDir(victim); len(left) > 0 {
		t.Errorf("the machine's directory was written to: %v", left)
	}
	os.Symlink("/etc", filepath.Join(root.Lowers[0], "proc"))
	_, err := Start(t.Context(), &Spec{Root: fresh(t, root.Lowers[0]), Args: []string{"true"}, Env: []string{testPath}})
	if err == nil || !strings.Contains(err.Error(), "mount /proc") {
		t.Errorf("%v", err)
	}
}

func TestManyLayers(t *testing.T) {
	root := busybox(t)
	var lowers []string
	for range 300 {
		lowers = append(lowers, t.TempDir())
	}
	os.WriteFile(filepath.Join(lowers[299], "deep"), []byte("300 layers\n"), 0o644)
	out, _ := sh(t, Spec{Root: fresh(t, append(lowers, root.Lowers[0])...)}, "cat /deep")
	if out != "300 layers\n" {
		t.Errorf("%q", out)
	}
	odd := filepath.Join(t.TempDir(), `a:b,c\d e`)
	os.MkdirAll(odd, 0o755)
	os.WriteFile(filepath.Join(odd, "odd"), []byte("odd name\n"), 0o644)
	if out, _ := sh(t, Spec{Root: fresh(t, odd, root.Lowers[0])}, "cat /odd"); out != "odd name\n" {
		t.Errorf("%q", out)
	}
}

func TestOverlayMount(t *testing.T) {
	root := busybox(t)
	a, b := t.TempDir(), t.TempDir()
	os.MkdirAll(filepath.Join(a, "sub"), 0o755)
	os.WriteFile(filepath.Join(a, "sub/one"), []byte("1"), 0o644)
	os.MkdirAll(filepath.Join(b, "sub"), 0o755)
	os.WriteFile(filepath.Join(b, "sub/two"), []byte("2"), 0o644)
	os.Symlink("/sub", filepath.Join(b, "link"))
	two := rootfs.Root{Lowers: []string{a, b}}
	one := rootfs.Root{Lowers: []string{a}}
	rw := fresh(t, a, b)
	out, _ := sh(t, Spec{Root: root, Mounts: []Mount{
		{Type: "overlay", Overlay: &two, Destination: "/two", Selector: "/link"},
		{Type: "overlay", Overlay: &one, Destination: "/one"},
		{Type: "overlay", Overlay: &one, Destination: "/f", Selector: "sub/one"},
		{Type: "overlay", Overlay: &rw, Destination: "/rw"},
	}}, "ls /two /one; cat /f; touch /one/x || touch /two/x || echo; touch /rw/x")
	if !strings.HasPrefix(out, "/one:\nsub\n\n/two:\none\ntwo\n1touch: /one/x: Read-only") {
		t.Errorf("%q", out)
	}
	if got := upper(t, rw); got != "/x" {
		t.Errorf("%q", got)
	}
	os.Symlink("/etc", filepath.Join(b, "out"))
	for _, m := range []Mount{
		{Type: "overlay", Overlay: &one, Selector: "../../../../etc/passwd"},
		{Type: "bind", Source: b, Selector: "out/passwd"},
		{Type: "bind", Source: b, Selector: "../../../../etc/passwd"},
	} {
		m.Destination = "/x"
		_, err := Start(t.Context(), &Spec{Root: root, Args: []string{"true"}, Env: []string{testPath}, Mounts: []Mount{m}})
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a selector led out of its %s: %v", m.Type, err)
		}
	}
	if out, _ := sh(t, Spec{Root: root, Mounts: []Mount{{Type: "bind", Source: b, Selector: "link", Destination: "/in"}}}, "ls /in"); out != "two\n" {
		t.Errorf("a bind's selector: %q", out)
	}
}

func TestStreams(t *testing.T) {
	root := busybox(t)
	var out, errs bytes.Buffer
	p, err := Start(t.Context(), &Spec{Root: root, Args: []string{"sh", "-c", "cat; echo oops >&2"}, Env: []string{testPath},
		Stdin: strings.NewReader("hello\n"), Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
	if out.String() != "hello\n" || errs.String() != "oops\n" {
		t.Errorf("%q %q", &out, &errs)
	}

	// A grandchild that keeps the output open does not keep Wait.
	sh(t, Spec{Root: fresh(t, root.Lowers[0])}, "sleep 1000 & exit 0")

	// A reader that never ends does not keep Wait either.
	r, w, _ := os.Pipe()
	defer w.Close()
	p, err = Start(t.Context(), &Spec{Root: fresh(t, root.Lowers[0]), Args: []string{"true"}, Env: []string{testPath}, Stdin: io.MultiReader(r)})
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
}

func TestTerminal(t *testing.T) {
	root := busybox(t)
	var out bytes.Buffer
	var copied sync.WaitGroup
	p, err := Start(t.Context(), &Spec{Root: root, User: "joe", Args: []string{"sh", "-c", "tty; test -t 0 && test -t 1 && echo yes; read x; echo got $x; cat /dev/console & echo here >/dev/tty; exit 3"},
		Env: []string{testPath}, Terminal: true, OnTerminal: func(m *os.File) {
			m.WriteString("typed\n")
			copied.Go(func() {
				io.Copy(&out, m)
				m.Close()
			})
		}})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait()
	copied.Wait()
	if err != nil || exit.Code != 3 {
		t.Errorf("%v %v", exit, err)
	}
	for _, want := range []string{"/dev/pts/0", "yes", "got typed", "here"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

func TestCancelKillsAll(t *testing.T) {
	root := busybox(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w, _ := os.Pipe()
	p, err := Start(ctx, &Spec{Root: root, Args: []string{"sh", "-c", "trap '' TERM; setsid sh -c 'echo ready; sleep 1000' & wait; sleep 1000"}, Env: []string{testPath}, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	r.Read(make([]byte, 10))
	cancel()
	exit, err := p.Wait()
	if err != nil || exit.Code != 137 || exit.Signal != 9 {
		t.Errorf("%+v %v", exit, err)
	}
	if n, err := r.Read(make([]byte, 10)); n != 0 || err != io.EOF {
		t.Errorf("a child lives: %d %v", n, err)
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("%v", err)
	}
}

func TestSignal(t *testing.T) {
	root := busybox(t)
	r, w, _ := os.Pipe()
	p, err := Start(t.Context(), &Spec{Root: root, Args: []string{"sh", "-c", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done"}, Env: []string{testPath}, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	r.Read(make([]byte, 10))
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if exit, _ := p.Wait(); exit.Code != 42 {
		t.Errorf("%+v", exit)
	}
}

// Several at once, and no thread, descriptor, mount or zombie stays behind.
func TestManyAtOnce(t *testing.T) {
	root := busybox(t)
	sh(t, Spec{Root: fresh(t, root.Lowers[0])}, "true")
	count := func(dir string) int {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	fds := count("/proc/self/fd")
	// What a sandbox mounts lies on "/" or names a layer; the machine's other
	// programs mount what they like meanwhile.
	mounts := func() (ours []string) {
		all, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(all)) {
			if strings.Fields(line)[4] == "/" || strings.Contains(line, filepath.Dir(root.Lowers[0])) {
				ours = append(ours, line)
			}
		}
		return ours
	}
	before := mounts()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 5 {
				code := (i + j) % 7
				_, exit := sh(t, Spec{Root: fresh(t, root.Lowers[0])}, "exit "+string(rune('0'+code)))
				if exit.Code != code {
					t.Errorf("exit code %d, want %d", exit.Code, code)
				}
			}
		})
	}
	all.Wait()
	if now := count("/proc/self/fd"); now > fds {
		t.Errorf("%d descriptors, before %d", now, fds)
	}
	if now := mounts(); !slices.Equal(now, before) {
		t.Errorf("mounts changed:\n%s", now)
	}
	if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
		t.Errorf("a child is left: %v", err)
	}
	if link, _ := os.Readlink("/proc/self/task/" + strconv.Itoa(syscall.Gettid()) + "/ns/mnt"); link == "" {
		t.Errorf("cannot read the mount namespace")
	}
	own, _ := os.Readlink("/proc/self/ns/mnt")
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/mnt")
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != own {
			t.Errorf("thread %s is in another mount namespace", task)
		}
	}
}

// kill -9 of strake ends the sandbox: the test binary runs itself as the
// strake that is killed.
func TestKilledParent(t *testing.T) {
	if lower := os.Getenv("SANDBOX_TEST_LOWER"); lower != "" {
		_, err := Start(context.Background(), &Spec{Root: fresh(t, lower), Args: []string{"sh", "-c", "sleep 1000 & echo up; sleep 1000"}, Env: []string{testPath}, Stdout: os.Stdout})
		if err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		select {}
	}
	root := busybox(t)
	r, w, _ := os.Pipe()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledParent$")
	cmd.Env = append(os.Environ(), "SANDBOX_TEST_LOWER="+root.Lowers[0], "TMPDIR="+t.TempDir())
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if n, err := r.Read(make([]byte, 100)); err != nil {
		t.Fatal(n, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, r); err != nil { // ends when the last of them is gone
		t.Errorf("the sandbox outlived its strake: %v", err)
	}
}

func TestLimits(t *testing.T) {
	root := busybox(t)
	leftBefore, _ := filepath.Glob("/sys/fs/cgroup/*/strake-*")
	out, exit := sh(t, Spec{Root: root, Limits: Limits{Memory: 32 << 20, Pids: 20, CPUPeriod: 100000, CPUQuota: 50000}},
		"cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max")
	if !strings.HasPrefix(out, "33554432\n20\n50000") {
		t.Errorf("%q", out)
	}
	if exit.OOM {
		t.Errorf("%+v", exit)
	}
	_, exit = sh(t, Spec{Root: fresh(t, root.Lowers[0]), Limits: Limits{Memory: 16 << 20}}, "exec tail -c 1000000000 /dev/zero")
	if exit.Code != 137 || !exit.OOM {
		t.Errorf("out of memory: %+v", exit)
	}
	out, _ = sh(t, Spec{Root: fresh(t, root.Lowers[0]), Limits: Limits{Pids: 5}}, "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all")
	if strings.Contains(out, "all") {
		t.Errorf("more processes than the limit: %q", out)
	}
	out, _ = sh(t, Spec{Root: fresh(t, root.Lowers[0]), Limits: Limits{CgroupParent: "/strake-test-parent/x"}}, "cat /proc/self/cgroup; ls -d /sys/fs/cgroup")
	if !strings.Contains(out, "/sys/fs/cgroup") {
		t.Errorf("%q", out)
	}
	parents, _ := filepath.Glob("/sys/fs/cgroup/*/strake-test-parent/x")
	if here, _ := filepath.Glob("/sys/fs/cgroup/strake-test-parent/x"); len(parents)+len(here) == 0 {
		t.Errorf("the parent cgroup was not used")
	} else {
		for _, p := range append(parents, here...) {
			if err := errors.Join(os.Remove(p), os.Remove(filepath.Dir(p))); err != nil {
				t.Errorf("not empty afterwards: %v", err)
			}
		}
	}
	left, _ := filepath.Glob("/sys/fs/cgroup/*/strake-*")
	for _, dir := range left {
		// Another strake's has processes, or is gone by now.
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err == nil && len(procs) == 0 && !slices.Contains(leftBefore, dir) {
			t.Errorf("left: %s", dir)
		}
	}
}
