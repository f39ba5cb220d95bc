package tree

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// The kernel's overlay of trees that layer.Unpack made, with the fixups over
// them and misplaced layers unpacked from Layer, shows what the view shows.
func TestOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting an overlay needs root")
	}
	base, err := os.MkdirTemp("/var/tmp", "strake-tree-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	refused := 0
	for seed := range uint64(100) {
		dir := filepath.Join(base, "s")
		tars, tocs, _ := randomStack(t, 1e6+seed)
		s := New(tocs, func(_ context.Context, i int, e *layer.Entry) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(bytes.NewReader(tars[i]), e.Offset, e.Size)), nil
		})
		got := mounted(t, dir, s, tars)
		if got == nil {
			os.RemoveAll(dir)
			refused++
			continue
		}
		want := viewLines(t, s)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d:\n%s\noverlayfs shows\n %s\nthe view\n %s", seed, describe(tocs), strings.Join(got, "\n "), strings.Join(want, "\n "))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	if refused > 10 {
		t.Errorf("%d of the stacks have a layer that cannot be unpacked", refused)
	}
}

// unpack makes a tree of a tar; false if layer.Unpack refuses it.
func unpack(t *testing.T, dir string, raw []byte) bool {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := layer.Unpack(t.Context(), bytes.NewReader(raw), dir, layer.UnpackOptions{})
	if err != nil && !errors.Is(err, oci.ErrInvalid) {
		t.Fatal(err)
	}
	return err == nil
}

// write makes a canonical tar of entries.
func write(t *testing.T, entries []layer.Entry, v View) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := layer.NewWriter(&buf)
	for _, e := range entries {
		var r io.Reader
		if e.Type == layer.Regular {
			c, err := v.Open(t.Context(), e.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			r = c
		}
		if err := w.Write(e, r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// mounted describes what overlayfs makes of the stack.
func mounted(t *testing.T, dir string, s *Stack, tars [][]byte) []string {
	t.Helper()
	var lowers []string
	for i := s.Base(); i < len(tars); i++ {
		d := filepath.Join(dir, string(rune('0'+i)))
		raw := tars[i]
		if s.Misplaced(i) {
			v := &Stack{slots: s.slots[:i+1], open: s.open}
			raw = write(t, v.Layer(i), v)
		}
		if !unpack(t, d, raw) {
			if s.Misplaced(i) {
				t.Errorf("cannot unpack what Layer made")
			}
			return nil
		}
		lowers = append(lowers, d)
	}
	fixups, err := s.Fixups()
	if err != nil {
		t.Fatal(err)
	}
	// The topmost directory is there as a sandbox's upper one would be.
	top := filepath.Join(dir, "top")
	root, err := s.Lstat(".")
	if err != nil {
		t.Fatal(err)
	}
	if len(fixups) == 0 {
		fixups = []layer.Entry{*root}
	}
	unpack(t, top, write(t, fixups, nil))
	lowers = append(lowers, top)
	slices.Reverse(lowers)
	at := filepath.Join(dir, "mnt")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":")); err != nil {
		t.Fatalf("mount: %v", err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	toc, err := layer.Pack(t.Context(), io.Discard, at)
	if err != nil {
		t.Fatal(err)
	}
	entries := toc.Entries
	if len(entries) == 0 || entries[0].Path != "." { // Pack leaves the root of a mount out
		var st unix.Stat_t
		if err := unix.Stat(at, &st); err != nil {
			t.Fatal(err)
		}
		e := layer.Entry{Path: ".", Type: layer.Dir, Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid)}
		e.ModTime = root.ModTime
		if st.Mtim.Sec != root.ModTime.Unix() {
			t.Errorf("the root's time is %d, not %v", st.Mtim.Sec, root.ModTime)
		}
		entries = append([]layer.Entry{e}, entries...)
	}
	var out []string
	for i := range entries {
		e := entries[i]
		first := e.Path
		if e.Type == layer.HardLink {
			first = e.Link
			for _, x := range entries {
				if x.Path == first {
					p := e.Path
					e = x
					e.Path = p
				}
			}
		}
		out = append(out, line(e.Path, &e, first))
	}
	return out
}
