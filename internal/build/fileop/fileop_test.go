package fileop_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/moby/buildkit/solver/pb"
	"github.com/ulikunitz/xz"

	"github.com/strake-project/strake/internal/build/fileop"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// grow makes a Draft of lines: "dir/", "file=content", "link->target",
// "hard=>file"; a mode and owner may follow after a space: "file=x 4755 1:2".
func grow(t testing.TB, lines ...string) *fileop.Draft {
	t.Helper()
	dir := t.TempDir()
	for _, l := range lines {
		l, attr, _ := strings.Cut(l, " ")
		name := l
		at := func(n string) string { return filepath.Join(dir, n) }
		var err error
		switch {
		case strings.Contains(l, "->"):
			n, target, _ := strings.Cut(l, "->")
			name = n
			err = os.Symlink(target, at(n))
		case strings.Contains(l, "=>"):
			n, target, _ := strings.Cut(l, "=>")
			name = n
			err = os.Link(at(target), at(n))
		case strings.Contains(l, "="):
			n, text, _ := strings.Cut(l, "=")
			name = n
			os.MkdirAll(filepath.Dir(at(n)), 0o755)
			err = os.WriteFile(at(n), []byte(text), 0o644)
		default:
			err = os.MkdirAll(at(l), 0o755)
		}
		if err == nil && attr != "" {
			err = attributes(at(name), attr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	d := fileop.New(onDisk(t, dir))
	return d
}

func attributes(p, attr string) error {
	var mode uint32
	for _, c := range attr {
		mode = mode*8 + uint32(c-'0')
	}
	m := os.FileMode(mode & 0o777)
	if mode&0o4000 != 0 {
		m |= os.ModeSetuid
	}
	return os.Chmod(p, m)
}

// dockerCopy is what the Dockerfile frontend makes of COPY src dest.
func dockerCopy(src, dest string) *pb.FileActionCopy {
	return &pb.FileActionCopy{Src: src, Dest: dest, Mode: -1, Timestamp: -1, FollowSymlink: true, DirCopyContents: true,
		CreateDestPath: true, AllowWildcard: true, AllowEmptyWildcard: true}
}

func act(a any) *pb.FileAction {
	switch a := a.(type) {
	case *pb.FileActionCopy:
		return &pb.FileAction{Action: &pb.FileAction_Copy{Copy: a}}
	case *pb.FileActionMkDir:
		return &pb.FileAction{Action: &pb.FileAction_Mkdir{Mkdir: a}}
	case *pb.FileActionMkFile:
		return &pb.FileAction{Action: &pb.FileAction_Mkfile{Mkfile: a}}
	case *pb.FileActionRm:
		return &pb.FileAction{Action: &pb.FileAction_Rm{Rm: a}}
	case *pb.FileActionSymlink:
		return &pb.FileAction{Action: &pb.FileAction_Symlink{Symlink: a}}
	}
	return &pb.FileAction{}
}

// wrote is d's layer, one word for each entry: its type and path.
func wrote(t testing.TB, d *fileop.Draft) (string, *layer.TOC) {
	t.Helper()
	w := layer.NewWriter(io.Discard)
	if err := d.Write(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	toc, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range toc.Entries {
		s := string(e.Type) + e.Path
		if e.Link != "" {
			s += ">" + e.Link
		}
		out = append(out, s)
	}
	return strings.Join(out, " "), toc
}

func TestLayers(t *testing.T) {
	everything := []string{"app/f=F", "app/sub/g=G", "link->app", "top=T"}
	for _, c := range []struct {
		why     string
		base    []string
		actions []any
		want    string
	}{
		{"a file into a new directory", nil, []any{dockerCopy("/top", "/a/b/")}, "5a 5a/b 0a/b/top"},
		{"existing directories above a change are copied up", []string{"a/b/c/", "a/x=1"}, []any{dockerCopy("/top", "/a/b/c/")}, "5a 5a/b 5a/b/c 0a/b/c/top"},
		{"trap 9: the destination's directory is a symlink", []string{"usr/bin/", "bin->usr/bin"}, []any{dockerCopy("/top", "/bin/")}, "5usr 5usr/bin 0usr/bin/top"},
		{"trap 9: an absolute link out of the root stays inside", []string{"bin->/../../../usr"}, []any{dockerCopy("/top", "/bin/")}, "5usr 0usr/top"},
		{"trap 9: the destination itself is a symlink to a file", []string{"real=1", "to->real"}, []any{dockerCopy("/top", "/to")}, "0real"},
		{"a copied symlink is followed when it is named", nil, []any{dockerCopy("/link", "/x")}, "5x 0x/f 5x/sub 0x/sub/g"},
		{"a removed file leaves a whiteout", []string{"a/b=1", "c=1"}, []any{&pb.FileActionRm{Path: "/a/b"}}, "5a wa/b"},
		{"what was never in the base needs no whiteout", nil, []any{dockerCopy("/top", "/x"), &pb.FileActionRm{Path: "/x"}}, ""},
		{"a directory made again hides what it had", []string{"a/b=1"}, []any{&pb.FileActionRm{Path: "/a"}, &pb.FileActionMkDir{Path: "/a", Mode: 0o755, Timestamp: -1}}, "5a oa"},
		{"trap 3: a directory replaced by a link has nothing below", []string{"a/b/c=1"}, []any{&pb.FileActionRm{Path: "/a/b"}, &pb.FileActionSymlink{Oldpath: "x", Newpath: "/a/b", Timestamp: -1}}, "5a 2a/b>x"},
		{"a file in place of a removed directory", []string{"a/b=1"}, []any{&pb.FileActionRm{Path: "/a"}, &pb.FileActionMkFile{Path: "/a", Mode: 0o644, Timestamp: -1}}, "0a"},
		{"a wildcard without a match copies nothing", nil, []any{dockerCopy("/nosuch*", "/x/")}, ""},
		{"a directory that exists is not made", []string{"a/"}, []any{&pb.FileActionMkDir{Path: "/a", Mode: 0o700, MakeParents: true, Timestamp: -1}}, ""},
	} {
		t.Run(c.why, func(t *testing.T) {
			d := fileop.New(nil)
			if c.base != nil {
				d = fileop.New(grow(t, c.base...))
			}
			src := grow(t, everything...)
			for _, a := range c.actions {
				if err := d.Apply(t.Context(), act(a), src, nil, now); err != nil {
					t.Fatal(err)
				}
			}
			got, _ := wrote(t, d)
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	base := []string{"file=1", "dir/sub/", "dir/link->sub", "loop->loop"}
	src := []string{"f=1", "tree/sub/x=1", "tree/link/y=1", "other/dir=1"}
	contents := func(s, d string) *pb.FileActionCopy { return dockerCopy(s, d) }
	nodest := dockerCopy("/f", "/no/such/place")
	nodest.CreateDestPath = false
	strict := dockerCopy("/nosuch*", "/")
	strict.AllowEmptyWildcard = false
	badmode := dockerCopy("/f", "/x")
	badmode.ModeStr = "u=q"
	for _, c := range []struct {
		a    any
		want string
	}{
		{contents("/nosuch", "/"), "lstat /nosuch: no such file or directory"},
		{contents("/f", "/file/"), "mkdir /file: not a directory"},
		{contents("/tree", "/file"), "cannot copy to non-directory: /file"},
		{contents("/tree", "/dir"), "cannot copy to non-directory: /dir/link"},
		{contents("/other", "/dir/.."), "cannot replace to directory /dir with file"},
		{contents("/f", "/loop/x"), "/loop: too many links: invalid"},
		{nodest, "failed to stat /no/such/place: lstat /no/such: no such file or directory"},
		{strict, "/nosuch* not found: not found"},
		{badmode, `mode "u=q": invalid syntax: invalid`},
		{&pb.FileActionMkDir{Path: "/no/such", Timestamp: -1}, "mkdir /no/such: no such file or directory"},
		{&pb.FileActionMkDir{Path: "/file/x", MakeParents: true, Timestamp: -1}, "lstat /file/x: not a directory"},
		{&pb.FileActionMkFile{Path: "/dir", Timestamp: -1}, "rename /dir: file exists"},
		{&pb.FileActionMkFile{Path: "/", Timestamp: -1}, "mkfile /: is a directory"},
		{&pb.FileActionMkFile{Path: "/no/f", Timestamp: -1}, "open /no/f: no such file or directory"},
		{&pb.FileActionSymlink{Oldpath: "x", Newpath: "/file", Timestamp: -1}, "symlink x /file: file exists"},
		{&pb.FileActionRm{Path: "/nosuch"}, "stat /nosuch: no such file or directory"},
		{&pb.FileActionRm{Path: "/nosuch", AllowNotFound: true}, ""},
		{&pb.FileActionRm{Path: "/"}, "rmPath: invalid empty path"},
		{nil, "file action of an unknown type <nil>: not supported"},
	} {
		err := fileop.New(grow(t, base...)).Apply(t.Context(), act(c.a), grow(t, src...), nil, now)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v\ngot  %s\nwant %s", c.a, got, c.want)
		}
	}
}

// Owners by name come from the files of the view that the action points to.
func TestOwnerByName(t *testing.T) {
	users := grow(t, "etc/passwd=root:x:0:0::/:\napp:x:1000:1001::/:\n", "etc/group=staff:x:50:\n")
	name := func(n string) *pb.UserOpt {
		return &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: n, Input: 7}}}
	}
	for _, c := range []struct {
		why      string
		o        *pb.ChownOpt
		uid, gid int
	}{
		{"a user's group comes with it", &pb.ChownOpt{User: name("app")}, 1000, 1001},
		{"a group of its own", &pb.ChownOpt{User: name("app"), Group: name("staff")}, 1000, 50},
		{"who is not there is root, as in BuildKit", &pb.ChownOpt{User: name("nobody")}, 0, 0},
		{"a number is its own group", &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 42}}}, 42, 42},
	} {
		a := dockerCopy("/f", "/new/f")
		a.Owner = c.o
		d := fileop.New(nil)
		if err := d.Apply(t.Context(), act(a), grow(t, "f=1"), func(input int64) (tree.View, error) {
			if input != 7 {
				t.Errorf("%s: looked up in input %d", c.why, input)
			}
			return users, nil
		}, now); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"new", "new/f"} {
			if e, err := d.Lstat(p); err != nil || e.UID != c.uid || e.GID != c.gid {
				t.Errorf("%s: %+v, %v", c.why, e, err)
			}
		}
	}
}

