package frontend_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/archive"
	"github.com/strake-project/strake/internal/oci/ref"
)

// tarOf is a tar of headers; a regular file's content is its Linkname.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body, h.Linkname = h.Linkname, ""
			h.Size = int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func textFile(name, body string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: body}
}

func zipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

// upload builds the context that a tar on stdin is.
func (l *lab) upload(tarball []byte, filename string) (*build.Assembly, error) {
	l.opt.Uploads = map[string]io.Reader{"in": bytes.NewReader(tarball)}
	return l.run(map[string]string{"filename": filename, "context": build.UploadURL("in")})
}

func TestTarContext(t *testing.T) {
	l := newLab(t)
	dockerfile := "FROM scratch\nCOPY a dir /\n"
	good := tarOf(t, textFile("./Dockerfile", dockerfile), textFile("./a", "A"), textFile("other/Df", "FROM scratch\nCOPY a /only\n"), textFile("dir/.dockerignore", "x"), textFile("dir/b", "B"))
	noise := make([]byte, 100_000) // which gzip makes no shorter
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	long := tarOf(t, textFile("Dockerfile", dockerfile), textFile("noise", string(noise)))
	for _, c := range []struct {
		what, file string
		tarball    []byte
		want       string // an error, if it is to fail
	}{
		{"a plain tar", "Dockerfile", good, ""},
		{"a gzipped tar", "Dockerfile", zipped(good), ""},
		{"-f names a path inside", "other/Df", good, ""},
		{"-f names a path that is not inside", "/none", good, "failed to read dockerfile: open /none: no such file or directory"},
		{"a name that leads out stays below the context", "Dockerfile", tarOf(t, textFile("Dockerfile", dockerfile), textFile("../../a", "A"), textFile("dir/b", "B")), ""},
		{"an absolute name is below the context", "Dockerfile", tarOf(t, textFile("Dockerfile", dockerfile), textFile("/a", "A"), textFile("dir/b", "B")), ""},
		{"a symlink that leads out leads nowhere", "Dockerfile", tarOf(t, textFile("Dockerfile", dockerfile),
			tar.Header{Typeflag: tar.TypeSymlink, Name: "up", Linkname: "../../../../../../tmp"}, textFile("up/strake-escaped", "A"), textFile("a", ""), textFile("dir/b", "")), "open /up: no such file or directory"},
		{"a hard link to the machine's files", "Dockerfile", tarOf(t, textFile("Dockerfile", dockerfile),
			tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "/etc/passwd"}), "no such file or directory"},
		{"device nodes that nothing copies", "Dockerfile", tarOf(t, textFile("Dockerfile", dockerfile), textFile("a", ""), textFile("dir/b", ""),
			tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8}, tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}), ""},
		{"a file that looks like a whiteout and nothing copies", "Dockerfile", tarOf(t, textFile("Dockerfile", dockerfile), textFile("a", ""), textFile("dir/b", ""), textFile(".wh.a", "")), ""},
		{"a file that looks like a whiteout and is copied", "Dockerfile", tarOf(t, textFile("Dockerfile", dockerfile), textFile("a", ""), textFile("dir/.wh.b", "")), ""},
		{"a tar that breaks off", "Dockerfile", good[:len(good)-1700], "unexpected EOF"},
		{"a gzip that breaks off in the archive", "Dockerfile", zipped(long)[:len(zipped(long))/2], "EOF"},
		{"a gzip that breaks off behind the archive's end", "Dockerfile", zipped(good)[:len(zipped(good))-9], ""}, // as BuildKit 0.33
	} {
		out, err := l.upload(c.tarball, c.file)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.what, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, %v; want an error with %q", c.what, out, err, c.want)
		}
	}
	if _, err := os.Lstat("/tmp/strake-escaped"); err == nil {
		t.Error("a file came out of the context")
	}
	l.opt.Uploads = map[string]io.Reader{"in": strings.NewReader(string(good))}
	if _, err := l.upload(good, "Dockerfile"); err != nil {
		t.Error(err)
	}
	if len(l.ran) > 0 {
		t.Errorf("the same tar again ran %v", l.ran)
	}
}

