package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

// fails runs strake, which must end with code and say what matches in one line
// on stderr, after a Dockerfile's lines or before the hint to help.
func (s *site) fails(code int, what string, args ...string) {
	s.t.Helper()
	r := s.run(args...)
	if r.code != code {
		s.t.Errorf("strake %v: exit code %d, want %d\n%s%s", args, r.code, code, r.out, r.err)
		return
	}
	text := regexp.MustCompile(`(?s)^\S+:\d+\n-{10,}\n.*\n-{10,}\n`).ReplaceAllString(r.err, "")
	text = regexp.MustCompile(`(?s)\n\nRun '.*$`).ReplaceAllString(text, "\n")
	text = regexp.MustCompile(`(?s)^(Unable to find image |[0-9a-f]{12}: ).*?\nstrake: `).ReplaceAllString(text, "")
	if strings.Count(text, "\n") != 1 || !regexp.MustCompile(what).MatchString(text) {
		s.t.Errorf("strake %v says\n%s\nwant one line with %s", args, r.err, what)
	}
}

// small makes the store's place a file system of that size.
func (s *site) small(size string) {
	s.t.Helper()
	err := os.Mkdir(s.root(), 0o755)
	if err == nil {
		err = syscall.Mount("strake-test", s.root(), "tmpfs", 0, "size="+size)
	}
	if err != nil {
		s.t.Skipf("needs to mount a tmpfs: %v", err)
	}
	s.t.Cleanup(func() { _ = syscall.Unmount(s.root(), syscall.MNT_DETACH) })
}

