package sandbox

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/rootfs"
)

// box returns a root with busybox in it, and a fresh upper directory.
func busybox(t testing.TB) rootfs.Root {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: namespaces and overlay mounts")
	}
	bin, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a static busybox (Debian: busybox-static)")
	}
	dir := t.TempDir()
	lower := filepath.Join(dir, "lower")
	for _, d := range []string{"bin", "etc", "home/joe", "tmp"} {
		if err := os.MkdirAll(filepath.Join(lower, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, content string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(lower, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/busybox", string(data), 0o755)
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\njoe:x:1000:1000::/home/joe:/bin/sh\n", 0o644)
	write("etc/group", "root:x:0:root\nwheel:x:10:root,joe\njoe:x:1000:\n", 0o644)
	applets, err := exec.Command(bin, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			os.Symlink("busybox", filepath.Join(lower, "bin", a))
		}
	}
	return fresh(t, lower)
}

func fresh(t testing.TB, lowers ...string) rootfs.Root {
	dir := t.TempDir()
	r := rootfs.Root{Lowers: lowers, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	for _, d := range []string{r.Upper, r.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

const testPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// sh runs a shell script in a sandbox and returns what it wrote.
func sh(t testing.TB, spec Spec, script string) (string, Exit) {
	t.Helper()
	var out bytes.Buffer
	spec.Stdout, spec.Stderr = &out, &out
	spec.Args = []string{"sh", "-c", script}
	if spec.Env == nil {
		spec.Env = []string{testPath}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p, err := Start(ctx, &spec)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	exit, err := p.Wait()
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	return out.String(), exit
}

func TestRun(t *testing.T) {
	root := busybox(t)
	out, exit := sh(t, Spec{Root: root, Hostname: "boat"}, `echo pid $$; hostname; pwd; id; echo $HOME; cat /etc/hostname; mount; ls -la / /dev; cat /proc/self/status | grep -E 'Cap|Sec'; exit 7`)
	t.Log(out)
	if exit.Code != 7 {
		t.Errorf("exit %+v", exit)
	}
	filepath.Walk(root.Upper, func(p string, _ os.FileInfo, _ error) error {
		if p != root.Upper {
			t.Errorf("left in the upper directory: %s", p)
		}
		return nil
	})
}

// The old root must be gone: /.. is the root, and no mount of the machine is
// left in the table.
func TestOldRootIsGone(t *testing.T) {
	out, _ := sh(t, Spec{Root: busybox(t)}, `stat -c %i / /..; cut -d' ' -f5 /proc/self/mountinfo`)
	lines := strings.Fields(out)
	if lines[0] != lines[1] {
		t.Errorf("/.. is not the root")
	}
	seen := map[string]bool{}
	for _, at := range lines[2:] {
		ok := at == "/" && !seen[at]
		for _, prefix := range []string{"/proc", "/sys", "/dev", "/etc/"} {
			ok = ok || strings.HasPrefix(at, prefix) && !seen[at]
		}
		if !ok {
			t.Errorf("a mount of the machine's: %s", at)
		}
		seen[at] = true
	}
}

func TestStartErrors(t *testing.T) {
	root := busybox(t)
	for _, c := range []struct {
		spec Spec
		code int
		want string
	}{
		{Spec{Args: []string{"nosuchcmd"}}, 127, `exec: "nosuchcmd": executable file not found in $PATH`},
		{Spec{Args: []string{"/etc"}}, 126, `exec: "/etc": is a directory: permission denied`},
		{Spec{Args: []string{"/etc/passwd"}}, 126, `exec: "/etc/passwd": permission denied`},
		{Spec{Args: []string{"true"}, User: "nosuchuser"}, 125, `unable to find user nosuchuser: no matching entries in passwd file`},
	} {
		c.spec.Root = root
		c.spec.Env = []string{testPath}
		_, err := Start(t.Context(), &c.spec)
		var failed *StartError
		if !errors.As(err, &failed) || failed.Code != c.code || failed.Error() != c.want {
			t.Errorf("%q: %v", c.spec.Args, err)
		}
	}
}

// A start that fails, wherever it does, keeps no descriptor.
func TestFailedStartHoldsNothing(t *testing.T) {
	root := busybox(t)
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	sh(t, Spec{Root: root}, "true") // what is opened once is open
	lower := rootfs.Root{Lowers: root.Lowers}
	for what, mounts := range map[string][]Mount{
		"a source that is missing": {{Type: "bind", Source: "/etc", Destination: "/a"}, {Type: "bind", Source: "/nowhere", Destination: "/b"}},
		"a type that is unknown":   {{Type: "overlay", Overlay: &lower, Destination: "/a"}, {Type: "other", Destination: "/b"}},
		"a destination below a file": {{Type: "file", Content: []byte("x"), Destination: "/a"}, {Type: "tmpfs", Destination: "/b"},
			{Type: "bind", Source: "/etc", Destination: "/etc/passwd/c"}},
	} {
		before := open()
		for _, hosts := range [][]string{nil, {"bad"}} {
			if _, err := Start(t.Context(), &Spec{Root: root, Args: []string{"true"}, Env: []string{testPath}, Mounts: mounts, ExtraHosts: hosts}); err == nil {
				t.Errorf("%s: it started", what)
			}
		}
		if now := open(); now != before {
			t.Errorf("%s: %d descriptors, before %d", what, now, before)
		}
	}
}

// Where the kernel cannot mark all descriptors at once, each is marked.
func TestCloseEachOnExec(t *testing.T) {
	fd, err := unix.Open("/", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := closeEachOnExec(); err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags of an open directory: %#x, %v", flags, err)
	}
	if flags, err := unix.FcntlInt(2, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		t.Errorf("flags of stderr: %#x, %v", flags, err)
	}
}

func BenchmarkTrue(b *testing.B) { benchmarkTrue(b) }

// A big process must cost no more: a fork that copied its page tables would
// take some 10 ms for each GB.
func BenchmarkTrueInBigProcess(b *testing.B) {
	big := make([]byte, 2<<30)
	for i := 0; i < len(big); i += 4096 {
		big[i] = 1
	}
	benchmarkTrue(b)
	runtime.KeepAlive(big)
}

func benchmarkTrue(b *testing.B) {
	root := busybox(b)
	for b.Loop() {
		p, err := Start(b.Context(), &Spec{Root: root, Args: []string{"true"}, Env: []string{testPath}})
		if err != nil {
			b.Fatal(err)
		}
		if exit, err := p.Wait(); err != nil || exit.Code != 0 {
			b.Fatal(exit, err)
		}
	}
}
