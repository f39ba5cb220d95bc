package tree

import (
	"slices"
	"strings"

	"github.com/strake-project/strake/internal/oci/layer"
)

// Fixups lists the directories that have to be laid over a stack of
// independently unpacked trees to make overlayfs show what the stack means:
// those that some layer only implies, with the attributes they have below.
// Their parents are listed too, in canonical order; the root is "." among
// them if the topmost layer does not state it.
func (s *Stack) Fixups() ([]layer.Entry, error) {
	found := make(map[string]*layer.Entry)
	note := func(p string) {
		pl := lookup(s.slots, p)
		if pl.kind != kindDir || len(pl.dirs) == 0 || pl.dirs[0].node().entry != nil || found[p] != nil {
			return
		}
		stated := pl.stated != nil || slices.ContainsFunc(pl.dirs, func(d spot) bool { return d.node().entry != nil })
		if !stated {
			return
		}
		for ; found[p] == nil; p, _ = split(p) {
			up := lookup(s.slots, p)
			found[p] = up.entry()
			if p == "." {
				break
			}
		}
	}
	note(".")
	for _, sl := range s.slots {
		ix := sl.index()
		for _, n := range ix.implied {
			if nd := &ix.nodes[n]; nd.dir && nd.entry == nil {
				note(ix.path(n))
			}
		}
	}
	out := make([]layer.Entry, 0, len(found))
	for p, e := range found {
		c := *e
		c.Path = p
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b layer.Entry) int { return layer.ComparePaths(a.Path, b.Path) })
	return out, nil
}

// Misplaced tells whether layer i cannot be unpacked on its own, because some
// of it does not lie where its tar says: it writes through a symlink of a layer
// below it (its tar names lib/x, while lib is a symlink to usr/lib there), has
// a hard link to a file of a layer below it, or a whiteout where there is no
// directory to hide something in. Such a layer has no tree of its own: it must be unpacked
// for this stack, from what Layer lists.
func (s *Stack) Misplaced(i int) bool { return s.slots[i].index().misplaced }

// Relocate maps a path as layer i's tar names it to where it lies in the stack.
func (s *Stack) Relocate(i int, path string) string {
	ix := s.slots[i].index()
	p := clean(path)
	if len(ix.moved) == 0 {
		return p
	}
	dir, base := split(p)
	if to, ok := ix.moved[dir]; ok {
		return join(to, base)
	}
	return p
}

// Base is the lowest layer of which anything is seen: above 0 where a layer has
// an opaque root, which overlayfs does not know.
func (s *Stack) Base() int {
	for i := len(s.slots) - 1; i > 0; i-- {
		if s.slots[i].index().nodes[0].opaque {
			return i
		}
	}
	return 0
}

// Entries lists root and what is below it as one layer would have it, in
// canonical order: hard links as such, after the entry they link to.
func (s *Stack) Entries(root string) ([]layer.Entry, error) {
	var out []layer.Entry
	first := make(map[string]string) // group -> first path in the order
	err := Walk(s, root, func(e *layer.Entry) error {
		c := *e
		if pl := lookup(s.slots, e.Path); pl.kind == kindFile && pl.at.node().group != 0 {
			g := e.Link
			if g == "" {
				g = e.Path
			}
			c.Link = ""
			if to, ok := first[g]; ok {
				c.Type, c.Link, c.Size, c.Digest, c.Offset = layer.HardLink, to, 0, "", 0
			} else {
				first[g] = e.Path
			}
		}
		out = append(out, c)
		return nil
	})
	return out, err
}

// Layer lists layer i as it lies in the stack, in canonical order and without
// what it only implies: of duplicates the last one, every path relocated, hard
// links after their targets with Link set to the first of the group, links to a
// lower layer's file as regular files. New(layers[:i+1]) opens their contents.
func (s *Stack) Layer(i int) []layer.Entry {
	ix := s.slots[i].index()
	var out []layer.Entry
	first := make(map[int32]string) // group -> first name in the order
	var walk func(n int32, p string)
	walk = func(n int32, p string) {
		nd := &ix.nodes[n]
		if nd.entry != nil {
			e := *nd.entry
			e.Path = p
			if g := nd.group; g != 0 && first[g] != "" {
				e.Type, e.Link, e.Size, e.Digest, e.Offset = layer.HardLink, first[g], 0, "", 0
			} else if g != 0 {
				first[g] = p
			}
			out = append(out, e)
		}
		if nd.dir && nd.hides && nd.entry == nil {
			// New in the place of what the whiteout removes: said in full, since
			// it does not have the attributes below.
			out = append(out, *impliedDir(p))
		}
		switch {
		case nd.dir && (nd.opaque || nd.hides):
			out = append(out, layer.Entry{Path: p, Type: layer.Opaque})
		case nd.hides && !nd.present():
			out = append(out, layer.Entry{Path: p, Type: layer.Whiteout})
		}
		var kids []int32
		for c := nd.first; c != 0; c = ix.nodes[c].next {
			kids = append(kids, c)
		}
		slices.SortFunc(kids, func(a, b int32) int { return strings.Compare(ix.nodes[a].name, ix.nodes[b].name) })
		for _, c := range kids {
			walk(c, join(p, ix.nodes[c].name))
		}
	}
	walk(0, ".")
	return out
}
