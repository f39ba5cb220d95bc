package tree

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/oci/layer"
)

// model is the reference: a file system in memory to which layers are applied
// one after another, entry by entry, as an extractor would do it.
type model struct {
	root *mnode
	n    int // layers applied
	// unclear is set where a tar means different things to different
	// extractors (a file and a directory of one name, a link to nothing).
	unclear bool
}

type mnode struct {
	ino  *inode
	kids map[string]*mnode // nil unless a directory
}

type inode struct {
	entry layer.Entry
	layer int
	lent  *inode // what a link across layers copies
}

func newDir(n int) *mnode {
	return &mnode{&inode{entry: *impliedDir(""), layer: n}, map[string]*mnode{}}
}

func newModel() *model { return &model{root: newDir(0)} }

func (m *model) apply(toc *layer.TOC) {
	m.n++
	whited := map[string]bool{}
	stated := map[string]bool{}
	for _, e := range toc.Entries {
		switch e.Type {
		case layer.Dir:
			stated[e.Path] = true
		case layer.Whiteout:
			whited[e.Path] = true
			dir, base := split(e.Path)
			if d := m.walk(dir); d != nil && d.kids != nil {
				delete(d.kids, base)
			}
		case layer.Opaque:
			if d := m.walk(e.Path); d != nil && d.kids != nil {
				d.kids = map[string]*mnode{}
			}
		}
	}
	for _, e := range toc.Entries {
		if e.Type != layer.Whiteout && e.Type != layer.Opaque {
			m.add(e, stated)
		}
	}
	for _, e := range toc.Entries {
		if e.Type == layer.Opaque {
			m.imply(e.Path, whited)
		}
	}
}

// walk goes to p without following links; nil if there is nothing.
func (m *model) walk(p string) *mnode {
	d := m.root
	if p == "." {
		return d
	}
	for name := range strings.SplitSeq(p, "/") {
		if d = d.kids[name]; d == nil {
			return nil
		}
	}
	return d
}

func (m *model) imply(p string, whited map[string]bool) {
	if p == "." {
		return
	}
	for _, really := range []bool{false, true} {
		d, at := m.root, "."
		for name := range strings.SplitSeq(p, "/") {
			at = join(at, name)
			k := d.kids[name]
			if k == nil && whited[at] || k != nil && k.kids == nil {
				return
			}
			if k == nil {
				k = newDir(m.n)
				if really {
					d.kids[name] = k
				}
			}
			d = k
		}
	}
}

// parent resolves the directory p, making what is missing; stated nil: nothing
// is made, and nil returned.
func (m *model) parent(p string, stated map[string]bool) *mnode {
	stack := []*mnode{m.root}
	var names []string
	todo := strings.Split(p, "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		d := stack[len(stack)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack, names = stack[:len(stack)-1], names[:len(names)-1]
			}
			continue
		}
		k := d.kids[name]
		at := strings.Join(append(slices.Clone(names), name), "/")
		if k != nil && k.ino.entry.Type == layer.Symlink && (stated == nil || k.ino.layer == m.n || !stated[at]) && links < maxLinks {
			if links++; links == maxLinks {
				m.unclear = true // a loop
			}
			if strings.HasPrefix(k.ino.entry.Link, "/") {
				stack, names = stack[:1], nil
			}
			todo = append(strings.Split(k.ino.entry.Link, "/"), todo...)
			continue
		}
		if k == nil || k.kids == nil {
			if stated == nil {
				return nil
			}
			if k != nil && k.ino.layer == m.n {
				m.unclear = true
			}
			k = newDir(m.n)
			d.kids[name] = k
		}
		stack, names = append(stack, k), append(names, name)
	}
	return stack[len(stack)-1]
}

func (m *model) add(e layer.Entry, stated map[string]bool) {
	if e.Path == "." {
		m.root.ino = &inode{entry: e, layer: m.n}
		return
	}
	dir, base := split(e.Path)
	d := m.parent(dir, stated)
	old := d.kids[base]
	switch e.Type {
	case layer.Dir:
		if old != nil && old.kids == nil && old.ino.layer == m.n {
			m.unclear = true
		}
		if old == nil || old.kids == nil {
			d.kids[base] = newDir(m.n)
		}
		d.kids[base].ino = &inode{entry: e, layer: m.n}
	case layer.HardLink:
		tdir, tbase := split(e.Link)
		td := m.parent(tdir, nil)
		if td == nil || td.kids[tbase] == nil || td.kids[tbase].kids != nil || td.kids[tbase] == old {
			m.unclear = true
			return
		}
		ino := td.kids[tbase].ino
		if ino.layer != m.n {
			ino = m.lend(ino)
		}
		d.kids[base] = &mnode{ino: ino}
	default:
		d.kids[base] = &mnode{ino: &inode{entry: e, layer: m.n}}
	}
}

// lend copies a lower layer's file, once while a copy is there.
func (m *model) lend(from *inode) *inode {
	var found *inode
	m.each(func(_ string, n *mnode) {
		if n.ino.lent == from && n.ino.layer == m.n {
			found = n.ino
		}
	})
	if found == nil {
		found = &inode{entry: from.entry, layer: m.n, lent: from}
	}
	return found
}

func (m *model) each(fn func(p string, n *mnode)) {
	var visit func(p string, n *mnode)
	visit = func(p string, n *mnode) {
		fn(p, n)
		names := make([]string, 0, len(n.kids))
		for k := range n.kids {
			names = append(names, k)
		}
		slices.Sort(names)
		for _, k := range names {
			visit(join(p, k), n.kids[k])
		}
	}
	visit(".", m.root)
}