// images lists what is shown, dangling or not.
func (s *site) images() string {
	s.t.Helper()
	return s.ok("images", "-a", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
}

// A full disk ends pull, build, load and import with one line that says where
// and what to do. Nothing half-done is shown or keeps the space: right after
// it the store works, and what fits goes in.
func TestFullDisk(t *testing.T) {
	maker := newSite(t)
	maker.busybox()
	maker.ok("build", "-q", "-t", "app:1", maker.context("app", 3))
	maker.ok("save", "-o", "app.tar", "app:1")
	maker.ok("save", "-o", "base.tar", "base:1")
	reg, _ := serve(t)
	remote := reg.addr + "/app:1"
	maker.ok("tag", "app:1", remote)
	maker.ok("push", "-q", remote)

	s := siteAt(t, t.TempDir())
	s.small("16m")
	s.ok("load", "-i", maker.path("base.tar"))
	s.ok("run", "--rm", "base:1", "true")
	before := s.images()
	s.write("run/Dockerfile", []byte("FROM base:1\nRUN head -c 50000000 /dev/zero >/big\n"))
	s.write("copy/Dockerfile", []byte("FROM base:1\nCOPY . /\n"))
	s.write("copy/random", mebibytes(1, 20))
	full := "store " + regexp.QuoteMeta(s.root()) + ": no space left on device; free some space"
	for _, c := range []struct {
		what string
		args []string
	}{
		{full, []string{"pull", "-q", remote}},
		{full, []string{"build", "-q", "copy"}},
		// The process in it met the full disk, and said so to the build's log.
		{`process "/bin/sh -c head .*" did not complete successfully: exit code: 1`, []string{"build", "-q", "run"}},
		{full, []string{"load", "-i", maker.path("app.tar")}},
		{full, []string{"import", maker.path("app.tar"), "rootfs:1"}},
		{full, []string{"run", "--pull", "always", "--rm", remote, "true"}},
	} {
		t.Run(c.args[0]+" "+filepath.Base(c.args[len(c.args)-1]), func(t *testing.T) {
			s.t = t
			code := 1
			if c.args[0] == "run" {
				code = 125
			}
			s.fails(code, c.what, c.args...)
			if got := s.images(); got != before {
				t.Errorf("images shows\n%s\nbefore it was\n%s", got, before)
			}
			s.id("base:1")
			s.ok("run", "--rm", "base:1", "true")
			// There is room again for what fits.
			s.write("fits/file", mebibytes(2, 2))
			s.write("fits/Dockerfile", []byte("FROM base:1\nCOPY file /\n"))
			s.ok("build", "-q", "--no-cache", "-t", "fits:1", "fits")
			s.ok("run", "--rm", "fits:1", "cat", "/file")
			s.ok("rmi", "fits:1")
			s.ok("builder", "prune", "-af")
			s.sound(true)
		})
	}
	s.t = t
	s.alone()
	s.swept()
}

// With a read-only root, commands that read work, and those that write say so.
func TestReadOnlyRoot(t *testing.T) {
	s := newSite(t)
	s.small("64m")
	s.busybox()
	s.ok("save", "-o", "base.tar", "base:1")
	s.write("app/Dockerfile", []byte("FROM base:1\nRUN true\n"))
	before, id := s.images(), s.id("base:1")
	if err := syscall.Mount("", s.root(), "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Skipf("needs to remount: %v", err)
	}
	if got := s.images(); got != before {
		t.Errorf("images shows %s, before it was %s", got, before)
	}
	if got := s.id("base:1"); got != id {
		t.Errorf("inspect shows %s, not %s", got, id)
	}
	s.ok("history", "base:1")
	s.ok("ps", "-a")
	if saved, err := os.ReadFile(s.path("base.tar")); err != nil || s.ok("save", "base:1") != string(saved) {
		t.Errorf("save writes another archive than before: %v", err)
	}
	reg, _ := serve(t)
	cannot := regexp.QuoteMeta(s.root()) + ".*read-only file system"
	for _, args := range [][]string{
		{"load", "-i", "base.tar"}, {"import", "busybox.tar", "x:1"}, {"tag", "base:1", "other:1"},
		{"rmi", "base:1"}, {"build", "-q", "app"}, {"build", "-q", "--no-cache", "-t", "x:1", "app"},
	} {
		s.fails(1, cannot, args...)
	}
	s.fails(125, cannot, "run", "--rm", "base:1", "true")
	other := siteAt(t, t.TempDir())
	other.ok("load", "-i", s.path("base.tar"))
	other.ok("tag", "base:1", reg.addr+"/base:1")
	other.ok("push", "-q", reg.addr+"/base:1")
	s.fails(1, cannot, "pull", "-q", reg.addr+"/base:1")
	if err := syscall.Mount("", s.root(), "", syscall.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	s.ok("run", "--rm", "base:1", "true")
	s.ok("build", "-q", "app")
	s.sound(true)
}

// Bad input ends with one line and docker's exit code; the store shows nothing
// of it and works.
func TestBadInput(t *testing.T) {
	s := newSite(t)
	s.busybox()
	s.ok("build", "-q", "-t", "app:1", s.context("app", 3))
	s.ok("save", "-o", "app.tar", "app:1")
	s.ok("rmi", "--now", "app:1")
	s.ok("builder", "prune", "-af")
	before := s.images()
	whole, err := os.ReadFile(s.path("app.tar"))
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{0, 100, 700, 5000, len(whole) / 3, len(whole) / 2, len(whole) - 20000} {
		s.write(fmt.Sprintf("cut%d.tar", i), whole[:n])
	}
	flipped := bytes.Clone(whole)
	flipped[bytes.Index(flipped, mebibytes(3, 1)[:64])+999] ^= 1 // within a layer
	s.write("flipped.tar", flipped)
	s.write("garbage", mebibytes(1, 1))

	im := ocitest.Two()
	big := im.Layers()[0]
	for _, b := range im.Layers() {
		if b.Size > big.Size {
			big = b
		}
	}
	bad := func(name string, faults ...ocitest.Fault) string {
		f := ocitest.NewFlaky(t)
		r, err := ref.Parse(f.Host() + "/" + name + ":1")
		if err != nil {
			t.Fatal(err)
		}
		f.Add(r, im)
		f.Fault(faults...)
		return r.String()
	}
	blob := "/blobs/" + string(big.Digest)
	cut := bad("cut", ocitest.On(http.MethodGet, blob, ocitest.Cut(int(big.Size/2))), ocitest.On(http.MethodGet, blob, ocitest.NoRange()))
	flip := bad("flip", ocitest.On(http.MethodGet, blob, ocitest.Flip()))
	manifest := bad("manifest", ocitest.On(http.MethodGet, "/manifests/", ocitest.Flip()))
	nosuch := ocitest.NewFlaky(t).Host() + "/nosuch:1"

	s.write("ctx/file", []byte("file"))
	dockerfile := func(name, text string) []string {
		return []string{"build", "-q", "-t", "bad:1", "-f", filepath.Dir(s.write("ctx/"+name, []byte(text))) + "/" + name, "ctx"}
	}
	for _, c := range []struct {
		code int
		what string
		args []string
	}{
		{1, "unexpected EOF", []string{"load", "-i", "cut0.tar"}},
		{1, "unexpected EOF", []string{"load", "-i", "cut1.tar"}},
		{1, ".", []string{"load", "-i", "cut2.tar"}},
		{1, ".", []string{"load", "-i", "cut3.tar"}},
		{1, "unexpected EOF", []string{"load", "-i", "cut4.tar"}},
		{1, "unexpected EOF", []string{"load", "-i", "cut5.tar"}},
		{1, "unexpected EOF|not found|no such file", []string{"load", "-i", "cut6.tar"}},
		{1, "sha256:", []string{"load", "-i", "flipped.tar"}},
		{1, "unexpected EOF", []string{"load", "-i", "garbage"}},
		{1, "nosuch.tar: no such file", []string{"load", "-i", "nosuch.tar"}},
		{1, "Error processing tar file", []string{"import", "garbage", "bad:1"}},
		{1, "Error processing tar file", []string{"import", "cut5.tar", "bad:1"}},
		{1, "nosuch.tar: no such file", []string{"import", "nosuch.tar", "bad:1"}},
		{1, string(big.Digest) + "|EOF", []string{"pull", "-q", cut}},
		{1, string(big.Digest), []string{"pull", "-q", flip}},
		{1, "sha256:", []string{"pull", "-q", manifest}},
		{1, "not found", []string{"pull", "-q", nosuch}},
		{1, `dockerfile parse error on line 2: unknown instruction: COPYY \(did you mean COPY\?\)`, dockerfile("D1", "FROM base:1\nCOPYY a b\n")},
		{1, "dockerfile parse error", dockerfile("D2", "FROM base:1\nRUN [\"a\n\"\nENV\n")},
		{1, `"/nosuch": not found`, dockerfile("D3", "FROM base:1\nRUN true\nCOPY nosuch /\n")},
		{1, nosuch + ": .*not found", dockerfile("D4", "FROM "+nosuch+"\nRUN true\n")},
		{1, "sha256:", dockerfile("D5", "FROM "+flip+"\nRUN true\n")},
		{1, "exit code: 3", dockerfile("D6", "FROM base:1\nRUN exit 3\n")},
		{1, "empty", dockerfile("D7", "")},
		{125, "not found", []string{"run", "--rm", nosuch, "true"}},
		{125, "sha256:", []string{"run", "--rm", flip, "true"}},
		{127, "nosuch", []string{"run", "--rm", "base:1", "nosuch"}},
	} {
		t.Run(c.args[0]+" "+filepath.Base(c.args[len(c.args)-1])+" "+filepath.Base(c.args[max(0, len(c.args)-2)]), func(t *testing.T) {
			s.t = t
			s.fails(c.code, c.what, c.args...)
			if got := s.images(); got != before {
				t.Errorf("images shows\n%s\nbefore it was\n%s", got, before)
			}
		})
	}
	s.t = t
	r := s.run(dockerfile("D1", "FROM base:1\nCOPYY a b\n")...)
	if !strings.Contains(r.err, "   2 | >>> COPYY a b\n") {
		t.Errorf("a syntax error does not show its line:\n%s", r.err)
	}
	s.alone()
	s.sound(true)
	s.swept()
	s.ok("load", "-i", "app.tar")
	s.appRuns("app:1")
}

// What was removed and waits gives way to what is written: on a disk that it
// fills, at the latest the second try finds room.
func TestFullDiskOfRemoved(t *testing.T) {
	s := newSite(t)
	s.small("40m")
	archive := s.path("one.tar")
	again := 0
	for i := range 8 {
		if err := os.WriteFile(archive, tarOf(t, mebibytes(uint64(i), 9)), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := s.run("import", archive, "x:1"); got.code != 0 {
			if again++; !strings.Contains(got.err, "no space left on device") {
				t.Fatalf("%+v", got)
			}
			s.ok("import", archive, "x:1")
		}
		s.ok("rmi", "x:1")
	}
	t.Logf("%d of 8 were tried twice", again)
	s.sound(true)
}

func tarOf(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: "file", Size: int64(len(data)), Mode: 0o644, Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write(data)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
