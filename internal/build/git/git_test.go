package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// lab is a directory of repositories behind git's own http server.
type lab struct {
	testing.TB
	dir, url string
	// auth is what the server wants as Authorization, if set.
	auth atomic.Value
	// refuse makes a test fail for a request that should not be, if set.
	refuse func(*http.Request) bool
	moved  map[string]string // where repositories went, by their paths
	git    *Git
}

func newLab(t testing.TB) *lab {
	t.Helper()
	bin, err := exec.LookPath("git")
	if err != nil {
		t.Skip("needs git")
	}
	out, err := exec.Command(bin, "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		t.Skip("needs git-http-backend")
	}
	l := &lab{TB: t, dir: t.TempDir()}
	h := &cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + l.dir, "GIT_HTTP_EXPORT_ALL=1"}, Stderr: io.Discard}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.refuse != nil && l.refuse(r) {
			t.Errorf("%s %s was sent %q", r.Method, r.URL.Path, r.Header.Get("Authorization"))
		}
		if auth := l.auth.Load(); auth != nil && r.Header.Get("Authorization") != auth {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		for old, to := range l.moved {
			if rest, ok := strings.CutPrefix(r.URL.Path, old); ok {
				http.Redirect(w, r, to+rest+"?"+r.URL.RawQuery, http.StatusMovedPermanently)
				return
			}
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	l.url = srv.URL
	scratch := t.TempDir()
	l.git = &Git{Scratch: func(context.Context) (string, error) { return os.MkdirTemp(scratch, "") }}
	return l
}

// sh runs a script in a repository of l's, which it makes if there is none,
// with fixed times and names.
func (l *lab) sh(repo, script string) string {
	l.Helper()
	dir := filepath.Join(l.dir, repo)
	if _, err := os.Stat(dir); err != nil {
		script = "git init -q -b main .\n" + script
		if err := os.MkdirAll(dir, 0o755); err != nil {
			l.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME=/dev/null", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		"GIT_AUTHOR_DATE=1000000000 +0000", "GIT_COMMITTER_DATE=1000000000 +0000")
	out, err := cmd.CombinedOutput()
	if err != nil {
		l.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (l *lab) source(repo string) *Source { return &Source{Remote: l.url + "/" + repo + "/.git"} }

// checkout returns what is in the tree: type, mode and path of each.
func (l *lab) checkout(s *Source) (string, string, error) {
	ctx := context.Background()
	c, err := l.git.Resolve(ctx, s)
	if err != nil {
		return "", "", err
	}
	dir, err := l.git.Checkout(ctx, s, c)
	if err != nil {
		return "", "", err
	}
	var names []string
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if rel, _ := filepath.Rel(dir, p); rel != "." && !strings.HasPrefix(rel, ".git/") {
			names = append(names, fmt.Sprintf("%s:%v", rel, st.Mode()))
		}
		return nil
	})
	return strings.Join(names, " "), dir, err
}

const base = `
umask 077
mkdir -p sub/deep; echo a >a; echo x >x; chmod +x x; echo s >sub/deep/s; ln -s sub link; ln -s /etc out
git add . ; git commit -qm one; git tag light; git tag -m ann ann
git checkout -q -b dev; echo d >d; git add .; git commit -qm dev
git checkout -q main
`

func TestCheckout(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077)) // the user's umask makes no difference
	l := newLab(t)
	l.sh("r", base)
	main, dev, tag := l.sh("r", "git rev-parse main"), l.sh("r", "git rev-parse dev"), l.sh("r", "git rev-parse ann")
	lost := l.sh("r", "git checkout -q --detach; echo l >l; git add .; git commit -qm lost; git rev-parse HEAD; git checkout -q main")
	const (
		whole = "a:-rw-r--r-- link:Lrwxrwxrwx out:Lrwxrwxrwx sub:drwxr-xr-x sub/deep:drwxr-xr-x sub/deep/s:-rw-r--r-- x:-rwxr-xr-x"
		onDev = "a:-rw-r--r-- d:-rw-r--r-- link:Lrwxrwxrwx out:Lrwxrwxrwx sub:drwxr-xr-x sub/deep:drwxr-xr-x sub/deep/s:-rw-r--r-- x:-rwxr-xr-x"
	)
	for _, c := range []struct {
		what   string
		change func(*Source)
		want   string
	}{
		{"the default branch", func(*Source) {}, whole},
		{"a branch", func(s *Source) { s.Ref = "dev" }, onDev},
		{"a whole ref", func(s *Source) { s.Ref = "refs/heads/dev" }, onDev},
		{"a lightweight tag", func(s *Source) { s.Ref = "light" }, whole},
		{"an annotated tag", func(s *Source) { s.Ref = "ann" }, whole},
		{"a commit", func(s *Source) { s.Ref = dev }, onDev},
		{"a tag by its hash", func(s *Source) { s.Ref = tag }, whole},
		{"a tag's commit as its checksum", func(s *Source) { s.Ref, s.Checksum = "ann", main[:12] }, whole},
		{"a branch whose place is not asked for", func(s *Source) { s.Ref, s.Checksum, s.FetchByCommit = "whatever", dev, true }, onDev},
		{"a directory", func(s *Source) { s.Subdir = "sub" }, "deep:drwxr-xr-x deep/s:-rw-r--r--"},
		{"a directory below", func(s *Source) { s.Subdir = "/sub/../sub/deep/" }, "s:-rw-r--r--"},
		{"with .git", func(s *Source) { s.KeepGitDir = true }, ".git:drwxr-xr-x " + whole},
		{"a tag with .git", func(s *Source) { s.KeepGitDir, s.Ref = true, "ann" }, ".git:drwxr-xr-x " + whole},
		{"a commit with .git", func(s *Source) { s.KeepGitDir, s.Ref = true, dev }, ".git:drwxr-xr-x " + onDev},
		{"a whole ref with .git", func(s *Source) { s.KeepGitDir, s.Ref = true, "refs/heads/dev" }, ".git:drwxr-xr-x " + onDev},
		{"a directory has no .git", func(s *Source) { s.KeepGitDir, s.Subdir = true, "sub/deep" }, "s:-rw-r--r--"},
	} {
		s := l.source("r")
		c.change(s)
		got, dir, err := l.checkout(s)
		if err != nil || got != c.want {
			t.Errorf("%s: %s, %v\nwant %s", c.what, got, err, c.want)
		}
		if !s.KeepGitDir || s.Subdir != "" || err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, ".git/config"))
		if err != nil || !strings.Contains(string(b), "url = "+s.Remote) || strings.Contains(string(b), "file://") {
			t.Errorf("%s: .git/config does not name its origin: %v\n%s", c.what, err, b)
		}
		if out, err := exec.Command("git", "-c", "safe.directory=*", "-C", dir, "status", "--porcelain").CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: the repository is not clean: %v %s", c.what, err, out)
		}
	}
	s := l.source("r")
	s.Ref = lost
	if got, _, err := l.checkout(s); err != nil || !strings.Contains(got, "l:-rw") {
		t.Errorf("a commit that nothing points at: %s, %v", got, err)
	}
	s = l.source("r")
	s.CommitTimes = true
	_, dir, err := l.checkout(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{".", "a", "sub", "link"} {
		if st, err := os.Lstat(filepath.Join(dir, f)); err != nil || !st.ModTime().Equal(time.Unix(1e9, 0)) {
			t.Errorf("%s has not the commit's time: %v %v", f, st.ModTime(), err)
		}
	}
	commit, annotated, err := l.git.Objects(context.Background(), l.source("r"), Commit{Ref: "refs/tags/ann", ID: tag})
	if err != nil || !strings.Contains(string(commit), "\n\none\n") || !strings.Contains(string(annotated), "\n\nann\n") {
		t.Errorf("objects: %q, %q, %v", commit, annotated, err)
	}
}