// lines describes the tree, one line for each path; files that are linked have
// the first path in the order.
func (m *model) lines() []string {
	var out []string
	first := map[*inode]string{}
	m.each(func(p string, n *mnode) {
		if first[n.ino] == "" {
			first[n.ino] = p
		}
		out = append(out, line(p, &n.ino.entry, first[n.ino]))
	})
	return out
}

func line(p string, e *layer.Entry, first string) string {
	if e.Type == layer.Regular && first != p {
		return fmt.Sprintf("%s = %s", p, first)
	}
	if e.Type == layer.Symlink { // whose mode no file system keeps
		e = &layer.Entry{Type: e.Type, Mode: 0o777, UID: e.UID, ModTime: e.ModTime, Link: e.Link}
	}
	return fmt.Sprintf("%s %c %o %d %d %s %d %.15s", p, e.Type, e.Mode, e.UID, e.ModTime.Unix(), linkOf(e), e.Size, e.Digest)
}

func linkOf(e *layer.Entry) string {
	if e.Type == layer.Symlink {
		return e.Link
	}
	return ""
}

func viewLines(t *testing.T, v View) []string {
	t.Helper()
	var out []string
	first := map[string]string{}
	err := Walk(v, ".", func(e *layer.Entry) error {
		g := e.Path
		if e.Type == layer.Regular {
			if e.Link != "" {
				g = e.Link
			}
			if first[g] == "" {
				first[g] = e.Path
			}
			g = first[g]
		}
		out = append(out, line(e.Path, e, g))
		if again, err := v.Lstat(e.Path); err != nil || line(e.Path, again, g) != line(e.Path, e, g) || again.Path != e.Path {
			t.Errorf("Lstat(%s) is %v, %v; listed as %v", e.Path, again, err, e)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// randomLayer makes a tar with little in it that meets as much as possible of
// what m has.
func randomLayer(r *rand.Rand, m *model, n int) []byte {
	var paths []string
	m.each(func(p string, _ *mnode) { paths = append(paths, p) })
	names := []string{"a", "b", "c"}
	fresh := func() string {
		p := names[r.IntN(3)]
		for r.IntN(2) == 0 && len(p) < 6 {
			p += "/" + names[r.IntN(3)]
		}
		return p
	}
	some := func() string {
		if p := paths[r.IntN(len(paths))]; p != "." && r.IntN(3) > 0 {
			return p
		}
		return fresh()
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range 1 + r.IntN(7) {
		p := some()
		h := &tar.Header{Name: p, Mode: int64(0o600 + r.IntN(64)), Uid: 1 + r.IntN(5), Gid: 7, ModTime: time.Unix(int64(n*100+i), 0)}
		content := ""
		switch k := r.IntN(20); {
		case k < 6:
			h.Typeflag, content = tar.TypeReg, fmt.Sprint("content ", r.IntN(9))
			h.Size = int64(len(content))
		case k < 10:
			h.Typeflag = tar.TypeDir
			if r.IntN(9) == 0 {
				h.Name = "./"
			}
		case k < 13:
			h.Typeflag, h.Linkname = tar.TypeSymlink, some()
			if r.IntN(3) == 0 {
				h.Linkname = "/" + h.Linkname
			} else if r.IntN(3) == 0 {
				h.Linkname = "../" + h.Linkname
			}
		case k < 15:
			h.Typeflag, h.Linkname = tar.TypeLink, some()
			if h.Linkname == p {
				continue
			}
		case k < 19:
			h.Typeflag = tar.TypeReg
			dir, base := split(p)
			h.Name = join(dir, ".wh."+base)
		default:
			h.Typeflag = tar.TypeReg
			h.Name = join(p, ".wh..wh..opq")
			if r.IntN(9) == 0 {
				h.Name = ".wh..wh..opq"
			}
		}
		paths = append(paths, p)
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		io.WriteString(w, content)
	}
	w.Close()
	return buf.Bytes()
}

// randomStack makes layers that mean one thing, and what they come to.
func randomStack(t *testing.T, seed uint64) (tars [][]byte, tocs []*layer.TOC, want []string) {
	r := rand.New(rand.NewPCG(seed, 1))
	m := newModel()
	for n := range 2 + r.IntN(4) {
		for range 20 {
			raw := randomLayer(r, m, n)
			toc, err := layer.Index(bytes.NewReader(raw))
			if err != nil {
				continue
			}
			try := newModel()
			for _, l := range tocs {
				try.apply(l)
			}
			if try.apply(toc); try.unclear {
				continue
			}
			m, tars, tocs = try, append(tars, raw), append(tocs, toc)
			break
		}
	}
	return tars, tocs, m.lines()
}

// The merged view of random stacks is what applying the layers in turn gives.
func TestModel(t *testing.T) {
	for seed := range uint64(1000) {
		_, tocs, want := randomStack(t, seed)
		got := viewLines(t, New(tocs, nil))
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d:\n%s\ngot\n %s\nwant\n %s", seed, describe(tocs), strings.Join(got, "\n "), strings.Join(want, "\n "))
		}
	}
}

func describe(tocs []*layer.TOC) string {
	var b strings.Builder
	for i, t := range tocs {
		fmt.Fprintf(&b, "layer %d\n", i)
		for _, e := range t.Entries {
			fmt.Fprintf(&b, " %c %s %s\n", e.Type, e.Path, e.Link)
		}
	}
	return b.String()
}