func selected(t testing.TB, v tree.View, a *pb.FileActionCopy) oci.Digest {
	t.Helper()
	d, err := fileop.Selected(t.Context(), v, a)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Equal content gives an equal digest whatever the times (trap 10), and all
// that can change the result changes the digest.
func TestSelected(t *testing.T) {
	tree1 := []string{"d/f=1", "d/g=2", "d/l->f", "d/sub/x=3", "other=1"}
	all := dockerCopy("/d", "/x")
	want := selected(t, grow(t, tree1...), all)
	later := grow(t, tree1...)
	if got := selected(t, later, all); got != want {
		t.Error("the same content at another time has another digest")
	}
	if got := selected(t, grow(t, append([]string{"unrelated=1"}, tree1...)...), all); got != want {
		t.Error("what is not copied changes the digest")
	}
	if got := selected(t, grow(t, "e/f=1", "e/g=2", "e/l->f", "e/sub/x=3"), dockerCopy("/e", "/x")); got != want {
		t.Error("the name of a directory whose contents are copied changes the digest")
	}
	for why, other := range map[string][]string{
		"content":            {"d/f=9", "d/g=2", "d/l->f", "d/sub/x=3"},
		"name":               {"d/h=1", "d/g=2", "d/l->f", "d/sub/x=3"},
		"mode":               {"d/f=1 755", "d/g=2", "d/l->f", "d/sub/x=3"},
		"setuid":             {"d/f=1 4644", "d/g=2", "d/l->f", "d/sub/x=3"},
		"dir's mode":         {"d/f=1", "d/g=2", "d/l->f", "d/sub/x=3", "d/sub 700"},
		"link":               {"d/f=1", "d/g=2", "d/l->g", "d/sub/x=3"},
		"type":               {"d/f=1", "d/g=2", "d/l=f", "d/sub/x=3"},
		"more":               {"d/f=1", "d/g=2", "d/l->f", "d/sub/x=3", "d/sub/y="},
		"an empty directory": {"d/f=1", "d/g=2", "d/l->f", "d/sub/x=3", "d/empty/"},
		"hard link":          {"d/f=1", "d/g=2", "d/l->f", "d/sub/x=3", "d/sub/y=>d/f"},
		"moved":              {"d/f=1", "d/g=2", "d/l->f", "d/sub/z/x=3"},
	} {
		if got := selected(t, grow(t, other...), all); got == want {
			t.Errorf("another %s has the same digest", why)
		}
	}
	if selected(t, grow(t, tree1...), dockerCopy("/d/f", "/x/")) == selected(t, grow(t, "d/h=1"), dockerCopy("/d/h", "/x/")) {
		t.Error("a file copied into a directory goes by its name")
	}
	ex := dockerCopy("/d", "/x")
	ex.ExcludePatterns = []string{"sub"}
	if selected(t, grow(t, tree1...), ex) != selected(t, grow(t, "d/f=1", "d/g=2", "d/l->f", "d/sub/x=changed"), ex) {
		t.Error("what is excluded changes the digest")
	}
	if selected(t, grow(t, tree1...), dockerCopy("/d/*", "/x/")) == selected(t, grow(t, "d/f=1"), dockerCopy("/d/*", "/x/")) {
		t.Error("fewer matches of a wildcard have the same digest")
	}
}

func TestSelectedNotFound(t *testing.T) {
	v := grow(t, "a/b=1", "dangling->nowhere")
	for _, c := range []struct {
		a    *pb.FileActionCopy
		want string
	}{
		{dockerCopy("/nosuch", "/"), `"/nosuch": not found`},
		{dockerCopy("a/nosuch/", "/"), `"/a/nosuch": not found`},
		{dockerCopy("/dangling", "/"), `"/dangling": not found`},
		{dockerCopy("/nosuch*", "/"), ""},
		{&pb.FileActionCopy{Src: "/", Dest: "/", IncludePatterns: []string{"a/x"}, RequiredPaths: []string{"/a/x"}}, `"/a/x": not found`},
		{&pb.FileActionCopy{Src: "/", Dest: "/", IncludePatterns: []string{"a/b"}, RequiredPaths: []string{"/a/b"}}, ""},
	} {
		_, err := fileop.Selected(t.Context(), v, c.a)
		var missing *fileop.NotFoundError
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.a.Src, err)
		case c.want != "" && (!errors.As(err, &missing) || err.Error() != c.want || !errors.Is(err, oci.ErrNotFound)):
			t.Errorf("%s: got %v, want %s", c.a.Src, err, c.want)
		}
	}
}

