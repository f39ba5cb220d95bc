package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// stack makes a view of layers of lines such as these; a file's content is its
// third field:
//
//	d bin   f bin/ls text   l lib usr/lib   h a b (a is a link to b)
//	w etc/x   o etc   p fifo
func stack(layers ...string) *tree.Stack {
	var tocs []*layer.TOC
	content := map[digest.Digest]string{}
	for _, text := range layers {
		toc := &layer.TOC{}
		for _, line := range strings.Split(text, "\n") {
			f := append(strings.Fields(line), "")
			e := layer.Entry{Path: f[1], Mode: 0o644, ModTime: time.Unix(1000, 0)}
			switch f[0] {
			case "d":
				e.Type, e.Mode = layer.Dir, 0o750
			case "f":
				e.Type, e.Size, e.Digest = layer.Regular, int64(len(f[2])), digest.FromString(f[2])
				content[e.Digest] = f[2]
			case "l":
				e.Type, e.Link, e.Mode = layer.Symlink, f[2], 0o777
			case "h":
				e.Type, e.Link = layer.HardLink, f[2]
			case "w":
				e.Type = layer.Whiteout
			case "o":
				e.Type = layer.Opaque
			case "p":
				e.Type = layer.Fifo
			}
			toc.Entries = append(toc.Entries, e)
		}
		tocs = append(tocs, toc)
	}
	return tree.New(tocs, func(_ context.Context, i int, e *layer.Entry) (io.ReadCloser, error) {
		text, ok := content[e.Digest]
		if !ok {
			return nil, fmt.Errorf("no content of %s in layer %d", e.Path, i)
		}
		return io.NopCloser(strings.NewReader(text)), nil
	})
}

func found(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			fi, _ := d.Info()
			fmt.Fprintf(&b, "%s/ %o\n", rel, fi.Mode().Perm())
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			fmt.Fprintf(&b, "%s -> %s\n", rel, to)
		default:
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%s = %s\n", rel, text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestExtract: what lies at a path of merged layers lands under its new name.
func TestExtract(t *testing.T) {
	v := stack("d etc\nf etc/a one\nh etc/0 etc/a\nd etc/sub\nf etc/sub/gone x\np etc/pipe", "w etc/sub/gone\nf etc/sub/new two\nl etc/l /outside\nf etc/a- dash")
	for _, c := range []struct{ why, root, as, before, want string }{
		{"a directory under a new name", "etc", "copy", "", "copy/ 750\ncopy/0 = one\ncopy/a = one\ncopy/a- = dash\ncopy/l -> /outside\ncopy/sub/ 750\ncopy/sub/new = two\n"},
		{"its content alone", "etc/sub", ".", "", "new = two\n"},
		{"a file", "etc/a", "f", "", "f = one\n"},
		{"a file over another", "etc/a", "f", "f", "f = one\n"},
		{"a directory over another keeps what is there", "etc/sub", "d", "d/", "d/ 700\nd/kept = kept\nd/new = two\n"},
	} {
		dir := t.TempDir()
		if b, isDir := strings.CutSuffix(c.before, "/"); isDir {
			os.Mkdir(filepath.Join(dir, b), 0o700)
			os.WriteFile(filepath.Join(dir, b, "kept"), []byte("kept"), 0o600)
		} else if c.before != "" {
			os.WriteFile(filepath.Join(dir, c.before), []byte("old"), 0o600)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		skipped, err := Extract(t.Context(), root, v, c.root, c.as, false)
		if err != nil {
			t.Errorf("%s: %v", c.why, err)
		}
		if got := found(t, dir); got != c.want {
			t.Errorf("%s: got\n%s want\n%s", c.why, got, c.want)
		}
		if c.root == "etc" && fmt.Sprint(skipped) != "[/etc/pipe]" {
			t.Errorf("%s: left out %v", c.why, skipped)
		}
		root.Close()
	}
}

// TestExtractStays: links at the destination lead nowhere outside, and what
// failed leaves nothing behind.
func TestExtractStays(t *testing.T) {
	v := stack("d d\nf d/f text\nd d/sub\nf d/sub/g text")
	outside := t.TempDir()
	for _, c := range []struct{ why, link, to string }{
		{"the directory is a link out", "d", outside},
		{"a directory in it is a link out", "d/sub", outside},
		{"a link up", "d/sub", "../.."},
	} {
		dir := t.TempDir()
		os.MkdirAll(filepath.Join(dir, filepath.Dir(c.link)), 0o700)
		if err := os.Symlink(c.to, filepath.Join(dir, c.link)); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Extract(t.Context(), root, v, "d", "d", false); err == nil {
			t.Errorf("%s: written through", c.why)
		}
		root.Close()
		if got := found(t, outside); got != "" {
			t.Errorf("%s: outside is now %s", c.why, got)
		}
	}
	// A file at the destination that is a link is replaced, not written through.
	dir := t.TempDir()
	secret := filepath.Join(outside, "secret")
	os.WriteFile(secret, []byte("kept"), 0o600)
	os.Symlink(secret, filepath.Join(dir, "f"))
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := Extract(t.Context(), root, v, "d/f", "f", false); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(secret); string(b) != "kept" {
		t.Errorf("written through a link: %s", b)
	}
	// Interrupted: nothing of a new directory stays.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Extract(ctx, root, v, "d", "new", false); err == nil {
		t.Error("a cancelled copy succeeded")
	}
	if got := found(t, dir); got != "f = text\n" {
		t.Errorf("after an interrupted copy: %s", got)
	}
}

// TestWriteTar: parents first, links after the file whatever order the layers
// had, and names relative to what was asked for.
func TestWriteTar(t *testing.T) {
	v := stack("d etc\nf etc/z text\nh etc/a etc/z\nd etc/d\nf etc/d/x y\nf etc/d- z")
	for as, want := range map[string]string{
		"etc": "etc/ etc/a etc/d/ etc/d/x etc/d- etc/z=etc/a",
		".":   "./ a d/ d/x d- z=a",
	} {
		var b bytes.Buffer
		if err := WriteTar(t.Context(), &b, v, "etc", as); err != nil {
			t.Fatal(err)
		}
		var names []string
		for r := tar.NewReader(&b); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := h.Name
			if h.Typeflag == tar.TypeLink {
				name += "=" + h.Linkname
			}
			names = append(names, name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("as %s: %s, want %s", as, got, want)
		}
	}
}