func TestURLContexts(t *testing.T) {
	l := newLab(t)
	var sent atomic.Int64
	tarball := zipped(tarOf(t, textFile("Dockerfile", "FROM busybox\nCOPY a /a\nRUN cat /a\n"), textFile("a", "from a tar\n")))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("ETag", `"1"`)
		sent.Add(1)
		switch r.URL.Path {
		case "/ctx.tgz":
			w.Write(tarball)
		case "/Dockerfile":
			io.WriteString(w, "FROM busybox\nRUN echo a Dockerfile alone\n")
		case "/f":
			io.WriteString(w, "file\n")
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	for _, c := range []struct {
		what string
		opts map[string]string
		want string
	}{
		{"a tar", map[string]string{"context": srv.URL + "/ctx.tgz"}, "from a tar\n"},
		{"a Dockerfile", map[string]string{"context": srv.URL + "/Dockerfile"}, "a Dockerfile alone\n"},
	} {
		if _, err := l.run(c.opts); err != nil || l.logs.String() != c.want {
			t.Errorf("%s: %v, %q", c.what, err, l.logs.String())
		}
		if _, err := l.run(c.opts); err != nil || len(l.ran) > 0 {
			t.Errorf("%s, a second time: %v, ran %v", c.what, err, l.ran)
		}
	}
	sum := digest.FromString("file\n")
	df := "FROM busybox\nADD --checksum=" + string(sum) + " --chmod=751 --chown=1000:7 " + srv.URL + "/f /d/\nRUN stat -c '%a %u:%g %Y' /d/f && cat /d/f\n"
	if _, err := l.try(df); err != nil || l.logs.String() != "751 1000:7 0\nfile\n" {
		t.Errorf("ADD of a URL: %v, %q", err, l.logs.String())
	}
	if n := sent.Load(); n != 3 {
		t.Errorf("%d files were sent, want 3", n)
	}
	wrong := digest.FromString("x")
	if _, err := l.try("FROM scratch\nADD --checksum=" + string(wrong) + " " + srv.URL + "/f /\n"); err == nil || !strings.Contains(err.Error(), "digest mismatch "+string(sum)+": "+string(wrong)) {
		t.Errorf("a wrong checksum: %v", err)
	}
	if _, err := l.try("FROM busybox\nCOPY --from=n / /n\nRUN cat /n/context\n", "context:n="+srv.URL+"/f"); err != nil || l.logs.String() != "file\n" {
		t.Errorf("a named context: %v, %q", err, l.logs.String())
	}
	if _, err := l.try("FROM scratch\nADD http://user:hunter2@127.0.0.1:1/f /\n"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a password in a URL: %v", err)
	}
}

func TestGitSources(t *testing.T) {
	l := newLab(t)
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	dir := t.TempDir()
	srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer srv.Close()
	git := func(script string) string {
		t.Helper()
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
			"GIT_AUTHOR_DATE=1000000000 +0000", "GIT_COMMITTER_DATE=1000000000 +0000", "GIT_CONFIG_GLOBAL=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	const publish = "; git add .; git commit -qm x; git clone -q --bare . ../r.git 2>/dev/null || git push -q ../r.git main; cd ../r.git; git update-server-info; git rev-parse main"
	one := git("git init -q -b main w; cd w; mkdir sub; printf 'FROM busybox\nCOPY . /c\nRUN cat /c/f\n' | tee Dockerfile >sub/Dockerfile; echo one >f; echo sub >sub/f" + publish)
	url := srv.URL + "/r.git"

	for ctx, want := range map[string]string{url: "one\n", url + "#main:sub": "sub\n"} {
		if _, err := l.run(map[string]string{"context": ctx}); err != nil || !strings.HasSuffix(l.logs.String(), want) {
			t.Errorf("%s: %v, %q", ctx, err, l.logs.String())
		}
	}
	if _, err := l.try("FROM busybox\nADD "+url+" /a\nADD --keep-git-dir=true "+url+"#main /b\nADD --checksum="+one+" "+url+"#main:sub /s\nCOPY --from=n f /n\nRUN ls -A /a /b /s; cat /n; stat -c '%u:%g %a' /a/f\n", "context:n="+url+"#main:sub"); err != nil ||
		!strings.HasSuffix(l.logs.String(), "/a:\nDockerfile\nf\nsub\n\n/b:\n.git\nDockerfile\nf\nsub\n\n/s:\nDockerfile\nf\nsub\n0:0 644\n") {
		t.Errorf("ADD: %v\n%s", err, l.logs.String())
	}
	// A branch that moved is noticed, a commit needs nobody.
	git("cd w; echo two >f" + publish)
	if _, err := l.run(map[string]string{"context": url}); err != nil || !strings.HasSuffix(l.logs.String(), "two\n") {
		t.Errorf("a moved branch: %v, %q", err, l.logs.String())
	}
	if _, err := l.try("FROM scratch\nADD --checksum=" + one + " " + url + "#main /\n"); err == nil || !strings.Contains(err.Error(), "expected checksum to match "+one) {
		t.Errorf("a pinned branch that moved: %v", err)
	}
	srv.Close()
	if _, err := l.run(map[string]string{"context": url + "#" + one}); err != nil || len(l.ran) > 0 {
		t.Errorf("a known commit without its server: %v, ran %v", err, l.ran)
	}
	if _, err := l.run(map[string]string{"context": url + "#--upload-pack=x"}); err == nil || !strings.Contains(err.Error(), "invalid git ref") {
		t.Errorf("an option as a ref: %v", err)
	}
}

func TestOCILayoutContext(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	busybox, err := ref.ParseTag("busybox")
	if err != nil {
		t.Fatal(err)
	}
	// The layout is the archive that save writes, unpacked.
	var buf bytes.Buffer
	w := archive.NewWriter(&buf)
	d, err := content.Copy(ctx, w, busybox, l.store, busybox, content.CopyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("tar", "x", "-C", dir)
	cmd.Stdin = &buf
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	other := newLab(t) // a store that has another busybox only
	a, err := archive.Open(ctx, dir, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	other.opt.Layouts = map[string]content.Source{"store": a}
	for _, df := range []string{"FROM base\nRUN echo $PATH\n", "FROM busybox\nCOPY --from=base /bin/busybox /x\nRUN echo /bin\n"} {
		if _, err := other.try(df, "context:base=oci-layout://store:latest@"+string(d.Digest)); err != nil || other.logs.String() != "/bin\n" {
			t.Errorf("%v, %q", err, other.logs.String())
		}
	}
	images, err := other.store.Images(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, im := range images {
		if len(im.Names) == 0 && im.Manifest.Digest == d.Digest {
			t.Errorf("the layout's image is listed as dangling: %s", im.ID)
		}
	}
	for opt, want := range map[string]string{
		"context:base=oci-layout://none:latest@" + string(d.Digest):                 `no OCI layout named "none"`,
		"context:base=oci-layout://store:latest@" + string(digest.FromString("no")): "not in the archive",
	} {
		if _, err := other.try("FROM base\n", opt); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", opt, err, want)
		}
	}
	blob := filepath.Join(dir, "blobs/sha256", d.Digest.Encoded())
	if err := os.WriteFile(blob, []byte(`{"schemaVersion":2}`), 0o644); err != nil {
		t.Fatal(err)
	}
	fresh := newLab(t)
	damaged, err := archive.Open(ctx, dir, t.TempDir())
	if err != nil {
		return // refused even earlier
	}
	defer damaged.Close()
	fresh.opt.Layouts = map[string]content.Source{"store": damaged}
	if _, err := fresh.try("FROM base\n", "context:base=oci-layout://store:latest@"+string(d.Digest)); err == nil {
		t.Error("a damaged manifest was used")
	}
}
