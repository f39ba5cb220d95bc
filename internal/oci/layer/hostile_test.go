package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// foreign writes a tar as somebody else's program would.
func foreign(t testing.TB, hs ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		body := ""
		if h.Typeflag == 0 || h.Typeflag == tar.TypeReg {
			h.Typeflag = tar.TypeReg
			body = h.Uname // the test's way to say what is in it
			h.Uname, h.Size = "", int64(len(body))
		}
		if h.Mode == 0 && h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%.99q: %v", h.Name, err)
		}
		io.WriteString(w, body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) tar.Header { return tar.Header{Name: name, Uname: body} }
func dir(name string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}
}
func symlink(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
}
func hardlink(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}
}

// listing shows a tree as lines: type, path, content or target.
func listing(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		switch {
		case d.IsDir():
			line := "d " + rel
			var b [8]byte
			if n, err := unix.Lgetxattr(p, overlayTrusted+opaqueXattr, b[:]); err == nil && string(b[:n]) == "y" {
				line += " opaque"
			}
			out = append(out, line)
		case d.Type()&os.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			out = append(out, "l "+rel+" "+to)
		case isWhiteout(&st):
			out = append(out, "w "+rel)
		case d.Type().IsRegular():
			b, _ := os.ReadFile(p)
			out = append(out, fmt.Sprintf("f %s %s", rel, b))
		default:
			out = append(out, fmt.Sprintf("? %s %d:%d", rel, unix.Major(st.Rdev), unix.Minor(st.Rdev)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(out)
	return out
}

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices and trusted xattrs")
	}
}

func TestForeign(t *testing.T) {
	needRoot(t)
	long := strings.Repeat("x", 150)
	for _, c := range []struct {
		why  string
		in   []tar.Header
		want string // of the tree, one line for each node, "; " between
		bad  string // of the error
	}{
		{why: "./ prefixes and a named root", in: []tar.Header{dir("./"), dir("./a/"), file("./a/f", "1")}, want: "d a; f a/f 1"},
		{why: "an absolute name lies in the root", in: []tar.Header{file("/etc/f", "1")}, want: "d etc; f etc/f 1"},
		{why: "../ cannot leave the root", in: []tar.Header{file("../../up", "1"), file("a/../../b", "2")}, want: "f b 2; f up 1"},
		{why: "a symlink out of the root, then a write through it", in: []tar.Header{symlink("out", "/tmp"), file("out/f", "1")}, want: "d tmp; f tmp/f 1; l out /tmp"},
		{why: "the same with ../..", in: []tar.Header{symlink("a/out", "../../../tmp"), file("a/out/f", "1")}, want: "d a; d tmp; f tmp/f 1; l a/out ../../../tmp"},
		{why: "a chain of symlinks", in: []tar.Header{symlink("a", "b"), symlink("b", "c"), file("a/f", "1")}, want: "d c; f c/f 1; l a b; l b c"},
		{why: "a file written over a symlink does not follow it", in: []tar.Header{file("t", "old"), symlink("l", "t"), file("l", "new")}, want: "f l new; f t old"},
		{why: "a symlink loop in a parent", in: []tar.Header{symlink("a", "b"), symlink("b", "a"), file("a/f", "1")}, bad: "255 symlinks"},
		{why: "a symlink that grows with each turn", in: []tar.Header{symlink("a", "a/a/a"), file("a/f", "1")}, bad: "invalid"},
		{why: "the last of two files wins", in: []tar.Header{file("f", "1"), file("f", "22")}, want: "f f 22"},
		{why: "a directory named twice keeps what is in it", in: []tar.Header{dir("d"), file("d/f", "1"), dir("d")}, want: "d d; f d/f 1"},
		{why: "a file replaces a directory and all in it", in: []tar.Header{dir("d"), file("d/e/f", "1"), file("d", "2")}, want: "f d 2"},
		{why: "and the other way round", in: []tar.Header{file("d", "2"), dir("d"), file("d/f", "1")}, want: "d d; f d/f 1"},
		{why: "a directory replaced by a symlink, then written through", in: []tar.Header{dir("lib"), file("lib/a", "1"), symlink("lib", "usr/lib"), file("lib/b", "2")}, want: "d usr; d usr/lib; f usr/lib/b 2; l lib usr/lib"},
		{why: "a symlink replaced by a directory", in: []tar.Header{symlink("lib", "usr"), dir("lib"), file("lib/b", "2")}, want: "d lib; f lib/b 2"},
		{why: "a file is no parent", in: []tar.Header{file("a", "1"), file("a/b", "2")}, bad: "no directory"},
		{why: "an implied parent", in: []tar.Header{file("a/b/c", "1")}, want: "d a; d a/b; f a/b/c 1"},
		{why: "a hard link", in: []tar.Header{file("a", "1"), hardlink("b/c", "./a")}, want: "d b; f a 1; f b/c 1"},
		{why: "a hard link keeps the content of an overwritten target", in: []tar.Header{file("a", "1"), hardlink("b", "a"), file("a", "2")}, want: "f a 2; f b 1"},
		{why: "a hard link replaces what is there", in: []tar.Header{file("a", "1"), file("b", "2"), hardlink("b", "a")}, want: "f a 1; f b 1"},
		{why: "a hard link out of the root", in: []tar.Header{hardlink("b", "../../etc/passwd")}, bad: `"etc/passwd", which this layer does not have`},
		{why: "a hard link through a symlink out of the root", in: []tar.Header{symlink("e", "/etc"), hardlink("b", "e/passwd")}, bad: `"etc/passwd", which this layer does not have`},
		{why: "a hard link to itself", in: []tar.Header{file("a", "1"), hardlink("a", "./a")}, bad: "itself"},
		{why: "a hard link to a directory", in: []tar.Header{dir("d"), hardlink("a", "d")}, bad: "directory"},
		{why: "a hard link over the directory of its target", in: []tar.Header{file("d/f", "1"), hardlink("d", "d/f")}, bad: "replaces"},
		{why: "a hard link to what a whiteout took", in: []tar.Header{file(".wh.a", ""), hardlink("b", "a")}, bad: "does not have"},
		{why: "whiteout and opaque", in: []tar.Header{file("a/.wh.b", ""), file("c/.wh..wh..opq", "")}, want: "d a; d c opaque; w a/b"},
		{why: "a whiteout spares what its own layer has, before", in: []tar.Header{file("a", "1"), file(".wh.a", "")}, want: "f a 1"},
		{why: "and after it", in: []tar.Header{file(".wh.a", ""), file("a", "1")}, want: "f a 1"},
		{why: "a whiteout and a directory make an opaque one", in: []tar.Header{file(".wh.a", ""), dir("a")}, want: "d a opaque"},
		{why: "before or after", in: []tar.Header{dir("a"), file(".wh.a", "")}, want: "d a opaque"},
		{why: "or an implied one", in: []tar.Header{file(".wh.a", ""), file("a/b/c", "1")}, want: "d a opaque; d a/b; f a/b/c 1"},
		{why: "a whiteout does not follow a symlink", in: []tar.Header{file("d/f", "1"), symlink("l", "d"), file(".wh.l", "")}, want: "d d; f d/f 1; l l d"},
		{why: "an opaque through a symlink is one of the directory", in: []tar.Header{dir("d"), symlink("l", "d"), file("l/.wh..wh..opq", "")}, want: "d d opaque; l l d"},
		{why: "aufs' bookkeeping means nothing", in: []tar.Header{file(".wh..wh.aufs", ""), dir(".wh..wh.plnk/"), file(".wh..wh.plnk/1.2", "x"), file("a/.wh..wh.orph", ""), file("f", "1")}, want: "f f 1"},
		{why: "a nested whiteout name is a whiteout of .wh.x", in: []tar.Header{file(".wh..wh", "")}, want: "w .wh"},
		{why: "a whiteout of nothing", in: []tar.Header{file("a/.wh.", "")}, bad: "whiteout"},
		{why: "a whiteout of the directory itself", in: []tar.Header{file("a/.wh..", "")}, bad: "whiteout"},
		{why: "a whiteout of the parent", in: []tar.Header{file("a/.wh...", "")}, bad: "whiteout"},
		{why: "a 0/0 device is overlayfs' whiteout", in: []tar.Header{{Name: "w", Typeflag: tar.TypeChar}}, want: "w w"},
		{why: "devices and fifos", in: []tar.Header{{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, {Name: "p", Typeflag: tar.TypeFifo}}, want: "? null 1:3; ? p 0:0"},
		{why: "a device is not written to", in: []tar.Header{{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, file("null", "1")}, want: "f null 1"},
		{why: "a name with a newline", in: []tar.Header{file("a\nb", "1")}, want: "f a\nb 1"},
		{why: "GNU long names", in: []tar.Header{{Name: long + "/" + long, Uname: "1", Format: tar.FormatGNU}}, want: "d " + long + "; f " + long + "/" + long + " 1"},
		{why: "a name longer than NAME_MAX", in: []tar.Header{file(strings.Repeat("n", 300), "1")}, bad: "file name of 300 bytes"},
		{why: "a path longer than PATH_MAX", in: []tar.Header{file(strings.Repeat("n/", 3000)+"f", "1")}, bad: "invalid"},
		{why: "too deep a path", in: []tar.Header{file(strings.Repeat("n/", 1500)+"f", "1")}, bad: "directories"},
		{why: "a root that is a file", in: []tar.Header{symlink("./", "x")}, bad: "root"},
		{why: "an empty symlink", in: []tar.Header{symlink("a", "")}, bad: "symlink"},
		{why: "an id that chown cannot express", in: []tar.Header{{Name: "f", Uid: 1 << 32}}, bad: "owner"},
		{why: "an xattr of overlayfs is left out", in: []tar.Header{{Name: "d", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}}}, want: "d d"},
		{why: "an xattr of a megabyte", in: []tar.Header{{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.user.k": strings.Repeat("v", 900<<10)}}}, bad: "xattr"},
		{why: "git's global header", in: []tar.Header{{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}, file("f", "1")}, want: "f f 1"},
	} {
		t.Run(c.why, func(t *testing.T) {
			raw := foreign(t, c.in...)
			// Beside the directory lies what must not be touched.
			base := t.TempDir()
			root := filepath.Join(base, "x", "root")
			os.MkdirAll(root, 0o755)
			toc, err := Unpack(context.Background(), bytes.NewReader(raw), root, UnpackOptions{})
			if outside := listing(t, base); !insideOnly(outside) {
				t.Fatalf("touched outside: %q", outside)
			}
			if c.bad != "" {
				if err == nil || !strings.Contains(err.Error(), c.bad) || !errors.Is(err, oci.ErrInvalid) {
					t.Fatalf("error %v, want one with %q", err, c.bad)
				}
				if strings.Contains(err.Error(), "\n") || len(err.Error()) > 900 {
					t.Fatalf("not one short line: %q", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(listing(t, root), "; "); got != c.want {
				t.Errorf("tree\n got %q\nwant %q", got, c.want)
			}
			ix, err := Index(bytes.NewReader(raw))
			if err != nil {
				t.Fatal("Index:", err)
			}
			if d := cmp.Diff(toc, ix); d != "" {
				t.Errorf("Index and Unpack differ:\n%s", d)
			}
			repack(t, root)
		})
	}
}

func insideOnly(lines []string) bool {
	for _, l := range lines {
		if l != "d x" && !strings.HasPrefix(l, "d x/root") && !strings.HasPrefix(l[1:], " x/root/") {
			return false
		}
	}
	return true
}

// repack checks that packing root and unpacking that is a fixed point. Of
// names that a layer cannot hold it asks nothing.
func repack(t testing.TB, root string) {
	t.Helper()
	ctx := context.Background()
	var one, two bytes.Buffer
	a, err := Pack(ctx, &one, root)
	if errors.Is(err, oci.ErrInvalid) && strings.Contains(err.Error(), ".wh.") {
		return
	}
	if err != nil {
		t.Fatal("Pack:", err)
	}
	again, err := os.MkdirTemp("", "layer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(again)
	b, err := Unpack(ctx, bytes.NewReader(one.Bytes()), again, UnpackOptions{})
	if err != nil {
		t.Fatal("Unpack of what Pack wrote:", err)
	}
	if d := cmp.Diff(a, b); d != "" {
		t.Fatalf("TOCs of Pack and Unpack differ:\n%s", d)
	}
	c, err := Pack(ctx, &two, again)
	if err != nil {
		t.Fatal("Pack again:", err)
	}
	if a.DiffID != c.DiffID || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Fatalf("Pack of the unpacked tar has other bytes:\n%s", cmp.Diff(a, c))
	}
}

// header512 is a ustar header by hand, for what archive/tar refuses to write.
func header512(name string, flag byte, size int64) []byte {
	b := make([]byte, blockSize)
	copy(b, name)
	ustar(b, 0o644, 0, 0, size, 0, flag)
	checksum(b)
	return b
}

func TestMalformed(t *testing.T) {
	whole := foreign(t, file("a", "hello"), file("b", strings.Repeat("x", 5000)))
	pax := func(records string) []byte {
		b := append(header512("x", 'x', int64(len(records))), records...)
		for len(b)%blockSize != 0 {
			b = append(b, 0)
		}
		return append(append(b, header512("f", '0', 0)...), make([]byte, 1024)...)
	}
	for _, c := range []struct {
		why string
		in  []byte
		bad bool
	}{
		{"empty: a layer without entries", nil, false},
		{"only the end of the archive", make([]byte, 1024), false},
		{"no end of the archive", whole[:len(whole)-1024], false},
		{"cut in a content", whole[:1500], true},
		{"cut in a header", whole[:1100], true},
		{"not a tar", bytes.Repeat([]byte("no tar "), 200), true},
		{"a bad checksum", append([]byte{'z'}, whole[1:]...), true},
		{"a PAX header of gigabytes", header512("x", 'x', 4<<30), true},
		{"a GNU long name of gigabytes", header512("././@LongLink", 'L', 4<<30), true},
		{"a PAX path with NUL", pax("12 path=a\x00b\n"), true},
		{"a PAX size below 0", pax("11 size=-5\n"), true},
		{"a PAX record that lies about its length", pax("999 path=ab\n"), true},
		{"a type no layer has", append(header512("v", 'V', 0), make([]byte, 1024)...), true},
		{"a size of 8 GiB and nothing behind it", header512("f", '0', 1<<33-1), true},
	} {
		t.Run(c.why, func(t *testing.T) {
			_, err := Index(bytes.NewReader(c.in))
			if (err != nil) != c.bad || err != nil && !errors.Is(err, oci.ErrInvalid) {
				t.Errorf("Index: %v", err)
			}
			_, err = Unpack(context.Background(), bytes.NewReader(c.in), t.TempDir(), UnpackOptions{})
			if (err != nil) != c.bad || err != nil && !errors.Is(err, oci.ErrInvalid) {
				t.Errorf("Unpack: %v", err)
			}
		})
	}
}

// The diffID covers what comes after the end of the archive, too.
func TestTrailingBytes(t *testing.T) {
	raw := append(foreign(t, file("a", "1")), bytes.Repeat([]byte{0}, 10240)...)
	raw = append(raw, "garbage"...)
	toc, err := Index(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if want := digestOf(raw); toc.DiffID != want || toc.Size != int64(len(raw)) {
		t.Errorf("%s, %d bytes; want %s, %d", toc.DiffID, toc.Size, want, len(raw))
	}
}

func digestOf(b []byte) oci.Digest { return oci.DescriptorOf("", b).Digest }

// Every offset points at its file's content, whatever headers come before it.
func TestOffsets(t *testing.T) {
	at := time.Unix(1, 5)
	raw := foreign(t, file("a", "first"),
		tar.Header{Name: strings.Repeat("l/", 100) + "f", Uname: "second", Format: tar.FormatGNU},
		tar.Header{Name: "p", Uname: "third", ModTime: at, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.k": "v"}},
		file("a", "fourth"))
	toc, err := Index(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"first", "second", "third", "fourth"} {
		e := toc.Entries[i]
		if got := string(raw[e.Offset : e.Offset+e.Size]); got != want || e.Digest != digestOf([]byte(want)) {
			t.Errorf("%s: offset %d holds %q, digest %s", e.Path, e.Offset, got, e.Digest)
		}
	}
}

// An error of the reader below comes through as it is, and is not called a
// malformed tar: a wrong digest must stay one.
func TestReaderError(t *testing.T) {
	raw := foreign(t, file("a", strings.Repeat("x", 100000)))
	for n := 0; n < len(raw); n += 9973 {
		r := io.MultiReader(bytes.NewReader(raw[:n]), failing{})
		if _, err := Index(r); !errors.Is(err, errBelow) || errors.Is(err, oci.ErrInvalid) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
}

var errBelow = errors.New("the cable is out")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBelow }

// GNU tar's sparse files, old and PAX form (trap 7): expanded with holes, and
// no disk is filled with zeros.
func TestSparse(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("needs GNU tar to write sparse files")
	}
	src := t.TempDir()
	f, err := os.Create(filepath.Join(src, "lastlog"))
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 28
	f.WriteAt([]byte("end"), size-3)
	f.WriteAt([]byte("mid"), 1<<20)
	f.Close()
	for _, format := range []string{"gnu", "posix"} {
		raw, err := exec.Command("tar", "-C", src, "--sparse", "--format="+format, "-cf", "-", "lastlog").Output()
		if err != nil {
			t.Fatal(err)
		}
		dst := t.TempDir()
		toc, err := Unpack(context.Background(), bytes.NewReader(raw), dst, UnpackOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dst, "lastlog"), &st); err != nil {
			t.Fatal(err)
		}
		if e := toc.Entries[0]; e.Size != size || e.Offset != -1 || st.Size != size {
			t.Errorf("%s: entry %+v, file %d bytes", format, e, st.Size)
		}
		if st.Blocks*512 > 1<<20 {
			t.Errorf("%s: takes %d bytes of disk", format, st.Blocks*512)
		}
		if out, err := exec.Command("cmp", filepath.Join(src, "lastlog"), filepath.Join(dst, "lastlog")).CombinedOutput(); err != nil {
			t.Errorf("%s: %s", format, out)
		}
	}
}

// Of a sparse file that expands to a terabyte nothing is written.
func TestSparseBomb(t *testing.T) {
	recs := ""
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=bomb", fmt.Sprintf("GNU.sparse.realsize=%d", int64(1)<<40)} {
		n := len(kv) + 4
		if n >= 10 && n < 100 {
			recs += fmt.Sprintf("%02d %s\n", n, kv)
		}
	}
	raw := append(header512("x", 'x', int64(len(recs))), recs...)
	raw = append(raw, make([]byte, blockSize-len(raw)%blockSize)...)
	raw = append(raw, header512("GNUSparseFile.0/bomb", '0', blockSize)...)
	raw = append(raw, fmt.Sprintf("1\n%d\n0\n", int64(1)<<40)...)
	raw = append(raw, make([]byte, blockSize-len(raw)%blockSize)...)
	raw = append(raw, make([]byte, 1024)...)
	if _, err := Index(bytes.NewReader(raw)); !errors.Is(err, oci.ErrInvalid) || !strings.Contains(err.Error(), "sparse") {
		t.Fatal(err)
	}
}

func seeds(f *testing.F) {
	add := func(b []byte) { f.Add(b) }
	add(foreign(f, dir("a"), file("a/b", "hello"), symlink("l", "a"), file("l/c", "2"), hardlink("h", "a/b"), file(".wh.x", ""), file("a/.wh..wh..opq", "")))
	add(foreign(f, file("../x", "1"), symlink("e", "/etc"), file("e/passwd", "2"), hardlink("k", "e/shadow")))
	add(foreign(f, dir("d"), file("d/f", "1"), file("d", "2"), dir("d"), file(".wh.d", "")))
	add(foreign(f, tar.Header{Name: "p", Uname: "b", ModTime: time.Unix(-1, 5), Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.k": "v"}}))
	add(foreign(f, tar.Header{Name: strings.Repeat("l/", 100), Typeflag: tar.TypeDir, Format: tar.FormatGNU}))
	es, bodies := allTypes()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, e := range es {
		body := bodies[e.Path][:min(len(bodies[e.Path]), 600)]
		if e.Type == Regular {
			e.Size = int64(len(body))
		}
		if err := w.Write(e, strings.NewReader(body)); err != nil {
			f.Fatal(err)
		}
	}
	w.Close()
	add(b.Bytes())
}

// resum repairs the checksums of what looks like headers, so that the fuzzer
// gets past them.
func resum(b []byte) []byte {
	b = bytes.Clone(b)
	for i := 0; i+blockSize <= len(b); i += blockSize {
		if h := b[i : i+blockSize]; string(h[257:262]) == "ustar" {
			checksum(h)
		}
	}
	return b
}

func FuzzIndex(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		raw := resum(b)
		toc, err := Index(bytes.NewReader(raw))
		if err != nil {
			if !errors.Is(err, oci.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if toc.DiffID != digestOf(raw) {
			t.Fatal("diffID")
		}
		for _, e := range toc.Entries {
			if p, err := cleanName(e.Path); err != nil || p != e.Path {
				t.Fatalf("path %q is not clean", e.Path)
			}
			if e.Type == Regular && e.Offset >= 0 && e.Digest != digestOf(raw[e.Offset:e.Offset+e.Size]) {
				t.Fatalf("%q: offset and digest disagree", e.Path)
			}
		}
		enc, err := toc.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var back TOC
		if err := back.UnmarshalBinary(enc); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(toc.Entries, back.Entries); d != "" {
			t.Fatal(d)
		}
		toc.Implied()
	})
}

func FuzzUnpack(f *testing.F) {
	needRoot(f)
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		base, err := os.MkdirTemp("/dev/shm", "fuzz")
		if err != nil {
			t.Skip("needs /dev/shm")
		}
		defer os.RemoveAll(base)
		root := filepath.Join(base, "x", "root")
		os.MkdirAll(root, 0o755)
		raw := resum(b)
		toc, err := Unpack(context.Background(), bytes.NewReader(raw), root, UnpackOptions{})
		if outside := listing(t, base); !insideOnly(outside) {
			t.Fatalf("touched outside: %q", outside)
		}
		if err != nil {
			return
		}
		ix, err := Index(bytes.NewReader(raw))
		if err != nil {
			t.Fatal("Unpack accepts, Index refuses:", err)
		}
		if d := cmp.Diff(toc, ix); d != "" {
			t.Fatal(d)
		}
		repack(t, root)
	})
}

func FuzzTOC(f *testing.F) {
	es, bodies := allTypes()
	w := NewWriter(io.Discard)
	for _, e := range es {
		if e.Type == Regular {
			e.Size = int64(len(bodies[e.Path]))
		}
		if err := w.Write(e, strings.NewReader(bodies[e.Path])); err != nil {
			f.Fatal(err)
		}
	}
	toc, _ := w.Close()
	enc, _ := toc.MarshalBinary()
	f.Add(enc)
	f.Add([]byte(tocMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		var toc TOC
		if err := toc.UnmarshalBinary(b); err != nil && !errors.Is(err, oci.ErrCorrupt) {
			t.Fatal(err)
		}
		if len(b) < 8 {
			return
		}
		b = binary.BigEndian.AppendUint64(bytes.Clone(b[:len(b)-8]), tocSum(b[:len(b)-8]))
		if err := toc.UnmarshalBinary(b); err != nil {
			if !errors.Is(err, oci.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		enc, err := toc.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var back TOC
		if err := back.UnmarshalBinary(enc); err != nil {
			t.Fatal(err)
		}
	})
}
