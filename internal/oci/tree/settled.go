package tree

import "github.com/strake-project/strake/internal/oci/layer"

// Settled tells whether what s has at path, without following a symlink, is the
// same whatever layers lie below those of s: then they need not be known. Of a
// directory that is its own entry, not what is in it. It may say false of what
// is settled all the same.
func (s *Stack) Settled(path string) bool {
	for _, sl := range s.slots {
		ix := sl.index()
		if ix.leans || len(ix.moved) > 0 {
			return false
		}
		for _, n := range ix.implied {
			// A directory that the tar does not name may be a symlink below, and
			// what is in it elsewhere.
			if nd := &ix.nodes[n]; nd.dir && nd.entry == nil && !stated(lookup(sl.below, ix.path(n))) {
				return false
			}
		}
	}
	path = clean(path)
	for i := range path {
		if path[i] == '/' && !stated(lookup(s.slots, path[:i])) {
			return false
		}
	}
	pl := lookup(s.slots, path)
	if pl.kind == kindFile {
		return pl.entry().Type != layer.HardLink
	}
	return stated(pl)
}

// stated tells whether a place is a directory of which some layer says more
// than that it is one.
func stated(pl place) bool {
	if pl.kind != kindDir {
		return false
	}
	for _, d := range pl.dirs {
		if d.node().entry != nil {
			return true
		}
	}
	return pl.stated != nil
}
