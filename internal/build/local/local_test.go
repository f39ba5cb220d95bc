package local_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/patternmatcher/ignorefile"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/build/local"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

func put(t testing.TB, dir string, files ...string) {
	t.Helper()
	for _, f := range files {
		p := filepath.Join(dir, f)
		name, target, link := strings.Cut(f, " -> ")
		var err error
		switch {
		case link:
			os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755)
			err = os.Symlink(target, filepath.Join(dir, name))
		case strings.HasSuffix(f, "/"):
			err = os.MkdirAll(p, 0o755)
		default:
			os.MkdirAll(filepath.Dir(p), 0o755)
			err = os.WriteFile(p, []byte(f), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func open(t testing.TB, dir string, opt local.Options) *local.Dir {
	t.Helper()
	d, err := local.Open(t.Context(), dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func list(t testing.TB, d *local.Dir) []string {
	t.Helper()
	var out []string
	var down func(string)
	down = func(p string) {
		all, err := d.ReadDir(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if l, err := d.Lstat(e.Path); err != nil || l.Path != e.Path {
				t.Errorf("ReadDir shows %s, but Lstat says %v", e.Path, err)
			}
			out = append(out, e.Path)
			if e.Type == layer.Dir {
				down(e.Path)
			}
		}
	}
	down(".")
	slices.Sort(out)
	return out
}

// theirs is what docker's client would send.
func theirs(t testing.TB, dir string, opt local.Options) []string {
	t.Helper()
	var out []string
	err := fsutil.Walk(t.Context(), dir, &fsutil.FilterOpt{IncludePatterns: opt.Include, ExcludePatterns: opt.Exclude, FollowPaths: opt.Follow},
		func(p string, _ os.FileInfo, err error) error {
			out = append(out, p)
			return err
		})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func TestPatterns(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a/b/c.py", "a/b/d.txt", "a/e.py", "f", "g.py", "node_modules/x/y.js", "node_modules/x/z.py", "empty/",
		"l -> a/b", "abs -> /a/e.py", "out -> ../../..", "dangling -> nowhere", "loop -> loop", "a/up -> ../f", "chain -> l")
	for _, c := range []struct {
		why  string
		opt  local.Options
		want string // "" is whatever fsutil says
	}{
		{"everything is shown without patterns", local.Options{}, ""},
		{"trap 8: * and then an exception with **", local.Options{Exclude: []string{"*", "!**/*.py"}},
			"a a/b a/b/c.py a/e.py g.py node_modules node_modules/x node_modules/x/z.py"},
		{"trap 8: ** and then an exception with ./", local.Options{Exclude: ignored(t, "**\n!./f\n")}, "f"},
		{"an excluded tree", local.Options{Exclude: []string{"node_modules", "a/b"}}, ""},
		{"the last pattern wins", local.Options{Exclude: []string{"!a/b", "a"}}, ""},
		{"an exception in an excluded tree shows its parents", local.Options{Exclude: []string{"a", "!a/b/d.txt"}}, ""},
		{"an exception with a wildcard in the middle", local.Options{Exclude: []string{"*", "!a/*/d.txt"}}, ""},
		{"one included path", local.Options{Include: []string{"a/b"}}, "a a/b a/b/c.py a/b/d.txt"},
		{"an included path that is not there shows nothing", local.Options{Include: []string{"a/nosuch"}}, ""},
		{"an included file that is excluded too", local.Options{Include: []string{"f"}, Exclude: []string{"f"}}, ""},
		{"a link is followed", local.Options{Follow: []string{"l"}}, "a a/b a/b/c.py a/b/d.txt l"},
		{"a link in the middle", local.Options{Follow: []string{"l/c.py"}}, ""},
		{"a chain of links", local.Options{Follow: []string{"chain/d.txt"}}, ""},
		{"an absolute link starts at the context's root", local.Options{Follow: []string{"abs"}}, "a a/e.py abs"},
		{"a link out of the context ends at its root", local.Options{Follow: []string{"out"}}, ""},
		{"a dangling link", local.Options{Follow: []string{"dangling"}}, ""},
		{"a loop", local.Options{Follow: []string{"loop/x"}}, ""},
		{"a wildcard that matches links", local.Options{Follow: []string{"?"}}, ""},
		{"follow and include", local.Options{Follow: []string{"abs"}, Include: []string{"f"}}, ""},
		{"the whole directory", local.Options{Follow: []string{"."}}, ""},
		{"empty directories stay", local.Options{Include: []string{"empty", "**/*.txt"}}, ""},
	} {
		t.Run(c.why, func(t *testing.T) {
			got, want := list(t, open(t, dir, c.opt)), theirs(t, dir, c.opt)
			if c.want != "" && strings.Join(got, " ") != c.want {
				t.Errorf("got  %s\nwant %s", strings.Join(got, " "), c.want)
			}
			if !slices.Equal(got, want) {
				t.Errorf("got     %q\nfsutil  %q", got, want)
			}
		})
	}
	if _, err := local.Open(t.Context(), dir, local.Options{Exclude: []string{"["}}); !errors.Is(err, oci.ErrInvalid) {
		t.Errorf("a malformed pattern gives %v", err)
	}
}

// ignored reads a .dockerignore as BuildKit's frontend does before it asks for
// the context.
func ignored(t testing.TB, file string) []string {
	t.Helper()
	all, err := ignorefile.ReadAll(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPatternsLikeDocker(t *testing.T) {
	for seed := range 60 {
		r := rand.New(rand.NewSource(int64(seed)))
		dir := t.TempDir()
		names := []string{"a", "b", "c.py", "d.txt", "[x]"}
		for range 25 {
			p := ""
			for range 1 + r.Intn(4) {
				p = filepath.Join(p, names[r.Intn(len(names))])
			}
			os.MkdirAll(filepath.Join(dir, filepath.Dir(p)), 0o755)
			if r.Intn(5) == 0 {
				os.Symlink([]string{"a", "../b", "/a/b", "x", "/"}[r.Intn(5)], filepath.Join(dir, p))
			} else if r.Intn(5) > 0 {
				os.WriteFile(filepath.Join(dir, p), nil, 0o644)
			} else {
				os.Mkdir(filepath.Join(dir, p), 0o755)
			}
		}
		for range 40 {
			some := []string{"a", "b/*", "**/c.py", "*", "!a", "!**/d.txt", "a/b", "!a/b/c.py", "*/b/**", "!*/a", "**", "[ab]", "!b/**", "./a/", "a/*/c.py", "!/a/b"}
			list1 := func(n int) (out []string) {
				for range n {
					out = append(out, some[r.Intn(len(some))])
				}
				return out
			}
			var opt local.Options
			if r.Intn(3) == 0 {
				opt.Include = list1(1 + r.Intn(2))
			}
			if r.Intn(3) > 0 {
				opt.Exclude = list1(1 + r.Intn(4))
			}
			if r.Intn(3) == 0 {
				for range 1 + r.Intn(2) {
					opt.Follow = append(opt.Follow, []string{"a", "a/b", "b/c.py", "*/a", "a/*", "?/b/a"}[r.Intn(6)])
				}
			}
			got, want := list(t, open(t, dir, opt)), theirs(t, dir, opt)
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, %+v\ngot    %q\nfsutil %q", seed, opt, got, want)
			}
		}
	}
}

func TestEntries(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners and devices")
	}
	dir := t.TempDir()
	put(t, dir, "f", "x", "d/", "l -> ../../etc/passwd", "caf\xe9")
	os.Chown(dir+"/f", 1000, 1001)
	os.Chmod(dir+"/x", 0o755|os.ModeSetuid)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	if err := unix.Setxattr(dir+"/x", "security.capability", []byte(capability), 0); err != nil {
		t.Fatal(err)
	}
	unix.Setxattr(dir+"/f", "user.note", []byte("1"), 0)
	unix.Mkfifo(dir+"/fifo", 0o600)
	unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
	l, err := net.Listen("unix", dir+"/sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cache := t.TempDir()
	for range 2 { // the second time from the cache
		d := open(t, dir, local.Options{CacheDir: cache})
		if got, want := list(t, d), []string{"caf\xe9", "d", "f", "fifo", "l", "null", "x"}; !slices.Equal(got, want) {
			t.Errorf("a socket is skipped, all else shown: %q", got)
		}
		f, _ := d.Lstat("f")
		if f.UID != 0 || f.GID != 0 || f.Xattrs != nil {
			t.Errorf("owners are 0:0 and user xattrs left out: %+v", f)
		}
		x, _ := d.Lstat("x")
		if x.Mode != 0o4755 || x.Xattrs["security.capability"] != capability {
			t.Errorf("setuid bits and capabilities stay: %+v", x)
		}
		if n, _ := d.Lstat("null"); n.Type != layer.Char || n.DevMajor != 1 || n.DevMinor != 3 {
			t.Errorf("a device: %+v", n)
		}
		if _, err := d.Open(t.Context(), "l"); err == nil {
			t.Error("a symlink out of the context was opened")
		}
		if _, err := d.Lstat("l/x"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a path through a symlink: %v", err)
		}
		if err := d.Hash(t.Context(), []string{"f", "x"}); err != nil {
			t.Fatal(err)
		}
		d.Close()
		settle(t)
	}
}

// settle waits until files that were just written are not racy any more.
func settle(t testing.TB) {
	t.Helper()
	time.Sleep(60 * time.Millisecond)
}

func digestOf(t testing.TB, d *local.Dir, p string) oci.Digest {
	t.Helper()
	got, err := d.Digest(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// A digest from the cache is only given for what the file holds now.
func TestCache(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	put(t, dir, "f", "g")
	os.WriteFile(dir+"/f", []byte("one"), 0o644)
	settle(t)
	look := func() (known bool) {
		d := open(t, dir, local.Options{CacheDir: cache})
		defer d.Close()
		e, err := d.Lstat("f")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := os.ReadFile(dir + "/f")
		if got := digestOf(t, d, "f"); got != digest.FromBytes(b) {
			t.Fatalf("the digest of %q is %s", b, got)
		}
		return e.Digest != ""
	}
	if look() {
		t.Error("known before it was read")
	}
	if !look() {
		t.Error("not known although nothing changed")
	}
	fi, _ := os.Stat(dir + "/f")
	os.WriteFile(dir+"/f", []byte("two"), 0o644)
	os.Chtimes(dir+"/f", fi.ModTime(), fi.ModTime())
	if look() {
		t.Error("same size and mtime, other content: the change time must tell")
	}
	settle(t)
	look()
	os.WriteFile(dir+"/other", []byte("six"), 0o644)
	os.Chtimes(dir+"/other", fi.ModTime(), fi.ModTime())
	os.Rename(dir+"/other", dir+"/f")
	if look() {
		t.Error("another file of the same name, size and mtime")
	}
	settle(t)
	look()
	files, _ := filepath.Glob(cache + "/*")
	if len(files) != 1 {
		t.Fatalf("cache files: %q", files)
	}
	good, _ := os.ReadFile(files[0])
	for _, damaged := range [][]byte{nil, good[:10], good[:len(good)-1], append(bytes.Clone(good), 0), flip(good, 9), flip(good, 17), flip(good, len(good)-50), bytes.Repeat([]byte("x"), 200)} {
		os.WriteFile(files[0], damaged, 0o600)
		if look() {
			t.Errorf("a damaged cache of %d bytes was believed", len(damaged))
		}
	}
	if !look() {
		t.Error("a damaged cache was not replaced")
	}
}

func flip(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 1
	return c
}

// A file written at the moment it was hashed is hashed again next time: the
// clock could hide a second change.
func TestRacilyClean(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	for i := range 50 {
		os.WriteFile(dir+"/f", fmt.Appendf(nil, "%02d", i), 0o644)
		d := open(t, dir, local.Options{CacheDir: cache})
		if got := digestOf(t, d, "f"); got != digest.FromString(fmt.Sprintf("%02d", i)) {
			t.Fatalf("round %d: stale digest", i)
		}
		d.Close()
	}
}

// Trap 4: a symlink that is swapped for another of the same length and time.
func TestSymlinkSwapped(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	at := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}
	for _, target := range []string{"one", "two"} {
		os.Remove(dir + "/l")
		os.Symlink(target, dir+"/l")
		unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/l", at, unix.AT_SYMLINK_NOFOLLOW)
		d := open(t, dir, local.Options{CacheDir: cache})
		if e, err := d.Lstat("l"); err != nil || e.Link != target {
			t.Errorf("link to %s: %+v, %v", target, e, err)
		}
		d.Close()
	}
}

// A file that changes after it was looked at never gets into an image.
func TestChangedWhileRead(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 1<<20)
	for why, change := range map[string]func(p string){
		"grows":          func(p string) { os.WriteFile(p, append(big, 'y'), 0o644) },
		"shrinks":        func(p string) { os.Truncate(p, 10) },
		"other content":  func(p string) { os.WriteFile(p, bytes.Repeat([]byte("z"), 1<<20), 0o644) },
		"removed":        func(p string) { os.Remove(p) },
		"becomes a link": func(p string) { os.Remove(p); os.Symlink("/etc/passwd", p) },
		"replaced":       func(p string) { os.WriteFile(p+"2", big, 0o644); os.Rename(p+"2", p) },
	} {
		for _, racy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/racy=%v", why, racy), func(t *testing.T) {
				dir := t.TempDir()
				p := dir + "/f"
				os.WriteFile(p, big, 0o644)
				if !racy {
					settle(t)
				}
				d := open(t, dir, local.Options{})
				digestOf(t, d, "f")
				change(p)
				r, err := d.Open(t.Context(), "f")
				if err == nil {
					_, err = io.Copy(io.Discard, r)
					r.Close()
				}
				var changed *local.ChangedError
				if !errors.As(err, &changed) || !errors.Is(err, oci.ErrConflict) {
					t.Errorf("before it is opened: %v", err)
				}
			})
		}
	}
	dir := t.TempDir()
	os.WriteFile(dir+"/f", big, 0o644)
	d := open(t, dir, local.Options{})
	r, err := d.Open(t.Context(), "f")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	io.ReadFull(r, make([]byte, 1000))
	settle(t)
	f, _ := os.OpenFile(dir+"/f", os.O_WRONLY, 0)
	f.WriteAt([]byte("!"), 999999)
	f.Close()
	// Even who reads no more than the size must not miss it.
	if _, err := io.ReadFull(r, make([]byte, len(big)-1000)); err == nil {
		t.Error("changed between two reads, and nobody noticed")
	}
}

// Trap 8: whatever a build does, the context is only read.
func TestNothingIsWritten(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a/b", "c")
	os.Chmod(dir+"/a", 0o555)
	os.Chmod(dir, 0o555)
	before := fmt.Sprint(theirs(t, dir, local.Options{}))
	fi, _ := os.Stat(dir)
	d := open(t, dir, local.Options{CacheDir: t.TempDir()})
	list(t, d)
	if err := d.Hash(context.Background(), []string{"a/b", "c"}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	after, _ := os.Stat(dir)
	if fmt.Sprint(theirs(t, dir, local.Options{})) != before || !after.ModTime().Equal(fi.ModTime()) {
		t.Error("the context was written to")
	}
}

func FuzzPatterns(f *testing.F) {
	dir := f.TempDir()
	put(f, dir, "a/b/c.py", "a/d", "e.py", "l -> a")
	f.Add("*", "!**/*.py", "a", "l/d")
	f.Add("**", "!./e.py", "", "")
	f.Add("a/[", "\\", "!", "*/b")
	// A bad pattern is refused even where fsutil never comes to compile it.
	bad := func(err error) bool {
		return err != nil && errors.Is(err, oci.ErrInvalid) && strings.Contains(err.Error(), "syntax error in pattern")
	}
	f.Fuzz(func(t *testing.T, ex1, ex2, in, follow string) {
		opt := local.Options{Exclude: []string{ex1, ex2}}
		if in != "" {
			opt.Include = []string{in}
		}
		if follow != "" {
			opt.Follow = []string{follow}
		}
		d, err := local.Open(t.Context(), dir, opt)
		var want []string
		werr := fsutil.Walk(t.Context(), dir, &fsutil.FilterOpt{IncludePatterns: opt.Include, ExcludePatterns: opt.Exclude, FollowPaths: opt.Follow},
			func(p string, _ os.FileInfo, err error) error { want = append(want, p); return err })
		if err != nil {
			if werr == nil && !bad(err) && !strings.Contains(follow, "\x00") {
				t.Fatalf("%+v: %v", opt, err)
			}
			return
		}
		defer d.Close()
		if werr != nil {
			return // found only when a pattern is compiled
		}
		var got []string
		refused := false
		var down func(string)
		down = func(p string) {
			all, err := d.ReadDir(p)
			if refused = refused || bad(err); refused {
				return // what lies below is of no interest any more
			}
			if err != nil {
				t.Fatalf("%+v: %v", opt, err)
			}
			for _, e := range all {
				if got = append(got, e.Path); e.Type == layer.Dir {
					down(e.Path)
				}
			}
		}
		down(".")
		if refused {
			return
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("%+v\ngot    %q\nfsutil %q", opt, got, want)
		}
	})
}
