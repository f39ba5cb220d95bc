package tree

import (
	"strings"

	"github.com/strake-project/strake/internal/oci/layer"
)

// mark notes a whiteout or an opaque directory. It never follows a symlink,
// and has no effect below what is no directory.
func (b *builder) mark(e *layer.Entry) {
	p := clean(e.Path)
	dir, base := split(p)
	if e.Type == layer.Opaque {
		dir, base = p, ""
	} else if b.hidesNothing(dir) {
		b.misplaced = b.misplaced || b.find(p) == 0
		return
	}
	cur, ok := b.carrier(dir)
	if !ok {
		b.misplaced = true
		return
	}
	if e.Type == layer.Opaque {
		b.nodes[cur].opaque = true
		return
	}
	if p == "." {
		b.nodes[0].opaque = true
		return
	}
	c, ok := b.child(cur, base)
	if !ok {
		c = b.newChild(cur, base)
	}
	b.nodes[c].hides = true
}

// carrier returns the directory dir for a mark, made if the layer does not have
// it; false if something there is no directory, or removed by the layer.
func (b *builder) carrier(dir string) (int32, bool) {
	if dir == "." {
		return 0, true
	}
	for i := 0; i <= len(dir); i++ {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		q := dir[:i]
		if n := b.find(q); n != 0 {
			if !b.nodes[n].dir {
				return 0, false
			}
		} else if below := b.lookBelow(q); b.whited[q] || below != nil && below.Type != layer.Dir {
			return 0, false
		}
	}
	cur := int32(0)
	for name := range strings.SplitSeq(dir, "/") {
		c, ok := b.child(cur, name)
		if !ok {
			c = b.newChild(cur, name)
		}
		if !b.nodes[c].present() {
			b.imply(c)
		}
		cur = c
	}
	return cur, true
}

// hidesNothing tells whether a whiteout in directory dir has nothing to hide,
// because no layer below has that directory. It must not be in the tree then:
// in a directory that it does not merge, overlayfs lists a whiteout as a name
// that cannot be opened.
func (b *builder) hidesNothing(dir string) bool {
	if dir == "." {
		return false
	}
	if dir != b.whiteDir {
		below := b.lookBelow(dir)
		b.whiteDir, b.whiteVoid = dir, b.opaques[dir] || below == nil || below.Type != layer.Dir
	}
	return b.whiteVoid
}
