package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// goldenDiffID pins the canonical bytes. It must never change: an image built
// here names its layers by it before any tar exists.
const goldenDiffID = "sha256:d3b27eaf891a5915104041f085bbe090dd66f2d312b1cb0d15788ab6660f1c56"

func TestGolden(t *testing.T) {
	es, bodies := allTypes()
	raw, toc := write(t, es, bodies)
	if toc.DiffID != goldenDiffID || digestOf(raw) != toc.DiffID {
		t.Errorf("canonical tar of allTypes is %s (bytes: %s), want %s", toc.DiffID, digestOf(raw), goldenDiffID)
	}
	// One header in full, to be read.
	one, _ := write(t, []Entry{{Path: "d", Type: Dir, Mode: 0o755, UID: 1, GID: 2, ModTime: time.Unix(1, 500)}}, nil)
	pax := one[512:1024]
	if got := string(bytes.TrimRight(pax, "\x00")); got != "21 mtime=1.0000005\n" && got != "20 mtime=1.0000005\n" && got != "19 mtime=1.0000005\n" {
		t.Errorf("PAX records %q", got)
	}
	h := one[1024:1536]
	if want := "d/" + strings.Repeat("\x00", 98) + "0000755\x000000001\x000000002\x0000000000000\x0000000000001\x00"; string(h[:148]) != want {
		t.Errorf("header\n got %q\nwant %q", h[:148], want)
	}
	if len(one) != 5*512 {
		t.Errorf("%d bytes", len(one))
	}
}

func TestWriterRefuses(t *testing.T) {
	reg := func(p string) Entry { return Entry{Path: p, Type: Regular} }
	for _, c := range []struct {
		why string
		in  []Entry
	}{
		{"out of order", []Entry{reg("b"), reg("a")}},
		{"twice", []Entry{reg("a"), reg("a")}},
		{"a child sorted by bytes instead of by names", []Entry{{Path: "a", Type: Dir}, reg("a-b"), reg("a/c")}},
		{"below a file", []Entry{reg("a"), reg("a/b")}},
		{"below a whiteout", []Entry{{Path: "a", Type: Whiteout}, reg("a/b")}},
		{"an opaque file", []Entry{reg("a"), {Path: "a", Type: Opaque}}},
		{"a whiteout and a file", []Entry{{Path: "a", Type: Whiteout}, reg("a")}},
		{"a reserved name", []Entry{reg("x/.wh.a")}},
		{"an absolute name", []Entry{reg("/a")}},
		{"dots", []Entry{reg("a/../b")}},
		{"a trailing slash", []Entry{{Path: "a/", Type: Dir}}},
		{"NUL", []Entry{reg("a\x00b")}},
		{"an empty name", []Entry{reg("")}},
		{"a root that is a file", []Entry{reg(".")}},
		{"a link before its target", []Entry{{Path: "a", Type: HardLink, Link: "b"}, reg("b")}},
		{"a link to a directory", []Entry{{Path: "a", Type: Dir}, {Path: "b", Type: HardLink, Link: "a"}}},
		{"a link to a link", []Entry{reg("a"), {Path: "b", Type: HardLink, Link: "a"}, {Path: "c", Type: HardLink, Link: "b"}}},
		{"an empty symlink", []Entry{{Path: "a", Type: Symlink}}},
		{"a whiteout by device", []Entry{{Path: "a", Type: Char}}},
		{"a negative owner", []Entry{{Path: "a", Type: Dir, UID: -1}}},
		{"no type", []Entry{{Path: "a"}}},
	} {
		w := NewWriter(io.Discard)
		var err error
		for _, e := range c.in {
			err = w.Write(e, nil)
		}
		if !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("%s: %v", c.why, err)
		}
		if _, err := w.Close(); err == nil {
			t.Errorf("%s: Close succeeds on a broken Writer", c.why)
		}
	}
	for _, body := range []string{"1234", "123456"} {
		w := NewWriter(io.Discard)
		if err := w.Write(Entry{Path: "a", Type: Regular, Size: 5}, strings.NewReader(body)); !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("%d of 5 bytes: %v", len(body), err)
		}
	}
}

