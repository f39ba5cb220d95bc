package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/content/store"
)

// site is a place where strake works: a store and a home of its own below one
// directory, whose path marks every process that belongs to it.
type site struct {
	t   *testing.T
	dir string
	env []string
}

// newSite makes one, for tests that run containers.
func newSite(t *testing.T) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers run and file systems are mounted")
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("needs busybox (Debian's busybox-static)")
	}
	return siteAt(t, t.TempDir())
}

func siteAt(t *testing.T, dir string) *site {
	s := &site{t: t, dir: dir}
	s.env = append(os.Environ(), "STRAKE_ROOT="+s.root(), "DOCKER_CONFIG="+filepath.Join(dir, "config"), "HOME="+dir,
		"TZ=UTC", "DOCKER_HOST=", "DOCKER_DEFAULT_PLATFORM=", "BUILDKIT_PROGRESS=", "SOURCE_DATE_EPOCH=")
	return s
}

func (s *site) root() string { return filepath.Join(s.dir, "store") }

// path is the file of that name at the site.
func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// cmd is strake in a process group of its own, at the site's directory.
func (s *site) cmd(args ...string) *exec.Cmd {
	cmd := exec.Command("strake", args...) // TestMain put this test binary there
	cmd.Env, cmd.Dir = s.env, s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// result is how a process ended. A killed one's code is -1.
type result struct {
	code     int
	out, err string
}

func (s *site) finish(cmd *exec.Cmd, out, errs *bytes.Buffer) result {
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Errorf("%v: %v", cmd.Args, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// run runs strake to its end.
func (s *site) run(args ...string) result {
	s.t.Helper()
	return s.killed(nil, args...)
}

// killed runs strake and kills its process group when kill says so.
func (s *site) killed(kill <-chan time.Time, args ...string) result {
	s.t.Helper()
	var out, errs bytes.Buffer
	cmd := s.cmd(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Minute // somebody who kept our pipe would hang the test
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	if kill != nil {
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			select {
			case <-kill:
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			case <-ended:
			}
		}()
	}
	return s.finish(cmd, &out, &errs)
}

// ok runs strake, which must succeed, and returns its stdout.
func (s *site) ok(args ...string) string {
	s.t.Helper()
	r := s.run(args...)
	if r.code != 0 {
		s.t.Fatalf("strake %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return strings.TrimSuffix(r.out, "\n") // an archive ends with NUL
}

// id is the IDs of images that are there, a line each.
func (s *site) id(names ...string) string {
	s.t.Helper()
	return s.ok(append([]string{"inspect", "-f", "{{.Id}}"}, names...)...)
}

// write makes a file of the site.
func (s *site) write(name string, data []byte) string {
	s.t.Helper()
	path := s.path(name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, data, 0o644)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return path
}

// busybox imports the image base:1.
func (s *site) busybox() {
	s.t.Helper()
	file := s.path("busybox.tar")
	if err := busyboxTar(file); err != nil {
		s.t.Fatal(err)
	}
	s.ok("import", "-c", `CMD ["sh"]`, file, "base:1")
}

// mebibytes makes n MiB that do not compress, the same for each seed.
func mebibytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0] = byte(seed)
	key[1] = byte(seed >> 8)
	b := make([]byte, n<<20)
	rand.NewChaCha8(key).Read(b)
	return b
}

// context makes a build's context of some 20 MB: one file that does not
// compress, hundreds that do, and a Dockerfile that copies them and writes
// beside them. What a RUN writes is the same each time, but for its times.
func (s *site) context(name string, seed uint64) string {
	s.t.Helper()
	s.write(name+"/random", mebibytes(seed, 10))
	for i := range 200 {
		var text bytes.Buffer
		for n := range 4000 {
			fmt.Fprintf(&text, "line %d of %d\n", i*n, seed)
		}
		s.write(fmt.Sprintf("%s/text/%d/%d", name, i%7, i), text.Bytes())
	}
	s.write(name+"/Dockerfile", []byte(`FROM base:1
ENV SITE=`+s.dir+`
COPY random /data/
RUN for i in 1 2 3 4; do head -c 1000000 /data/random > /r$i; done; sha256sum /r? > /sums
COPY text /text
RUN sha256sum -c /sums && rm /r1 && find /text -type f | wc -l > /count
`))
	return s.path(name)
}

// appRuns looks at what context's image has in it.
func (s *site) appRuns(name string) {
	s.t.Helper()
	if got := s.ok("run", "--rm", name, "sh", "-c", "cat /count; ls /r1 /r4 2>&1; tail -n 1 /text/3/10; wc -c < /data/random; rm -r /text"); !strings.HasPrefix(got, "200\n") ||
		!strings.HasSuffix(got, fmt.Sprint(10<<20)) || !strings.Contains(got, "\n/r4\n") || !strings.Contains(got, "r1: No such") {
		s.t.Errorf("%s is not as it was built:\n%s", name, got)
	}
}

// sound checks the store and, with deep, every byte in it.
func (s *site) sound(deep bool) {
	s.t.Helper()
	st, err := store.Open(s.root(), store.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	defer st.Close()
	problems, err := st.Examine(s.t.Context(), deep, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range problems {
		s.t.Errorf("store: %v", p)
	}
}

// swept collects and tells what stays nevertheless.
func (s *site) swept() {
	s.t.Helper()
	st, err := store.Open(s.root(), store.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	defer st.Close()
	if _, err := st.Collect(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.tidy()
}

// tidy tells what dead processes left.
func (s *site) tidy() {
	s.t.Helper()
	for _, dir := range []string{"leases", "work", "partial", "containers"} {
		entries, err := os.ReadDir(filepath.Join(s.root(), dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.t.Fatal(err)
		}
		for _, e := range entries {
			// Unfinished downloads stay, to be resumed.
			if dir == "partial" && !strings.HasPrefix(e.Name(), "put-") || dir == "containers" && e.Name() == "lock" {
				continue
			}
			s.t.Errorf("%s/%s is left", dir, e.Name())
		}
	}
}

// alone waits until no process and no mount of the site is left. The kernel
// may still be ending what was killed; a minute is for ever.
func (s *site) alone() {
	s.t.Helper()
	var left []string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if left = s.present(); len(left) == 0 {
			return
		}
	}
	s.t.Errorf("left behind: %v", left)
}

func (s *site) present() (found []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		pid, _ := strconv.Atoi(filepath.Base(p))
		if pid == os.Getpid() {
			p = "/proc/self"
		} else if env, err := os.ReadFile(p + "/environ"); err == nil && bytes.Contains(env, []byte(s.dir+"\x00")) {
			cmdline, _ := os.ReadFile(p + "/cmdline")
			found = append(found, fmt.Sprintf("process %d %q", pid, cmdline))
		}
		if mounts, err := os.ReadFile(p + "/mountinfo"); err == nil && bytes.Contains(mounts, []byte(s.root()+"/")) {
			found = append(found, fmt.Sprintf("mount in process %d", pid))
		}
	}
	return found
}

// server is a registry that can be killed and started again.
type server struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string
	make func(addr string) *exec.Cmd
}

// serve starts strake's registry over a store of its own.
func serve(t *testing.T) (*server, *site) {
	s := siteAt(t, t.TempDir())
	r := &server{t: t, addr: "127.0.0.1:0", make: func(addr string) *exec.Cmd { return s.cmd("registry", "serve", "--addr", addr) }}
	r.start()
	return r, s
}

// serveDebian starts Debian's docker-registry.
func serveDebian(t *testing.T) *server {
	t.Helper()
	path, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs docker-registry (Debian's package of that name)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", dir, l.Addr()), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &server{t: t, addr: l.Addr().String(), make: func(string) *exec.Cmd { return exec.Command(path, "serve", config) }}
	r.start()
	return r
}

func (r *server) start() {
	r.t.Helper()
	cmd := r.make(r.addr)
	if r.cmd == nil {
		r.t.Cleanup(r.kill)
	}
	strake := filepath.Base(cmd.Path) == "strake"
	var out io.Reader
	if strake {
		var err error
		if out, err = cmd.StdoutPipe(); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.cmd = cmd
	if strake {
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			r.t.Fatalf("registry: %v", err)
		}
		r.addr = strings.TrimPrefix(strings.TrimSpace(line), "Listening on ")
	}
	for range 3000 {
		if resp, err := http.Get("http://" + r.addr + "/v2/"); err == nil {
			resp.Body.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Fatalf("%v does not answer", cmd.Args)
}

// kill kills it, if it runs.
func (r *server) kill() {
	if r.cmd != nil && r.cmd.ProcessState == nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	}
}
