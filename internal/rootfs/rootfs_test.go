package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// open makes a store, with a lease for as long as the test runs.
func open(t testing.TB) (context.Context, *store.Store) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "strake-rootfs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ctx, release, err := s.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return ctx, s
}

// put stores a layer as a plain tar; lines as in "d path mode", "f path text",
// "l path target", "h path target", and whiteouts as files. Every entry is
// owned by 5:6 and of the second 1000.
func put(t testing.TB, ctx context.Context, s *store.Store, lines ...string) oci.Digest {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, line := range lines {
		f := append(strings.Fields(line), "")
		h := &tar.Header{Name: f[1], Mode: 0o644, Uid: 5, Gid: 6, ModTime: time.Unix(1000, 0)}
		switch f[0] {
		case "d":
			h.Typeflag, h.Mode = tar.TypeDir, 0o750
		case "f":
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f[2]))
		case "l":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f[2]
		case "h":
			h.Typeflag, h.Linkname = tar.TypeLink, f[2]
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if f[0] == "f" {
			w.Write([]byte(f[2]))
		}
	}
	w.Close()
	d := oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: digest.FromBytes(buf.Bytes()), Size: int64(buf.Len())}
	if err := s.Put(ctx, d, &buf); err != nil {
		t.Fatal(err)
	}
	return d.Digest
}

// mount mounts r as a sandbox does, runs fn and unmounts.
func mount(t testing.TB, r *Root, fn func(at string)) {
	t.Helper()
	at := t.TempDir()
	lowers := r.Lowers
	if len(lowers) == 0 {
		lowers = []string{t.TempDir()}
	}
	opts := "lowerdir=" + strings.Join(lowers, ":") + ",upperdir=" + r.Upper + ",workdir=" + r.Work + ",redirect_dir=off,metacopy=off,index=off"
	if err := unix.Mount("overlay", at, "overlay", 0, opts); err != nil {
		t.Fatalf("mount %s: %v", opts, err)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Fatal(err)
		}
	}()
	fn(at)
}

// list describes all below dir: "path mode uid time content".
func list(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		st := info.Sys().(*syscall.Stat_t)
		what := ""
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			what = string(b)
		case info.Mode()&os.ModeSymlink != 0:
			what, _ = os.Readlink(p)
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %v %d %d %s", rel, info.Mode(), st.Uid, info.ModTime().Unix(), what)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("mounting an overlay needs root")
	}
}

func TestPrepare(t *testing.T) {
	needRoot(t)
	ctx, s := open(t)
	base := put(t, ctx, s, "d ./", "d usr", "d usr/lib", "l lib usr/lib", "f usr/lib/k k", "d etc", "f etc/x x", "h etc/y etc/x", "d gone", "f gone/f f")
	tests := []struct {
		summary string
		layers  [][]string
		want    []string
		not     []string
	}{{
		"an implied directory keeps the attributes below; so does the root",
		[][]string{{"f etc/new n"}},
		[]string{". drwxr-x--- 5 1000", "etc drwxr-x--- 5 1000", "etc/new -rw-r--r-- 5 1000 n", "etc/x -rw-r--r-- 5 1000 x"}, nil,
	}, {
		"a layer that writes through a symlink below it",
		[][]string{{"f lib/a a"}},
		[]string{"lib Lrwxrwxrwx 5 1000 usr/lib", "usr/lib/a -rw-r--r-- 5 1000 a", "usr/lib drwxr-x--- 5 1000", "usr/lib/k -rw-r--r-- 5 1000 k"}, nil,
	}, {
		"a hard link to a file of a layer below (image-spec#1204), and that file overwritten",
		[][]string{{"d etc", "f etc/new n", "h etc/z etc/x"}, {"f etc/x X"}},
		[]string{"etc/z -rw-r--r-- 5 1000 x", "etc/x -rw-r--r-- 5 1000 X", "etc/y -rw-r--r-- 5 1000 x", "etc/new -rw-r--r-- 5 1000 n"}, nil,
	}, {
		"whiteouts, also where they hide nothing",
		[][]string{{"d etc", "f etc/.wh.y", "f .wh.gone", "f no/.wh.such"}},
		[]string{"etc/x -rw-r--r-- 5 1000 x"}, []string{"etc/y", "gone", "no"},
	}, {
		"an opaque root, which overlayfs does not know",
		[][]string{{"f .wh..wh..opq", "f only o"}},
		[]string{". drwxr-x--- 5 1000", "only -rw-r--r-- 5 1000 o"}, []string{"etc", "lib", "usr"},
	}}
	for _, tt := range tests {
		t.Run(tt.summary, func(t *testing.T) {
			ids := []oci.Digest{base}
			for _, l := range tt.layers {
				ids = append(ids, put(t, ctx, s, l...))
			}
			for _, turn := range []string{"first", "second"} {
				r, err := Prepare(ctx, s, ids)
				if err != nil {
					t.Fatal(err)
				}
				mount(t, r, func(at string) {
					got := list(t, at)
					for _, w := range tt.want {
						if !slices.Contains(got, w) {
							t.Errorf("%s: no %q in\n %s", turn, w, strings.Join(got, "\n "))
						}
					}
					for _, n := range tt.not {
						if slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, n+" ") }) {
							t.Errorf("%s: %s is there", turn, n)
						}
					}
				})
			}
		})
	}
}

