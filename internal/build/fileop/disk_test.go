package fileop_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/build/fileop"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// diskView shows a real directory with its real owners, as a stack shows what
// was packed of it.
type diskView struct {
	root  string
	links map[uint64]string
}

func onDisk(t testing.TB, root string) *diskView {
	t.Helper()
	v := &diskView{root, map[uint64]string{}}
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st := stat(t, p)
		if _, ok := v.links[st.Ino]; !ok && st.Nlink > 1 {
			v.links[st.Ino] = relTo(root, p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func relTo(root, p string) string {
	r, _ := filepath.Rel(root, p)
	return r
}

func stat(t testing.TB, p string) *syscall.Stat_t {
	t.Helper()
	fi, err := os.Lstat(p)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t)
}

func (v *diskView) Lstat(p string) (*layer.Entry, error) {
	full := filepath.Join(v.root, p)
	fi, err := os.Lstat(full)
	if err != nil {
		return nil, err
	}
	st := fi.Sys().(*syscall.Stat_t)
	e := &layer.Entry{Path: p, Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid), ModTime: fi.ModTime()}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		e.Type = layer.Dir
	case syscall.S_IFREG:
		e.Type, e.Size = layer.Regular, st.Size
		if first := v.links[st.Ino]; first != p {
			e.Link = first
		}
	case syscall.S_IFLNK:
		e.Type = layer.Symlink
		e.Link, _ = os.Readlink(full)
	case syscall.S_IFCHR:
		e.Type, e.DevMajor, e.DevMinor = layer.Char, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case syscall.S_IFIFO:
		e.Type = layer.Fifo
	default:
		return nil, fmt.Errorf("%s: mode %o", p, st.Mode)
	}
	buf := make([]byte, 1024)
	n, _ := unix.Llistxattr(full, buf)
	for _, name := range strings.Split(string(buf[:max(n, 0)]), "\x00") {
		if val := make([]byte, 256); strings.HasPrefix(name, "user.") || name == "security.capability" {
			n, err := unix.Lgetxattr(full, name, val)
			if err != nil {
				return nil, err
			}
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[name] = string(val[:n])
		}
	}
	return e, nil
}

func (v *diskView) ReadDir(p string) ([]*layer.Entry, error) {
	all, err := os.ReadDir(filepath.Join(v.root, p))
	if err != nil {
		return nil, err
	}
	var out []*layer.Entry
	for _, d := range all {
		e, err := v.Lstat(path.Join(p, d.Name()))
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

func (v *diskView) Open(_ context.Context, p string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(v.root, p))
}

func (v *diskView) Digest(_ context.Context, p string) (oci.Digest, error) {
	b, err := os.ReadFile(filepath.Join(v.root, p))
	return digest.FromBytes(b), err
}

// now is the time given to Apply; old is before it, that of what exists.
var (
	now = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	old = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
)

// show lists all of v, one line for each entry: "type mode uid:gid time path
// ...". Times at or after since are NOW.
func show(t testing.TB, v tree.View, since time.Time) []string {
	t.Helper()
	var out []string
	first := map[string]string{}
	var down func(p string)
	down = func(p string) {
		all, err := v.ReadDir(p)
		if err != nil {
			t.Fatalf("ReadDir %s: %v", p, err)
		}
		if !sort.SliceIsSorted(all, func(i, j int) bool { return all[i].Path < all[j].Path }) {
			t.Errorf("ReadDir %s is not sorted", p)
		}
		for _, e := range all {
			at := e.ModTime.UTC().Format("2006-01-02T15:04:05")
			if !e.ModTime.Before(since) {
				at = "NOW"
			}
			line := fmt.Sprintf("%s %c %04o %d:%d %s", e.Path, e.Type, e.Mode, e.UID, e.GID, at)
			switch e.Type {
			case layer.Regular:
				r, err := v.Open(t.Context(), e.Path)
				if err != nil {
					t.Fatalf("Open %s: %v", e.Path, err)
				}
				b, err := io.ReadAll(r)
				r.Close()
				if err != nil || int64(len(b)) != e.Size {
					t.Fatalf("%s: read %d of %d bytes: %v", e.Path, len(b), e.Size, err)
				}
				if d, err := v.Digest(t.Context(), e.Path); err != nil || d != digest.FromBytes(b) {
					t.Errorf("Digest %s: %s, %v", e.Path, d, err)
				}
				line += fmt.Sprintf(" %q", b)
				group := e.Link
				if group == "" {
					group = e.Path
				}
				if f, ok := first[group]; ok {
					line += " = " + f
				} else {
					first[group] = e.Path
				}
			case layer.Symlink:
				line += " -> " + e.Link
			case layer.Char:
				line += fmt.Sprintf(" dev %d,%d", e.DevMajor, e.DevMinor)
			}
			for _, k := range []string{"user.x", "user.y", "security.capability"} {
				if val, ok := e.Xattrs[k]; ok {
					line += fmt.Sprintf(" %s=%q", k, val)
				}
			}
			out = append(out, line)
			if e.Type == layer.Dir {
				down(e.Path)
			}
		}
	}
	down(".")
	return out
}

// diff tells how two listings differ, "" if they do not.
func diff(want, got []string) string {
	in := func(all []string) map[string]bool {
		m := map[string]bool{}
		for _, s := range all {
			m[s] = true
		}
		return m
	}
	w, g := in(want), in(got)
	var out []string
	for _, s := range want {
		if !g[s] {
			out = append(out, "- "+s)
		}
	}
	for _, s := range got {
		if !w[s] {
			out = append(out, "+ "+s)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i][2:] < out[j][2:] })
	return strings.Join(out, "\n")
}

// unpacked writes d's layer and shows it over base as overlayfs does.
func unpacked(t testing.TB, d *fileop.Draft, base string) (*diskView, *layer.TOC) {
	t.Helper()
	tar := filepath.Join(t.TempDir(), "layer.tar")
	f, err := os.Create(tar)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := layer.NewWriter(f)
	if err := d.Write(t.Context(), w); err != nil {
		t.Fatalf("Write: %v", err)
	}
	written, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	upper, merged := t.TempDir(), t.TempDir()
	toc, err := layer.Unpack(t.Context(), f, upper, layer.UnpackOptions{})
	if err != nil {
		t.Fatalf("Unpack: %v", err)
	}
	if toc.DiffID != written.DiffID {
		t.Errorf("the layer's digest is %s, but Write said %s", toc.DiffID, written.DiffID)
	}
	for i, e := range toc.Entries {
		if e.Digest != written.Entries[i].Digest {
			t.Errorf("%s: the content's digest is %s, but Write said %s", e.Path, e.Digest, written.Entries[i].Digest)
		}
	}
	if n := toc.Implied(); len(n) > 0 && n[0] != "." {
		t.Errorf("the layer does not name its directories %q", n)
	}
	opt := fmt.Sprintf("lowerdir=%s:%s", upper, base)
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, opt); err != nil {
		t.Skipf("needs root and overlayfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(merged, unix.MNT_DETACH) })
	return onDisk(t, merged), toc
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners and devices on a real file system")
	}
}

func TestMain(m *testing.M) {
	syscall.Umask(0) // as BuildKit's daemon has it
	if os.Getenv(untarVariable) != "" {
		if err := untar(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
