package tree

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// toc makes a layer from lines such as these:
//
//	d  bin 755      a directory, with mode
//	f  bin/ls text  a file with its content
//	l  lib usr/lib  a symlink
//	h  a b          a hard link a to b
//	w  etc/x        a whiteout
//	o  etc          an opaque directory
//
// The content of a file is kept in its Xattrs for the opener.
func toc(lines ...string) *layer.TOC {
	t := &layer.TOC{}
	for i, line := range lines {
		f := strings.Fields(line)
		arg := ""
		if len(f) > 2 {
			arg = f[2]
		}
		e := layer.Entry{Path: f[1], Mode: 0o644, ModTime: time.Unix(int64(1000+i), 0)}
		switch f[0] {
		case "d":
			e.Type, e.Mode = layer.Dir, 0o700
			e.UID = i + 1
		case "f":
			e.Type, e.Size, e.Digest = layer.Regular, int64(len(arg)), digest.FromString(arg)
			e.Xattrs = map[string]string{"content": arg}
		case "l":
			e.Type, e.Link, e.Mode = layer.Symlink, arg, 0o777
		case "h":
			e.Type, e.Link = layer.HardLink, arg
		case "w":
			e.Type = layer.Whiteout
		case "o":
			e.Type = layer.Opaque
		case "c":
			e.Type, e.DevMajor, e.DevMinor = layer.Char, 1, 3
		default:
			panic(line)
		}
		t.Entries = append(t.Entries, e)
	}
	return t
}

func openContent(_ context.Context, _ int, e *layer.Entry) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(e.Xattrs["content"])), nil
}

func stack(layers ...[]string) *Stack {
	var ts []*layer.TOC
	for _, l := range layers {
		ts = append(ts, toc(l...))
	}
	return New(ts, openContent)
}