// A server that only has files can neither leave history out nor give one
// commit alone.
func TestDumbServer(t *testing.T) {
	l := newLab(t)
	l.sh("r", base)
	before := l.sh("r", "git rev-parse dev; git checkout -q dev; echo later >a; git commit -qam later; git checkout -q main; git update-server-info")
	files := httptest.NewServer(http.FileServer(http.Dir(l.dir)))
	defer files.Close()
	for _, c := range []struct{ ref, want string }{{"dev", "d:-rw"}, {"ann", "x:-rwx"}, {before, "d:-rw"}} {
		s := &Source{Remote: files.URL + "/r/.git", Ref: c.ref}
		if got, _, err := l.checkout(s); err != nil || !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, %v", c.ref, got, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	l := newLab(t)
	l.sh("r", base)
	hash := l.sh("r", "git rev-parse main")
	pwned := filepath.Join(t.TempDir(), "pwned")
	for _, c := range []struct {
		what   string
		change func(*Source)
		want   string
	}{
		{"an option as a ref", func(s *Source) { s.Ref = "--upload-pack=touch " + pwned }, "invalid git ref"},
		{"an option as a ref's beginning", func(s *Source) { s.Ref = "-u" }, "invalid git ref"},
		{"a refspec as a ref", func(s *Source) { s.Ref = "main:refs/heads/x" }, "invalid git ref"},
		{"a pattern as a ref", func(s *Source) { s.Ref = "refs/heads/*" }, "invalid git ref"},
		{"a revision as a ref", func(s *Source) { s.Ref = "main~1" }, "invalid git ref"},
		{"a line end in a ref", func(s *Source) { s.Ref = "main\nx" }, "invalid git ref"},
		{"a ref that is not there", func(s *Source) { s.Ref = "nope" }, "repository does not contain ref nope"},
		{"a commit that is not there", func(s *Source) { s.Ref = strings.Repeat("ab", 20) }, "failed to fetch remote"},
		{"another commit than pinned", func(s *Source) { s.Ref, s.Checksum = "main", "abcdef" }, "expected checksum to match abcdef, got " + hash},
		{"another commit than the ref is", func(s *Source) { s.Ref, s.Checksum = hash, "abcdef" }, "expected checksum to match abcdef, got " + hash},
		{"a checksum that is none", func(s *Source) { s.Checksum = "-x" }, "expected hex commit hash"},
		{"a repository that is not there", func(s *Source) { s.Remote = l.url + "/none.git" }, "none.git"},
		{"a command as a transport", func(s *Source) { s.Remote = "ext::touch " + pwned }, "git repository"},
		{"the disk as a transport", func(s *Source) { s.Remote = "file://" + l.dir + "/r" }, "git repository"},
		{"a path", func(s *Source) { s.Remote = l.dir + "/r" }, "git repository"},
		{"an option as a host", func(s *Source) { s.Remote = "ssh://-oProxyCommand=touch " + pwned + "/x" }, "git repository"},
		{"an option as an scp host", func(s *Source) { s.Remote = "git@-oProxyCommand=touch:x" }, "git"},
		{"a symlink as a directory", func(s *Source) { s.Subdir = "link" }, `"link" is no directory`},
		{"a symlink out of the repository", func(s *Source) { s.Subdir = "out" }, `"out" is no directory`},
		{"a file as a directory", func(s *Source) { s.Subdir = "a" }, `"a" is no directory`},
		{"a directory outside", func(s *Source) { s.Subdir = "../../../../etc" }, `the repository has no "etc"`},
	} {
		s := l.source("r")
		c.change(s)
		_, _, err := l.checkout(s)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", c.what, err, c.want)
		}
	}
	if _, err := os.Stat(pwned); err == nil {
		t.Error("a command of the source's ran")
	}
}