// ADD takes apart what is a tar in any packing, and nothing else.
func TestUnpackPackings(t *testing.T) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, name := range []string{"z", "a", "m/n"} { // not in canonical order
		w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: 1, Mode: 0o644, ModTime: old})
		w.Write([]byte(name[:1]))
	}
	w.Close()
	pack := func(open func(io.Writer) io.WriteCloser) string {
		var b bytes.Buffer
		z := open(&b)
		z.Write(plain.Bytes())
		z.Close()
		return b.String()
	}
	packed := map[string]string{
		"plain": plain.String(),
		"gzip":  pack(func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }),
		"zstd":  pack(func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z }),
		"xz":    pack(func(w io.Writer) io.WriteCloser { z, _ := xz.NewWriter(w); return z }),
	}
	add := dockerCopy("/file", "/x/")
	add.AttemptUnpackDockerCompatibility = true
	run := func(content string) (string, *layer.TOC, error) {
		dir := t.TempDir()
		os.WriteFile(dir+"/file", []byte(content), 0o644)
		d := fileop.New(nil)
		defer d.Close()
		if err := d.Apply(t.Context(), act(add), onDisk(t, dir), nil, now); err != nil {
			return "", nil, err
		}
		got, toc := wrote(t, d)
		return got, toc, nil
	}
	for name, content := range packed {
		if got, _, err := run(content); err != nil || got != "5x 0x/a 5x/m 0x/m/n 0x/z" {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for why, content := range map[string]string{
		"text": "no tar at all", "nothing": "", "gzip of no tar": pack(func(w io.Writer) io.WriteCloser {
			return struct {
				io.Writer
				io.Closer
			}{w, io.NopCloser(nil)}
		})[:3], "zeros": strings.Repeat("\x00", 2048),
	} {
		if got, _, err := run(content); err != nil || got != "5x 0x/file" {
			t.Errorf("%s: %s, %v", why, got, err)
		}
	}
	for name, content := range packed {
		if _, _, err := run(content[:len(content)*2/3]); err == nil && name == "gzip" {
			t.Errorf("%s: a truncated archive was taken", name)
		}
	}
	// Trap 16: names that lead out of the destination stay in it, as in the
	// chroot that docker unpacks in.
	for _, bad := range []*tar.Header{{Name: "../evil", Typeflag: tar.TypeReg}, {Name: "a/../../evil", Typeflag: tar.TypeReg}} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(bad)
		w.Close()
		if got, _, err := run(b.String()); err != nil || got != "5x 0x/evil" {
			t.Errorf("%s: %s, %v", bad.Name, got, err)
		}
	}
	var b bytes.Buffer
	w = tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "etc", Typeflag: tar.TypeDir, Mode: 0o755})
	w.WriteHeader(&tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/../../etc"})
	w.WriteHeader(&tar.Header{Name: "l/passwd", Typeflag: tar.TypeReg})
	w.Close()
	if got, _, err := run(b.String()); err != nil || got != "5x 5x/etc 0x/etc/passwd 2x/l>/../../etc" {
		t.Errorf("written through a link: %s, %v", got, err)
	}
	for _, l := range []string{"/etc", "../../etc", "up/../etc"} { // there is no such directory in the chroot
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(&tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: l})
		w.WriteHeader(&tar.Header{Name: "l/passwd", Typeflag: tar.TypeReg})
		w.Close()
		if got, _, err := run(b.String()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("written through a link to %s that leads nowhere: %s, %v", l, got, err)
		}
	}
}