// show lists a view in the words of toc, with a hard link's content followed by
// "=" and its group's first name, and an unowned directory as "d path -".
func show(t *testing.T, v View) []string {
	t.Helper()
	var out []string
	err := Walk(v, ".", func(e *layer.Entry) error {
		switch e.Type {
		case layer.Dir:
			line := "d " + e.Path
			if e.UID == 0 {
				line += " -"
				if e.Mode != 0o755 || !e.ModTime.Equal(time.Unix(0, 0)) {
					line += "?"
				}
			}
			out = append(out, line)
		case layer.Regular:
			r, err := v.Open(context.Background(), e.Path)
			if err != nil {
				return err
			}
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			if d, err := v.Digest(context.Background(), e.Path); err != nil || d != digest.FromBytes(b) {
				t.Errorf("%s: digest %s, %v, of content %q", e.Path, d, err, b)
			}
			if e.Size != int64(len(b)) {
				t.Errorf("%s: size %d of content %q", e.Path, e.Size, b)
			}
			line := "f " + e.Path + " " + string(b)
			if e.Link != "" {
				line += "=" + e.Link
			}
			out = append(out, line)
		case layer.Symlink:
			out = append(out, "l "+e.Path+" "+e.Link)
		default:
			out = append(out, string(rune(e.Type))+" "+e.Path+" "+e.Link)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

type lines = []string

func TestStack(t *testing.T) {
	tests := []struct {
		summary   string
		layers    [][]string
		want      []string
		misplaced int // layer + 1
	}{{
		"a file of a higher layer wins",
		[][]string{{"f a one"}, {"f a two"}},
		lines{"d . -", "f a two"}, 0,
	}, {
		"of duplicates in one tar the last one wins (buildkit#266)",
		[][]string{{"f a one", "d a", "f a/x x", "f a two", "d b", "f b/x x", "f b y", "d b"}},
		lines{"d . -", "f a two", "d b"}, 0,
	}, {
		"a whiteout removes from the layers below only, wherever in the tar it stands",
		[][]string{{"f a one", "f b one", "d c", "f c/x x"}, {"f a two", "w a", "w b", "f b two", "w c", "f c/y y"}},
		lines{"d . -", "f a two", "f b two", "d c -", "f c/y y"}, 0,
	}, {
		"an opaque directory hides what is below and keeps its attributes",
		[][]string{{"d c", "f c/x x", "d c/d", "f c/d/z z"}, {"o c", "f c/y y"}},
		lines{"d . -", "d c", "f c/y y"}, 0,
	}, {
		"an opaque root",
		[][]string{{"d .", "f x x"}, {"o .", "f y y"}},
		lines{"d .", "f y y"}, 0,
	}, {
		"a file replaces a directory and a directory a file, with nothing shining through",
		[][]string{{"d a", "f a/x x", "f b b"}, {"f a a", "d b", "f b/y y"}, {"d a", "f a/z z"}},
		lines{"d . -", "d a", "f a/z z", "d b", "f b/y y"}, 0,
	}, {
		"a directory that is only implied has the attributes below, or the default (apple/container#1797)",
		[][]string{{"d a", "f a/x x"}, {"f a/y y", "f b/c/z z"}},
		lines{"d . -", "d a", "f a/x x", "f a/y y", "d b -", "d b/c -", "f b/c/z z"}, 0,
	}, {
		"hard links are one file; a later layer's new target leaves the other names (go-containerregistry#2323)",
		[][]string{{"f a one", "h b a", "h c b"}, {"f a two", "h d a"}},
		lines{"d . -", "f a two", "f b one", "f c one=b", "f d two=a"}, 0,
	}, {
		"a hard link keeps its content when the tar itself replaces the target later",
		[][]string{{"f a one", "h b a", "f a two", "h e e"}},
		lines{"d . -", "f a two", "f b one", "1 e e"}, 0,
	}, {
		"a hard link to a file of a lower layer has its content (image-spec#1204)",
		[][]string{{"f a one"}, {"h b a", "h c b"}, {"f a two"}},
		lines{"d . -", "f a two", "f b one", "f c one=b"}, 2,
	}, {
		"a hard link that comes before its target, and one to a symlink",
		[][]string{{"h b a", "f a one", "l s a", "h t s"}},
		lines{"d . -", "f a one", "f b one=a", "l s a", "l t a"}, 1,
	}, {
		"a layer writes through a symlink below it",
		[][]string{{"d usr", "d usr/lib", "l lib usr/lib"}, {"f lib/x x", "f lib/new/y y", "w lib/z"}},
		lines{"d . -", "l lib usr/lib", "d usr", "d usr/lib", "d usr/lib/new -", "f usr/lib/new/y y", "f usr/lib/x x"}, 2,
	}, {
		"a layer that names a directory itself replaces the symlink below",
		[][]string{{"d usr", "d usr/lib", "f usr/lib/k k", "l lib usr/lib"}, {"f lib/x x", "d lib", "o lib", "w lib/z"}},
		lines{"d . -", "d lib", "f lib/x x", "d usr", "d usr/lib", "f usr/lib/k k"}, 2,
	}, {
		"whiteouts do not follow a symlink below (stereoscope#694), nor go below a file (kaniko#2308)",
		[][]string{{"d usr", "f usr/k k", "l lib usr", "f f f"}, {"w lib/k", "o lib", "w f/x", "o f"}},
		lines{"d . -", "f f f", "l lib usr", "d usr", "f usr/k k"}, 2,
	}, {
		"a whiteout below a whiteout makes no directory",
		[][]string{{"d a", "f a/b b"}, {"w a", "w a/b", "o a"}},
		lines{"d . -"}, 2,
	}, {
		"a symlink that the layer removes is not followed",
		[][]string{{"d usr", "l lib usr"}, {"f lib/x x", "w lib"}},
		lines{"d . -", "d lib -", "f lib/x x", "d usr"}, 0,
	}, {
		"absolute, climbing, chained, dangling and looping symlinks below",
		[][]string{{"d u", "l abs /u", "l up ../../u", "l u/chain ../abs", "l gone /no/such", "l loop loop"},
			{"f abs/1 x", "f up/2 x", "f u/chain/3 x", "f gone/4 x", "f loop/5 x"}},
		lines{"d . -", "l abs /u", "l gone /no/such", "d loop -", "f loop/5 x", "d no -", "d no/such -", "f no/such/4 x",
			"d u", "f u/1 x", "f u/2 x", "f u/3 x", "l u/chain ../abs", "l up ../../u"}, 2,
	}, {
		"a layer writes through a symlink of its own, and changes it",
		[][]string{{"d b", "d c", "l a b", "f a/x x", "l a c", "f a/y y"}},
		lines{"d . -", "l a c", "d b", "f b/x x", "d c", "f c/y y"}, 1,
	}}
	for _, tt := range tests {
		t.Run(tt.summary, func(t *testing.T) {
			s := stack(tt.layers...)
			if got := show(t, s); strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got\n %s\nwant\n %s", strings.Join(got, "\n "), strings.Join(tt.want, "\n "))
			}
			for i := range tt.layers {
				if got := s.Misplaced(i); got != (i == tt.misplaced-1) {
					t.Errorf("Misplaced(%d) is %v", i, got)
				}
			}
		})
	}
}

func TestLstatErrors(t *testing.T) {
	s := stack(lines{"d a", "f a/x x", "l l a"})
	for _, p := range []string{"b", "a/y", "a/x/y", "l/x", "a/x/y/z"} {
		if _, err := s.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Lstat(%s): %v", p, err)
		}
	}
	if _, err := s.ReadDir("a/x"); err == nil {
		t.Error("ReadDir of a file did not fail")
	}
	if _, err := s.Open(context.Background(), "a"); err == nil {
		t.Error("Open of a directory did not fail")
	}
	if _, err := s.Digest(context.Background(), "l"); !errors.Is(err, oci.ErrInvalid) {
		t.Errorf("Digest of a symlink: %v", err)
	}
}
