package tree

import (
	"slices"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/oci/layer"
)

// place is what a stack has at a path.
type place struct {
	kind kind
	path string
	// at is the node of a file; of a directory, the nodes that make it up, the
	// topmost layer's first.
	at   spot
	dirs []spot
	// stated is the directory's entry where it is in a layer below an opaque
	// directory that has none of its own.
	stated *layer.Entry
}

type kind byte

const (
	kindNone kind = iota
	kindFile      // anything but a directory
	kindDir
)

// spot is a node of one layer.
type spot struct {
	ix *index
	n  int32
}

func (s spot) node() *node { return &s.ix.nodes[s.n] }

// lookup finds p, which is clean, in slots (lowest first) without following a
// symlink.
func lookup(slots []*slot, p string) place {
	pl := rootPlace(slots)
	if p == "." {
		return pl
	}
	for rest := p; rest != ""; {
		name := rest
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			name, rest = rest[:i], rest[i+1:]
		} else {
			rest = ""
		}
		if pl.kind != kindDir {
			return place{}
		}
		// pl.dirs is this function's own: the child's nodes overwrite it, since
		// a layer is never behind the one it is read from.
		pl = step(pl.dirs, name, pl.dirs[:0])
	}
	pl.path = p
	return pl
}

func rootPlace(slots []*slot) place {
	pl := place{kind: kindDir, path: ".", dirs: make([]spot, 0, len(slots))}
	opaque, stated := false, false
	for _, s := range slices.Backward(slots) {
		ix := s.index()
		root := &ix.nodes[0]
		if !opaque {
			pl.dirs = append(pl.dirs, spot{ix, 0})
		} else if !stated {
			pl.stated = root.entry
		}
		opaque = opaque || root.opaque
		stated = stated || root.entry != nil
		if opaque && stated {
			break
		}
	}
	return pl
}

// step finds name in the directory made up of dirs; the nodes of a directory
// are appended to buf.
func step(dirs []spot, name string, buf []spot) place {
	pl := place{dirs: buf}
	opaque, stated := false, false
	for _, d := range dirs {
		c, ok := d.ix.kids[kid{d.n, name}]
		if !ok {
			continue
		}
		nd := &d.ix.nodes[c]
		if !nd.dir {
			if nd.entry != nil && pl.kind == kindNone {
				return place{kind: kindFile, at: spot{d.ix, c}}
			}
			if nd.present() || nd.hides {
				break
			}
			continue
		}
		// An opaque directory hides what is in the ones below, but not their
		// attributes, should it have none.
		pl.kind = kindDir
		if !opaque {
			pl.dirs = append(pl.dirs, spot{d.ix, c})
		} else if !stated {
			pl.stated = nd.entry
		}
		opaque = opaque || nd.opaque
		stated = stated || nd.entry != nil
		if nd.hides || opaque && stated {
			break
		}
	}
	return pl
}

// entry returns the entry of the place, nil for nothing. It is shared where a
// TOC has it as it is.
func (pl *place) entry() *layer.Entry {
	switch pl.kind {
	case kindFile:
		return pl.at.node().entry
	case kindDir:
		for _, d := range pl.dirs {
			if e := d.node().entry; e != nil {
				return e
			}
		}
		if pl.stated != nil {
			return pl.stated
		}
		return impliedDir(pl.path)
	}
	return nil
}

// impliedDir is a directory that no layer says anything about.
func impliedDir(p string) *layer.Entry {
	return &layer.Entry{Path: p, Type: layer.Dir, Mode: 0o755, ModTime: time.Unix(0, 0)}
}

// origin says where the content of the file at the place is.
func (pl *place) origin() origin {
	if o, ok := pl.at.ix.origin[pl.at.n]; ok {
		return o
	}
	return origin{pl.at.ix.pos, pl.at.node().entry}
}

// shown is entry with a hard link's Link set to the first name of its group
// that the stack still shows.
func (s *Stack) shown(pl *place) *layer.Entry {
	e := pl.entry()
	if pl.kind != kindFile || pl.at.node().group == 0 {
		return e
	}
	g := pl.at.ix.groups[pl.at.node().group-1]
	first, ok := s.firsts.Load(g)
	if !ok {
		first, _ = s.firsts.LoadOrStore(g, s.first(pl.at.ix, pl.at.node().group))
	}
	if first == e.Path {
		return e
	}
	c := *e
	c.Link = first.(string)
	return &c
}

// first returns the first name of group g that the stack shows.
func (s *Stack) first(ix *index, g int32) string {
	for _, m := range ix.groups[g-1].members {
		if ix.nodes[m].group != g {
			continue // replaced within the layer
		}
		p := ix.path(m)
		if got := lookup(s.slots, p); got.kind == kindFile && got.at == (spot{ix, m}) {
			return p
		}
	}
	return ""
}

// list returns the places in the directory pl, sorted by name.
func (s *Stack) list(pl *place) []place {
	var out []place
	if len(pl.dirs) == 1 {
		d := pl.dirs[0]
		for c := d.node().first; c != 0; c = d.ix.nodes[c].next {
			nd := &d.ix.nodes[c]
			switch {
			case nd.dir:
				out = append(out, place{kind: kindDir, dirs: []spot{{d.ix, c}}})
			case nd.entry != nil:
				out = append(out, place{kind: kindFile, at: spot{d.ix, c}})
			}
			if nd.present() {
				out[len(out)-1].path = join(pl.path, nd.name)
			}
		}
	} else {
		seen := make(map[string]bool)
		for i, d := range pl.dirs {
			for c := d.node().first; c != 0; c = d.ix.nodes[c].next {
				name := d.ix.nodes[c].name
				if seen[name] {
					continue
				}
				seen[name] = true
				if k := step(pl.dirs[i:], name, nil); k.kind != kindNone {
					k.path = join(pl.path, name)
					out = append(out, k)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b place) int { return strings.Compare(a.path, b.path) })
	return out
}