// Trap 1: a hard link whose first name is replaced keeps its content.
func TestHardLinks(t *testing.T) {
	base := grow(t, "a=old", "b=>a", "c=>a")
	d := fileop.New(base)
	if err := d.Apply(t.Context(), act(&pb.FileActionMkFile{Path: "/a", Data: []byte("new"), Mode: 0o644, Timestamp: -1}), nil, nil, now); err != nil {
		t.Fatal(err)
	}
	copied := fileop.New(nil)
	if err := copied.Apply(t.Context(), act(dockerCopy("/", "/x/")), d, nil, now); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{"x/a": "new", "x/b": "old", "x/c": "old"} {
		r, err := copied.Open(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(r); string(b) != want {
			t.Errorf("%s holds %q, not %q", p, b, want)
		}
	}
	whole := fileop.New(nil)
	if err := whole.Apply(t.Context(), act(dockerCopy("/", "/x/")), base, nil, now); err != nil {
		t.Fatal(err)
	}
	if got, _ := wrote(t, whole); got != "5x 0x/a 1x/b>x/a 1x/c>x/a" {
		t.Errorf("links within a copy stay links: %s", got)
	}
	// The first name goes; the others are still links of each other.
	if err := whole.Apply(t.Context(), act(&pb.FileActionRm{Path: "/x/a"}), nil, nil, now); err != nil {
		t.Fatal(err)
	}
	if got, _ := wrote(t, whole); got != "5x 0x/b 1x/c>x/b" {
		t.Errorf("after rm of the first name: %s", got)
	}
}

// Contents that are shorter or longer than they were said to be break the
// layer, never fill it up.
func TestContentChanges(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(dir+"/f", []byte("12345"), 0o644)
	v := onDisk(t, dir)
	for _, other := range []string{"123", "1234567"} {
		d := fileop.New(nil)
		if err := d.Apply(t.Context(), act(dockerCopy("/f", "/f")), v, nil, now); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(dir+"/f", []byte(other), 0o644)
		if err := d.Write(t.Context(), layer.NewWriter(io.Discard)); err == nil {
			t.Errorf("%q was written as a file of five bytes", other)
		}
		os.WriteFile(dir+"/f", []byte("12345"), 0o644)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := fileop.New(nil)
	d.Apply(t.Context(), act(dockerCopy("/f", "/f")), v, nil, now)
	if err := d.Write(ctx, layer.NewWriter(io.Discard)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestViewErrors(t *testing.T) {
	d := grow(t, "a=1")
	for _, err := range []error{
		func() error { _, err := d.Lstat("x"); return err }(),
		func() error { _, err := d.ReadDir("x/y"); return err }(),
		func() error { _, err := fileop.New(nil).Open(t.Context(), "x"); return err }(),
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	}
}

func FuzzMode(f *testing.F) {
	for _, s := range []string{"u=rw,go=r", "a+X", "755", "+t", "g=u", "u+s,", "=", "o-", "0", "uuu=+-", ","} {
		f.Add(s, uint16(0o644))
	}
	v := grow(f, "d/f=1")
	f.Fuzz(func(t *testing.T, s string, mode uint16) {
		a := dockerCopy("/d", "/x")
		a.ModeStr = s
		d := fileop.New(nil)
		if err := d.Apply(t.Context(), act(a), v, nil, time.Unix(0, 0)); err != nil {
			if !errors.Is(err, oci.ErrInvalid) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if e, err := d.Lstat("x/f"); err != nil || e.Mode&^0o7777 != 0 {
			t.Fatalf("%q: %+v, %v", s, e, err)
		}
	})
}