func TestSubmodules(t *testing.T) {
	l := newLab(t)
	l.sh("lib", "echo lib >f; git add .; git commit -qm lib")
	l.sh("good", "git -c protocol.file.allow=always submodule add -q ../lib vendor/lib; git commit -qm good")
	// The URL is relative, and so is on the server that the repository is on.
	l.sh("good", "git config -f .gitmodules submodule.vendor/lib.url "+l.url+"/lib/.git; git add .; git commit -qm url")
	for _, skip := range []bool{false, true} {
		s := l.source("good")
		s.SkipSubmodules = skip
		got, dir, err := l.checkout(s)
		if err != nil || strings.Contains(got, "vendor/lib/f:") == skip {
			t.Errorf("skip %v: %s, %v", skip, got, err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "vendor/lib/.git")); !skip && (err != nil || strings.Contains(string(b), filepath.Base(filepath.Dir(dir)))) {
			t.Errorf("a submodule's .git names the scratch directory: %q %v", b, err)
		}
	}
	l.sh("evil", "git -c protocol.file.allow=always submodule add -q "+l.dir+"/lib lib; git commit -qm evil")
	if got, _, err := l.checkout(l.source("evil")); err == nil || !strings.Contains(err.Error(), "transport 'file' not allowed") {
		t.Errorf("a submodule on the builder's disk: %s, %v", got, err)
	}
}