// Overlayfs refuses a directory that is twice among the lower ones.
func TestSameLayerTwice(t *testing.T) {
	needRoot(t)
	ctx, s := open(t)
	a := put(t, ctx, s, "d d", "f d/a a", "f .wh.b")
	b := put(t, ctx, s, "f b b", "f d/a B", "d d")
	r, err := Prepare(ctx, s, []oci.Digest{a, b, a, b, a})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Lowers) != 2 {
		t.Errorf("lowers: %v", r.Lowers)
	}
	mount(t, r, func(at string) {
		if got := fmt.Sprint(list(t, at)[1:]); got != "[d drwxr-x--- 5 1000 d/a -rw-r--r-- 5 1000 a]" {
			t.Error(got)
		}
	})
}

// Overlayfs takes 500 layers.
func TestManyLayers(t *testing.T) {
	needRoot(t)
	ctx, s := open(t)
	var ids []oci.Digest
	for i := range maxLowers + 5 {
		ids = append(ids, put(t, ctx, s, "d d", fmt.Sprintf("f d/%d %d", i, i), fmt.Sprintf("f d/.wh.%d", i-2), "h link d/"+fmt.Sprint(i)))
	}
	r, err := Prepare(ctx, s, ids)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Lowers) > maxLowers {
		t.Fatalf("%d lowers", len(r.Lowers))
	}
	mount(t, r, func(at string) {
		n := maxLowers + 4
		want := fmt.Sprintf("[d drwxr-x--- 5 1000 d/%d -rw-r--r-- 5 1000 %d d/%d -rw-r--r-- 5 1000 %d link -rw-r--r-- 5 1000 %d]", n-1, n-1, n, n, n)
		if got := fmt.Sprint(list(t, at)[1:]); got != want {
			t.Error(got)
		}
	})
}

// What a process left becomes a layer; the next root is the layers and it.
func TestCommit(t *testing.T) {
	needRoot(t)
	ctx, s := open(t)
	base := put(t, ctx, s, "d ./", "d etc", "f etc/x x", "f etc/y y", "d old", "f old/f f", "d keep", "f keep/f f", "f file f")
	r, err := Prepare(ctx, s, []oci.Digest{base})
	if err != nil {
		t.Fatal(err)
	}
	scratch := filepath.Dir(r.Upper)
	var before []string
	mount(t, r, func(at string) {
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(os.WriteFile(at+"/etc/new", []byte("n"), 0o600))
		must(os.Link(at+"/etc/new", at+"/etc/link"))
		must(os.Remove(at + "/etc/x"))
		must(os.Chmod(at+"/etc/y", 0o4755))
		must(os.MkdirAll(at+"/fresh/sub", 0o711))
		must(os.RemoveAll(at + "/old"))
		must(os.Mkdir(at+"/old", 0o700))
		must(os.Remove(at + "/file"))
		must(os.MkdirAll(at+"/file/d", 0o755))
		must(unix.Mkfifo(at+"/fifo", 0o600))
		before = list(t, at)
	})
	toc, err := Commit(ctx, s, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(scratch); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the scratch directory is still there: %v", err)
	}
	var got []string
	for _, e := range toc.Entries {
		got = append(got, fmt.Sprintf("%c %s", e.Type, e.Path))
	}
	// Opaque is what replaced a directory, not what is merely new.
	want := "5 etc, 0 etc/link, 1 etc/new, w etc/x, 0 etc/y, 6 fifo, 5 file, 5 file/d, 5 fresh, 5 fresh/sub, 5 old, o old"
	if strings.Join(got, ", ") != want {
		t.Errorf("the layer is %s\nnot %s", strings.Join(got, ", "), want)
	}
	next, err := Prepare(ctx, s, []oci.Digest{base, toc.DiffID})
	if err != nil {
		t.Fatal(err)
	}
	mount(t, next, func(at string) {
		after := list(t, at)
		if !slices.Equal(after[1:], before[1:]) {
			t.Errorf("stacked again:\n %s\nwas\n %s", strings.Join(after, "\n "), strings.Join(before, "\n "))
		}
		if after[0] != ". drwxr-x--- 5 1000" {
			t.Errorf("the root is %s", after[0])
		}
	})
}

