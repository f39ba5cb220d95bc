package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

func TestResolve(t *testing.T) {
	s := stack(lines{"d usr", "d usr/bin", "f usr/bin/sh x", "l bin usr/bin", "l abs /usr", "l up ../../../usr",
		"l usr/back ..", "l gone /no/such", "l loop loop", "l s bin/sh", "l slash usr/"})
	tests := []struct {
		path string
		last bool
		want string
	}{
		{".", true, "."}, {"bin", true, "usr/bin"}, {"bin", false, "bin"}, {"/bin//sh", true, "usr/bin/sh"},
		{"abs/bin", true, "usr/bin"}, {"up/bin/..", true, "usr"}, {"usr/back/bin", true, "usr/bin"},
		{"usr/back/bin", false, "bin"}, {"../..", true, "."}, {"s", true, "usr/bin/sh"}, {"slash", true, "usr"},
		{"new/dir", true, "new/dir"}, {"bin/new/x", true, "usr/bin/new/x"}, {"gone/x", true, "no/such/x"},
		{"new/../bin", true, "usr/bin"}, {"loop", false, "loop"}, {"bin/sh/x", true, "usr/bin/sh/x"},
	}
	for _, tt := range tests {
		if got, err := Resolve(s, tt.path, tt.last); err != nil || got != tt.want {
			t.Errorf("Resolve(%q, %v) is %q, %v, not %q", tt.path, tt.last, got, err, tt.want)
		}
	}
	for _, p := range []string{"loop", "loop/x"} {
		if _, err := Resolve(s, p, true); !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("Resolve(%q): %v", p, err)
		}
	}
}

func TestWalkSkips(t *testing.T) {
	s := stack(lines{"d a", "f a/1 x", "f a/2 x", "f a-b x", "d b", "f b/1 x", "f c x"})
	var got []string
	err := Walk(s, ".", func(e *layer.Entry) error {
		got = append(got, e.Path)
		switch e.Path {
		case "a/1", "b":
			return fs.SkipDir
		}
		return nil
	})
	if want := "[. a a/1 a-b b c]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("walked %v, %v, not %s", got, err, want)
	}
}

func TestDiff(t *testing.T) {
	base := lines{"d a", "f a/1 one", "f a/2 two", "d d", "f d/x x", "l l a", "d same", "f same/1 x"}
	tests := []struct {
		summary string
		layer   []string
		want    string
	}{
		{"nothing", lines{}, ""},
		{"a new file; its directory is not listed", lines{"f a/3 x"}, "A a/3"},
		{"a new directory with all that is in it", lines{"f n/m/1 x"}, "A n, A n/m, A n/m/1"},
		{"a deleted directory as one", lines{"w d"}, "D d"},
		{"other content", lines{"f a/2 xyz"}, "C a/2"},
		{"a directory's attributes", lines{"c k", "d a"}, "C a, A k"},
		{"a file for a directory and the reverse", lines{"f d x", "d a", "f l/q x", "d l"}, "C a, C d, C l, A l/q"},
	}
	for _, tt := range tests {
		a := stack(base)
		for name, b := range map[string]View{"grown": a.Append(toc(tt.layer...)), "apart": stack(base, tt.layer)} {
			changes, err := Diff(a, b)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range changes {
				got = append(got, fmt.Sprintf("%c %s", c.Kind, c.Path))
			}
			if strings.Join(got, ", ") != tt.want {
				t.Errorf("%s (%s): %v, not %s", tt.summary, name, got, tt.want)
			}
		}
	}
}