// A tree made by hand, with all that only a kernel makes.
func TestPackTree(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	p := func(name string) string { return filepath.Join(root, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(p("d/sub"), 0o755))
	must(os.WriteFile(p("d/z"), []byte("zz"), 0o644))
	must(os.Link(p("d/z"), p("a"))) // comes first, so it carries the content
	must(os.Chown(p("a"), 5, 6))
	must(os.Chmod(p("a"), 0o755|os.ModeSetuid|os.ModeSetgid))
	must(unix.Setxattr(p("a"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(unix.Mknod(p("w1"), unix.S_IFCHR, 0))
	must(os.Link(p("w1"), p("w2"))) // as the kernel shares whiteouts
	must(unix.Setxattr(p("d"), "trusted.overlay.opaque", []byte("y"), 0))
	must(unix.Setxattr(p("d/sub"), "trusted.overlay.opaque", []byte("x"), 0))
	must(unix.Setxattr(p("d"), "trusted.overlay.origin", []byte("o"), 0))
	must(os.Symlink("nowhere", p("l")))
	must(os.Link(p("l"), p("l2")))
	l, err := net.Listen("unix", p("sock"))
	must(err)
	defer l.Close()
	toc, err := Pack(context.Background(), io.Discard, root)
	must(err)
	var got []string
	for _, e := range toc.Entries {
		got = append(got, fmt.Sprintf("%c %s %o %d:%d %s %d", e.Type, e.Path, e.Mode, e.UID, e.GID, e.Link, len(e.Xattrs)))
	}
	want := []string{"0 a 6755 5:6  1", "5 d 755 0:0  0", "o d 0 0:0  0", "5 d/sub 755 0:0  0", "1 d/z 6755 5:6 a 1",
		"2 l 777 0:0 nowhere 0", "1 l2 777 0:0 l 0", "w w1 0 0:0  0", "w w2 0 0:0  0"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("entries\n got %q\nwant %q", got, want)
	}
	repack(t, root)

	must(unix.Setxattr(p("d"), "trusted.overlay.redirect", []byte("/x"), 0))
	if _, err := Pack(context.Background(), io.Discard, root); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("a redirected directory: %v", err)
	}
}

// A file that grows or shrinks under Pack is an error, and so is a name that
// would be a whiteout.
func TestPackChanging(t *testing.T) {
	for _, size := range []int64{0, 10 << 20} {
		root := t.TempDir()
		name := filepath.Join(root, "b")
		os.WriteFile(filepath.Join(root, "a"), make([]byte, 1<<20), 0o644)
		os.WriteFile(name, make([]byte, 5<<20), 0o644)
		_, err := Pack(context.Background(), &onWrite{act: func() { os.Truncate(name, size) }}, root)
		if !errors.Is(err, oci.ErrConflict) || !strings.Contains(err.Error(), "changed while it was read") {
			t.Errorf("to %d bytes: %v", size, err)
		}
	}
	root := t.TempDir()
	os.WriteFile(filepath.Join(root, ".wh.x"), nil, 0o644)
	if _, err := Pack(context.Background(), io.Discard, root); err == nil || !strings.Contains(err.Error(), "rename it") {
		t.Errorf("a reserved name: %v", err)
	}
}

// onWrite acts once, when the content of b has been begun.
type onWrite struct {
	act func()
	n   int
}

func (w *onWrite) Write(b []byte) (int, error) {
	if w.n += len(b); w.n > 2<<20 && w.act != nil {
		w.act()
		w.act = nil
	}
	return len(b), nil
}

// Setuid bits and capabilities survive (trap 6), and a directory's time is not
// changed by what is put into it.
func TestUnpackAttributes(t *testing.T) {
	needRoot(t)
	at := time.Unix(1600000000, 123)
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	raw, _ := write(t, []Entry{
		{Path: ".", Type: Dir, Mode: 0o711, UID: 3, ModTime: at},
		{Path: "d", Type: Dir, Mode: 0o500, UID: 9, GID: 8, ModTime: at},
		{Path: "d/f", Type: Regular, Mode: 0o6755, UID: 1000, GID: 1001, ModTime: at, Xattrs: map[string]string{"security.capability": capability}},
		{Path: "i/g", Type: Regular, Mode: 0o666, ModTime: at},
	}, map[string]string{"d/f": "x"})
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	root := t.TempDir()
	toc, err := Unpack(context.Background(), bytes.NewReader(raw), root, UnpackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path     string
		mode     uint32
		uid, gid uint32
		at       time.Time
	}{{".", 0o711, 3, 0, at}, {"d", 0o500, 9, 8, at}, {"d/f", 0o6755, 1000, 1001, at}, {"i/g", 0o666, 0, 0, at}, {"i", 0o755, 0, 0, time.Unix(0, 0)}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, c.path), &st); err != nil {
			t.Fatal(err)
		}
		if m := st.Mode & 0o7777; m != c.mode || st.Uid != c.uid || st.Gid != c.gid || !time.Unix(st.Mtim.Unix()).Equal(c.at) {
			t.Errorf("%s: mode %o owner %d:%d time %v", c.path, m, st.Uid, st.Gid, st.Mtim)
		}
	}
	b := make([]byte, 64)
	if n, err := unix.Getxattr(filepath.Join(root, "d/f"), "security.capability", b); err != nil || string(b[:n]) != capability {
		t.Errorf("capability: %v", err)
	}
	if got := fmt.Sprint(toc.Implied()); got != "[i]" {
		t.Errorf("implied %s", got)
	}
	repack(t, root)
}

// A hard link to a file of a lower layer (image-spec issue 1204) is a copy.
func TestUnpackBelow(t *testing.T) {
	needRoot(t)
	raw := foreign(t, hardlink("usr/b", "bin/a"), file("usr/c", "1"))
	root := t.TempDir()
	_, err := Unpack(context.Background(), bytes.NewReader(raw), root, UnpackOptions{
		Relocate: func(p string) string { return strings.Replace(p, "usr/", "opt/", 1) },
		Below: func(p string) (io.ReadCloser, error) {
			if p != "bin/a" {
				return nil, oci.ErrNotFound
			}
			return io.NopCloser(strings.NewReader("below")), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(listing(t, root), "; "); got != "d opt; f opt/b below; f opt/c 1" {
		t.Error(got)
	}
}

func TestUnpackCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Unpack(ctx, bytes.NewReader(foreign(t, file("a", "1"))), t.TempDir(), UnpackOptions{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestCompress(t *testing.T) {
	for _, size := range []int{0, 1, 100000, 9<<20 + 1} {
		raw := bytes.Repeat([]byte("compressible, but not too much; "), size/32+1)[:size]
		for i := range raw {
			raw[i] ^= byte(i >> 12)
		}
		for _, p := range []Packing{Gzip, Zstd} {
			pack := func() []byte {
				var b bytes.Buffer
				w, err := Compress(&b, p)
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i < len(raw); i += 70000 {
					if _, err := w.Write(raw[i:min(i+70000, len(raw))]); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				return b.Bytes()
			}
			one := pack()
			was := runtime.GOMAXPROCS(1)
			two := pack()
			runtime.GOMAXPROCS(was)
			if !bytes.Equal(one, two) {
				t.Errorf("%s of %d bytes depends on the number of cores", p, size)
			}
			r, got, err := Decompress(bytes.NewReader(one))
			if err != nil || got != p {
				t.Fatal(got, err)
			}
			back, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(back, raw) {
				t.Errorf("%s of %d bytes: %d came back, %v", p, size, len(back), err)
			}
			r.Close()
			if size < 100 {
				continue
			}
			r, _, err = Decompress(bytes.NewReader(one[:len(one)-9]))
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			if !errors.Is(err, oci.ErrInvalid) {
				t.Errorf("%s truncated: %v", p, err)
			}
			r, _, err = Decompress(io.MultiReader(bytes.NewReader(one[:len(one)/2]), failing{}))
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			if !errors.Is(err, errBelow) {
				t.Errorf("%s, reader fails: %v", p, err)
			}
		}
	}
}

func TestSniff(t *testing.T) {
	for in, want := range map[string]Packing{"": Plain, "\x1f": Plain, "\x1f\x8b\x08": Gzip, "\x28\xb5\x2f\xfd": Zstd,
		"\x5a\x2a\x4d\x18": Zstd, "BZh9": Bzip2, "\xfd7zXZ\x00": XZ, "etc/passwd": Plain} {
		if got := Sniff([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	// bzip2 and xz of "hello\n", and a damaged one.
	for _, c := range []struct {
		p  Packing
		in string
	}{{Bzip2, "BZh91AY&SY\xc1\xc0\x80\xe2\x00\x00\x01A\x00\x00\x10\x02D\xa0\x000\xcd\x00\xc3F)\x97\x17rE8P\x90\xc1\xc0\x80\xe2"}} {
		r, p, err := Decompress(strings.NewReader(c.in))
		if err != nil || p != c.p {
			t.Fatal(p, err)
		}
		if b, err := io.ReadAll(r); string(b) != "hello\n" || err != nil {
			t.Errorf("%s: %q %v", p, b, err)
		}
	}
}
