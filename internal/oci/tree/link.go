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
		b.share(n, t, e)
		return
	case t > 0:
	case at.kind == kindFile && at.entry().Type != layer.HardLink:
		b.borrow(n, at)
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
func (b *builder) borrow(n int32, at place) {
	b.misplaced = true
	c := *at.entry()
	c.Path = b.path(n)
	b.set(n, &c, false)
	if c.Type == layer.Regular {
		b.from(n, at.origin())
	}
}

func (b *builder) from(n int32, o origin) {
	if b.origin == nil {
		b.origin = make(map[int32]origin)
	}
	b.origin[n] = o
}

// target finds what a hard link names: a node of this layer, or a place below.
// Symlinks among its parents are followed, one at its end is not.
func (b *builder) target(p string) (int32, place) {
	rest, cur, links := p, int32(0), 0
	for rest != "" {
		name := rest
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			name, rest = rest[:i], strings.TrimLeft(rest[i:], "/")
		} else {
			rest = ""
		}
		switch name {
		case "", ".":
			continue
		case "..":
			cur = b.nodes[cur].parent
			continue
		}
		c, ok := b.child(cur, name)
		if !ok || !b.nodes[c].present() {
			return 0, b.targetBelow(join(b.path(cur), name), rest)
		}
		if rest == "" {
			return c, place{}
		}
		nd := &b.nodes[c]
		if !nd.dir {
			if nd.entry == nil || nd.entry.Type != layer.Symlink || links == maxLinks {
				return 0, place{}
			}
			links++
			if strings.HasPrefix(nd.entry.Link, "/") {
				cur = 0
			}
			rest = nd.entry.Link + "/" + rest
			continue
		}
		cur = c
	}
	return 0, place{}
}

// targetBelow continues target in the layers below, from p on.
func (b *builder) targetBelow(p, rest string) place {
	if rest != "" {
		p += "/" + rest
	}
	if len(b.below) == 0 || b.hidden(p) {
		return place{}
	}
	v := &Stack{slots: b.below}
	q, err := Resolve(v, p, false)
	if err != nil || b.hidden(q) {
		return place{}
	}
	return lookup(b.below, q)
}