func TestCredentials(t *testing.T) {
	l := newLab(t)
	l.sh("r", base)
	l.auth.Store(basic("user", "hunter2"))
	withUser := strings.Replace(l.url, "http://", "http://user:hunter2@", 1)
	remote, auth := Split(withUser + "/r/.git")
	if remote != l.url+"/r/.git" || auth != basic("user", "hunter2") {
		t.Fatalf("Split: %s, %s", remote, auth)
	}
	var logs strings.Builder
	var mu sync.Mutex
	l.git.Log = func(_ int, b []byte) { mu.Lock(); defer mu.Unlock(); logs.Write(b) }
	s := &Source{Remote: remote, Auth: auth, KeepGitDir: true}
	_, dir, err := l.checkout(s)
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if strings.Contains(string(b), "hunter2") || strings.Contains(string(b), strings.TrimPrefix(auth, "Basic ")) {
			t.Errorf("%s holds the password", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Auth = basic("user", "wrong-password")
	_, _, err = l.checkout(s)
	if err == nil || strings.Contains(err.Error(), "wrong-password") || strings.Contains(err.Error(), strings.TrimPrefix(s.Auth, "Basic ")) {
		t.Errorf("a wrong password: %v", err)
	}
	if strings.Contains(logs.String(), "hunter2") {
		t.Error("the log holds the password")
	}
}

// What the user has configured has no part in a build.
func TestConfigurationDoesNotLeakIn(t *testing.T) {
	l := newLab(t)
	l.sh("r", base)
	home := t.TempDir()
	pwned := filepath.Join(home, "pwned")
	config := fmt.Sprintf("[url \"file:///nowhere/\"]\n\tinsteadOf = %s/\n[init]\n\ttemplateDir = %s\n[filter \"f\"]\n\tsmudge = touch %s\n", l.url, home, pwned)
	hook := "#!/bin/sh\ntouch " + pwned + "\n"
	if err := os.MkdirAll(filepath.Join(home, "hooks"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{".gitconfig": config, "hooks/post-checkout": hook} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for k, v := range map[string]string{
		"HOME": home, "GIT_CONFIG_GLOBAL": home + "/.gitconfig", "GIT_TEMPLATE_DIR": home, "GIT_DIR": home, "GIT_SSH_COMMAND": "touch " + pwned,
		"GIT_EXTERNAL_DIFF": "x", "GIT_PROXY_COMMAND": "touch " + pwned,
	} {
		t.Setenv(k, v)
	}
	s := l.source("r")
	s.KeepGitDir = true
	if _, _, err := l.checkout(s); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(pwned); err == nil {
		t.Error("a command of the user's configuration ran")
	}
}

func TestNoGit(t *testing.T) {
	l := newLab(t)
	t.Setenv("PATH", t.TempDir())
	_, _, err := l.checkout(l.source("r"))
	if !errors.Is(err, oci.ErrUnsupported) || !strings.Contains(err.Error(), "install git") {
		t.Errorf("without git: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.git.Resolve(ctx, l.source("r")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

func FuzzParseRefs(f *testing.F) {
	f.Add("ref: refs/heads/main\tHEAD\n0123456789012345678901234567890123456789\tHEAD\n")
	f.Add("\t\n\t\t\nref: \tHEAD")
	f.Fuzz(func(t *testing.T, s string) {
		head, refs := parseRefs([]byte(s))
		if strings.ContainsAny(head, "\t\n") {
			t.Errorf("HEAD is at %q", head)
		}
		for name := range refs {
			if strings.Contains(name, "\n") {
				t.Errorf("ref %q", name)
			}
		}
	})
}

func FuzzValidRef(f *testing.F) {
	for _, s := range []string{"main", "-x", "a..b", "refs/heads/x", "a@{1}", "a.lock", "ü/x", "a\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if validRef(s) && (strings.HasPrefix(s, "-") || strings.ContainsAny(s, ":*?[\\^~ \n\x00")) {
			t.Errorf("%q is a valid ref", s)
		}
	})
}
