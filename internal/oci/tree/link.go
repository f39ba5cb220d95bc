package tree

import (
	"strings"

	"github.com/strake-project/strake/internal/oci/layer"
)

// link makes node n the hard link that e is. The target is what the layer has
// at e.Link at this point of its tar, or else what the layers below have there
// (image-spec issue 1204), or else, at last, what comes later in the tar. A
// link to nothing stays an entry of type HardLink.
func (b *builder) link(n int32, e *layer.Entry, last bool) {
	t, at := b.target(clean(e.Link))
	switch {
	case t == n:
		return
	case t > 0 && !b.nodes[t].dir && b.nodes[t].entry.Type != layer.HardLink:
		b.misplaced = b.misplaced || last // it comes before its target
		b.leans = b.leans || last
		b.share(n, t, e)
		return
	case t > 0:
	case at.kind == kindFile && at.entry().Type != layer.HardLink:
		b.borrow(n, at, e)
		return
	}
	b.set(n, e, false)
	if !last {
		b.pending = append(b.pending, pendingLink{n, e})
	}
}

// share makes n a further name of t, a node of this layer.
func (b *builder) share(n, t int32, e *layer.Entry) {
	leader := b.nodes[t].entry
	from, moved := b.origin[t]
	g := b.nodes[t].group
	c := *leader
	c.Path = e.Path // set moves it if need be
	b.set(n, &c, false)
	if c.Type != layer.Regular {
		return
	}
	if moved {
		b.from(n, from)
	}
	if g == 0 {
		b.groups = append(b.groups, &group{members: []int32{t}})
		g = int32(len(b.groups))
		b.nodes[t].group = g
	}
	b.nodes[n].group = g
	b.groups[g-1].members = append(b.groups[g-1].members, n)
}

// borrow makes n a regular file of its own with what the layers below have.
// Further links to the same are links to n.
func (b *builder) borrow(n int32, at place, e *layer.Entry) {
	b.misplaced, b.leans = true, true
	if t, ok := b.borrowed[at.at]; ok && t != n {
		if from, ok := b.origin[t]; ok && from == at.origin() {
			b.share(n, t, e)
			return
		}
	}
	c := *at.entry()
	c.Path = b.path(n)
	b.set(n, &c, false)
	if c.Type == layer.Regular {
		b.from(n, at.origin())
		if b.borrowed == nil {
			b.borrowed = make(map[spot]int32)
		}
		b.borrowed[at.at] = n
	}
}

func (b *builder) from(n int32, o origin) {
	if b.origin == nil {
		b.origin = make(map[int32]origin)
	}
	b.origin[n] = o
}

// target finds what a hard link names: a node of this layer, or else a place
// below. Symlinks among its parents are followed, one at its end is not.
func (b *builder) target(p string) (int32, place) {
	cur, links := ".", 0
	for rest := p; rest != ""; {
		dir, named := cur, false
		if cur, rest, named = descend(cur, rest); !named {
			continue
		}
		n := b.find(cur)
		if rest == "" {
			if n != 0 || len(b.below) == 0 || b.hidden(cur) {
				return n, place{}
			}
			return 0, lookup(b.below, cur)
		}
		var e *layer.Entry
		if n != 0 {
			e = b.nodes[n].entry
		} else {
			e = b.lookBelow(cur)
		}
		if e == nil || e.Type != layer.Symlink {
			continue
		}
		links++
		if b.followed += len(e.Link); links > maxLinks || b.followed > maxTargets {
			return 0, place{}
		}
		cur, rest = through(dir, e.Link, rest)
	}
	return 0, place{}
}

// find returns the layer's own node at p, 0 if it has none.
func (b *builder) find(p string) int32 {
	cur := int32(0)
	for rest := p; rest != ""; {
		name := rest
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			name, rest = rest[:i], rest[i+1:]
		} else {
			rest = ""
		}
		c, ok := b.child(cur, name)
		if !ok || !b.nodes[c].present() {
			return 0
		}
		cur = c
	}
	return cur
}
