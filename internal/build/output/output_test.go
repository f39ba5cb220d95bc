package output

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// view is a tree of one layer whose files hold "x".
func view() tree.View {
	at := time.Unix(1e9, 0)
	return tree.New([]*layer.TOC{{Entries: []layer.Entry{
		{Path: "d", Type: layer.Dir, Mode: 0o750, ModTime: at},
		{Path: "d/f", Type: layer.Regular, Mode: 0o640, Size: 1, ModTime: at},
		{Path: "d/g", Type: layer.HardLink, Link: "d/f"},
		{Path: "file", Type: layer.Regular, Mode: 0o600, Size: 1, ModTime: at},
		{Path: "link", Type: layer.Symlink, Link: "/etc/passwd", ModTime: at},
	}}}, func(context.Context, int, *layer.Entry) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("x")), nil
	})
}

// What lies in the destination is replaced, never followed.
func TestDirLeavesNothingOutside(t *testing.T) {
	top := t.TempDir()
	dest, outside := filepath.Join(top, "dest"), filepath.Join(top, "outside")
	for _, dir := range []string{dest, outside, filepath.Join(dest, "link", "full"), filepath.Join(dest, "kept")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"d": "../outside", "file": "../outside/file"} {
		if err := os.Symlink(to, filepath.Join(dest, name)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // over itself, too
		if _, err := Dir(t.Context(), dest, []Part{{View: view()}}); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside the destination: %v, %v", left, err)
	}
	for name, want := range map[string]os.FileMode{
		"d": os.ModeDir | 0o750, "d/f": 0o640, "d/g": 0o640, "file": 0o600, "link": os.ModeSymlink | 0o777, "kept": os.ModeDir | 0o755,
	} {
		fi, err := os.Lstat(filepath.Join(dest, name))
		if err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v, want mode %v", name, fi, err, want)
		}
		if err == nil && name != "kept" && !fi.ModTime().Equal(time.Unix(1e9, 0)) {
			t.Errorf("%s has time %v", name, fi.ModTime())
		}
	}
	f, _ := os.Stat(filepath.Join(dest, "d/f"))
	g, _ := os.Stat(filepath.Join(dest, "d/g"))
	if !os.SameFile(f, g) {
		t.Error("two names of one file became two files")
	}
	entries, _ := os.ReadDir(dest)
	if len(entries) != 4 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestPartsDoNotOverwriteEachOther(t *testing.T) {
	dest := t.TempDir()
	_, err := Dir(t.Context(), dest, []Part{{View: view()}, {View: view()}})
	if err == nil || !strings.Contains(err.Error(), "cannot overwrite file") {
		t.Errorf("two platforms in one directory: %v", err)
	}
	at := time.Unix(5, 0)
	if _, err := Dir(t.Context(), t.TempDir(), []Part{{Dir: "a", View: view(), Time: &at}, {Dir: "b", View: view()}}); err != nil {
		t.Error(err)
	}
}

func TestTar(t *testing.T) {
	var b bytes.Buffer
	if err := Tar(t.Context(), &b, []Part{{Dir: "p", View: view(), Extra: map[string][]byte{"z.json": []byte("{}")}}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name+" "+h.Linkname)
	}
	want := "p/ |p/d/ |p/d/f |p/d/g p/d/f|p/file |p/link /etc/passwd|p/z.json "
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}

// Names as long as names can be, that begin alike, are written over what is
// there side by side.
func TestDirLongNames(t *testing.T) {
	var entries []layer.Entry
	for i := range 64 {
		name := strings.Repeat("x", 250) + fmt.Sprint(100+i)
		if i%2 == 1 {
			name = strings.Repeat("\u6c34", 80) + fmt.Sprint(100+i)
		}
		entries = append(entries, layer.Entry{Path: name, Type: layer.Regular, Mode: 0o600, Size: 3, ModTime: time.Unix(1e9, 0)})
	}
	long := tree.New([]*layer.TOC{{Entries: entries}}, func(_ context.Context, _ int, e *layer.Entry) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(e.Path[len(e.Path)-3:])), nil
	})
	dest := t.TempDir()
	for range 3 {
		if _, err := Dir(t.Context(), dest, []Part{{View: long}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(dest, e.Path)); err != nil || !strings.HasSuffix(e.Path, string(b)) || len(b) != 3 {
			t.Errorf("%s: %q, %v", e.Path, b, err)
		}
	}
	if left, _ := os.ReadDir(dest); len(left) != len(entries) {
		t.Errorf("%d files where %d were written", len(left), len(entries))
	}
}