// A process that changed nothing leaves no layer, whatever it looked at.
func TestCommitNothing(t *testing.T) {
	needRoot(t)
	ctx, s := open(t)
	base := put(t, ctx, s, "d etc", "f etc/x x")
	for _, layers := range [][]oci.Digest{{base}, nil} {
		r, err := Prepare(ctx, s, layers)
		if err != nil {
			t.Fatal(err)
		}
		mount(t, r, func(at string) { os.ReadFile(at + "/etc/x") })
		if toc, err := Commit(ctx, s, r); toc != nil || err != nil {
			t.Errorf("Commit gave %v, %v", toc, err)
		}
	}
}

// A sparse file of a layer that must be unpacked for its stack keeps its content.
func TestSparse(t *testing.T) {
	needRoot(t)
	gnu, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("needs tar to write a sparse tar")
	}
	ctx, s := open(t)
	src := t.TempDir()
	f, err := os.Create(src + "/big")
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("end"), 1<<20)
	if err := errors.Join(err, f.Truncate(2<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	raw, err := exec.Command(gnu, "-C", src, "-cS", "--transform=s,^,lib/,", "big").Output()
	if err != nil || len(raw) > 1<<20 {
		t.Skipf("this tar wrote %d bytes, %v", len(raw), err)
	}
	d := oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := s.Put(ctx, d, bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	r, err := Prepare(ctx, s, []oci.Digest{put(t, ctx, s, "d usr", "l lib usr"), d.Digest})
	if err != nil {
		t.Fatal(err)
	}
	mount(t, r, func(at string) {
		b, err := os.ReadFile(at + "/usr/big")
		if err != nil || len(b) != 2<<20 || string(b[1<<20:1<<20+4]) != "end\x00" {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	})
}

func TestPrepareFails(t *testing.T) {
	ctx, s := open(t)
	if _, err := Prepare(ctx, s, []oci.Digest{digest.FromString("none")}); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("an unknown layer: %v", err)
	}
	if os.Geteuid() == 0 {
		bad := put(t, ctx, s, "h a nowhere")
		if _, err := Prepare(ctx, s, []oci.Digest{bad}); !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("a link to nothing: %v", err)
		}
	}
}

// BenchmarkPrepare is what a RUN pays for its root: trees and tables of
// contents are there.
func BenchmarkPrepare(b *testing.B) {
	ctx, s := open(b)
	var ids []oci.Digest
	var big []string
	for i := range 100 {
		d := fmt.Sprintf("usr/d%d", i)
		big = append(big, "d "+d)
		for j := range 100 {
			big = append(big, fmt.Sprintf("f %s/f%d x", d, j))
		}
	}
	ids = append(ids, put(b, ctx, s, append([]string{"d usr"}, big...)...))
	for i := range 10 {
		ids = append(ids, put(b, ctx, s, "d usr", fmt.Sprintf("f usr/new%d x", i)))
	}
	if _, err := Prepare(ctx, s, ids); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		r, err := Prepare(ctx, s, ids)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Commit(ctx, s, r); err != nil {
			b.Fatal(err)
		}
	}
}