// What Diff says is what makes the one view the other.
func TestDiffOfModels(t *testing.T) {
	for seed := range uint64(300) {
		_, tocs, _ := randomStack(t, 5e6+seed)
		a, b := New(tocs[:1], nil), New(tocs, nil)
		changes, err := Diff(a, b)
		if err != nil {
			continue // a link to nothing
		}
		has := map[string]*layer.Entry{}
		Walk(a, ".", func(e *layer.Entry) error { has[e.Path] = e; return nil })
		for _, c := range changes {
			if c.Kind == 'D' || c.New.Type != layer.Dir {
				for p := range has {
					if p == c.Path || strings.HasPrefix(p, c.Path+"/") {
						delete(has, p)
					}
				}
			}
			if c.New != nil {
				has[c.Path] = c.New
			}
		}
		var got, want []string
		for p, e := range has {
			if e.Type == layer.Dir {
				e = &layer.Entry{Type: e.Type, Mode: e.Mode, UID: e.UID, ModTime: e.ModTime.Truncate(1 << 62)}
			}
			got = append(got, line(p, e, p))
		}
		slices.Sort(got)
		Walk(b, ".", func(e *layer.Entry) error {
			if e.Type == layer.Dir {
				e = &layer.Entry{Path: e.Path, Type: e.Type, Mode: e.Mode, UID: e.UID, ModTime: e.ModTime.Truncate(1 << 62)}
			}
			want = append(want, line(e.Path, e, e.Path))
			return nil
		})
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d:\n%s\ngot %v\nwant %v", seed, describe(tocs), got, want)
		}
	}
}

// A hostile layer cannot make an index cost more than it is long.
func TestHostileLinks(t *testing.T) {
	long := strings.Repeat("a/../", 700)
	below := []string{"d a"}
	for i := range 250 {
		below = append(below, fmt.Sprintf("l l%d %sl%d", i, long, i+1))
	}
	var above []string
	for i := range 20000 {
		above = append(above, fmt.Sprintf("f l0/%d/f x", i))
	}
	s := stack(append(below, "d l250"), above)
	if _, err := s.Lstat("l250/0/f"); err != nil {
		t.Error(err)
	}
}

// Names that package layer would have cleaned stay inside the root.
func TestUncleanPaths(t *testing.T) {
	s := stack(lines{"f ../x x", "f /y y", "d a//b/", "f ./a/./b/../z z", "w ../../q", "o /", "h ../k ../x"})
	got := strings.Join(show(t, s), ", ")
	if want := "d . -, d a -, d a/b, f a/z z, f k x=x, f x x, f y y"; got != want {
		t.Errorf("%s, not %s", got, want)
	}
}

// FROM scratch: a stack of no layers is an empty root.
func TestEmptyStack(t *testing.T) {
	s := New(nil, nil)
	if got := show(t, s); fmt.Sprint(got) != "[d . -]" {
		t.Error(got)
	}
	if f, err := s.Fixups(); len(f) != 0 || err != nil || s.Base() != 0 {
		t.Error(f, err, s.Base())
	}
	if e, err := s.Entries("."); len(e) != 1 || err != nil {
		t.Error(e, err)
	}
}

// bigTOC is like a real layer of 20,000 files.
func bigTOC() *layer.TOC {
	t := &layer.TOC{}
	for i := range 200 {
		d := fmt.Sprintf("usr/lib/python3/dist-packages/p%03d", i)
		t.Entries = append(t.Entries, layer.Entry{Path: d, Type: layer.Dir, Mode: 0o755})
		for j := range 100 {
			t.Entries = append(t.Entries, layer.Entry{Path: fmt.Sprintf("%s/file%03d.py", d, j), Type: layer.Regular})
		}
	}
	return t
}

func BenchmarkIndex20000(b *testing.B) {
	t := bigTOC()
	for b.Loop() {
		New([]*layer.TOC{t}, nil).Lstat("usr")
	}
}

func BenchmarkWalk20000(b *testing.B) {
	s := New([]*layer.TOC{bigTOC(), toc("f a x"), toc("f usr/lib/x x")}, nil)
	for b.Loop() {
		Walk(s, ".", func(*layer.Entry) error { return nil })
	}
}

func BenchmarkLstat(b *testing.B) {
	s := New([]*layer.TOC{bigTOC(), toc("f a x"), toc("f usr/lib/x x")}, nil)
	for b.Loop() {
		s.Lstat("usr/lib/python3/dist-packages/p100/file050.py")
	}
}
