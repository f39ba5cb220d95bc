package tree

import (
	"path"
	"strings"
	"sync"

	"github.com/strake-project/strake/internal/oci/layer"
)

// maxLinks is how many symlinks one resolution follows before it is a loop.
const maxLinks = 255

// maxTargets bounds the bytes of symlinks' targets that are followed for the
// sake of one layer, in all: a hostile one could lead each of its entries
// through long chains. What is more is not followed.
const maxTargets = 16 << 20

// slot is a layer in its place in a stack. Its index is made at the first
// look-up that comes to it, and shared by every stack grown from this one.
type slot struct {
	toc   *layer.TOC
	below []*slot // lowest first
	once  sync.Once
	ix    *index
}

func (s *slot) index() *index {
	s.once.Do(func() {
		s.ix = buildIndex(s.toc, s.below)
	})
	return s.ix
}

// index is one layer as a tree: what its tar comes to when it is read from
// beginning to end, laid where it belongs in the stack.
//
// All nodes lie in one slice and all names in one map, so that indexing 20,000
// entries takes a few large allocations and not many small ones.
type index struct {
	toc    *layer.TOC
	pos    int // position in the stack
	nodes  []node
	kids   map[kid]int32
	groups []*group
	// origin says where a node's content is, for nodes where it is not simply
	// at node.entry in this layer.
	origin map[int32]origin
	// misplaced: some entry lies elsewhere than its tar says, or nowhere, or
	// takes its content from a layer below.
	misplaced bool
	// leans: some hard link is what it is because of what the layers below have
	// or lack.
	leans bool
	// implied has the directories the layer does not state itself; some may
	// have been stated or replaced after they were noted.
	implied []int32
	// moved maps directories' paths in the tar to their places, where differing.
	moved map[string]string
}

type kid struct {
	parent int32
	name   string
}

// node is a path of one layer.
type node struct {
	entry  *layer.Entry // nil: an implied directory, or nothing but a whiteout
	name   string
	parent int32
	first  int32 // the child added last, or 0
	next   int32 // the sibling added before this one, or 0
	group  int32 // index into groups plus one, for hard links and their targets
	dir    bool
	// hides: the layer removes this path from the layers below (a whiteout, or
	// both a whiteout and something new in its place). opaque: it removes what
	// they have in this directory.
	hides, opaque bool
}

func (n *node) present() bool { return n.dir || n.entry != nil }

// group is the names of one file in one layer.
type group struct {
	members []int32
}

// origin is where a node's content is to be read.
type origin struct {
	pos   int
	entry *layer.Entry
}

// builder makes an index.
type builder struct {
	*index
	below   []*slot
	whited  map[string]bool // what the layer's whiteouts name
	opaques map[string]bool
	stated  map[string]bool // directories the tar names; made when first asked for
	// lastDir is where the entries in directory lastPath go: tars list a
	// directory's entries together, so most parents are found without a look-up.
	lastPath string
	lastDir  int32
	pending  []pendingLink
	borrowed map[spot]int32 // files of layers below that hard links name
	followed int            // see maxTargets
	// whiteVoid is what hidesNothing said of whiteDir.
	whiteDir  string
	whiteVoid bool
}

type pendingLink struct {
	node  int32
	entry *layer.Entry
}

func buildIndex(toc *layer.TOC, below []*slot) *index {
	n := len(toc.Entries)
	b := &builder{
		index: &index{
			toc:   toc,
			pos:   len(below),
			nodes: make([]node, 1, n+n/8+1),
			kids:  make(map[kid]int32, n),
		},
		below: below,

		lastPath: ".",
	}
	b.nodes[0] = node{name: ".", dir: true}
	marks := 0
	for i := range toc.Entries {
		switch e := &toc.Entries[i]; e.Type {
		case layer.Whiteout:
			put(&b.whited, clean(e.Path))
			marks++
		case layer.Opaque:
			put(&b.opaques, clean(e.Path))
			marks++
		}
	}
	for i := range toc.Entries {
		if e := &toc.Entries[i]; e.Type != layer.Whiteout && e.Type != layer.Opaque {
			b.add(e)
		}
	}
	for _, p := range b.pending {
		b.link(p.node, p.entry, true)
	}
	// A whiteout removes from the layers below wherever in the tar it stands,
	// so they come when the layer's own tree is complete.
	for i := 0; marks > 0 && i < n; i++ {
		if e := &toc.Entries[i]; e.Type == layer.Whiteout || e.Type == layer.Opaque {
			b.mark(e)
			marks--
		}
	}
	return b.index
}

func put(m *map[string]bool, k string) {
	if *m == nil {
		*m = make(map[string]bool)
	}
	(*m)[k] = true
}

// clean makes p a path inside the root. Package layer has cleaned it already;
// this is the cheap second look at what came from a disk or a caller.
func clean(p string) string {
	if validPath(p) {
		return p
	}
	if p = path.Clean("/" + p)[1:]; p == "" {
		return "."
	}
	return p
}

// validPath is fs.ValidPath without its check for UTF-8: a tar may name a file
// in any bytes.
func validPath(p string) bool {
	if p == "." {
		return true
	}
	start := 0
	for i := 0; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			continue
		}
		switch c := p[start:i]; c {
		case "", ".", "..":
			return false
		}
		start = i + 1
	}
	return true
}

// split is path.Split with "." for the root.
func split(p string) (dir, base string) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return ".", p
	}
	return p[:i], p[i+1:]
}

func join(dir, base string) string {
	if dir == "." {
		return base
	}
	return dir + "/" + base
}

// path is where node n lies in the stack.
func (x *index) path(n int32) string {
	if n == 0 {
		return "."
	}
	length := -1
	for i := n; i != 0; i = x.nodes[i].parent {
		length += len(x.nodes[i].name) + 1
	}
	buf := make([]byte, length)
	for i := n; i != 0; i = x.nodes[i].parent {
		name := x.nodes[i].name
		length -= len(name)
		copy(buf[length:], name)
		if length > 0 {
			length--
			buf[length] = '/'
		}
	}
	return string(buf)
}

func (b *builder) child(parent int32, name string) (int32, bool) {
	c, ok := b.kids[kid{parent, name}]
	return c, ok
}

func (b *builder) newChild(parent int32, name string) int32 {
	c := int32(len(b.nodes))
	b.nodes = append(b.nodes, node{name: name, parent: parent, next: b.nodes[parent].first})
	b.nodes[parent].first = c
	b.kids[kid{parent, name}] = c
	return c
}

// empty takes everything out of directory n, which becomes something else.
func (b *builder) empty(n int32) {
	for c := b.nodes[n].first; c != 0; c = b.nodes[c].next {
		b.empty(c)
		delete(b.kids, kid{n, b.nodes[c].name})
		b.nodes[c].entry, b.nodes[c].dir, b.nodes[c].group = nil, false, 0
	}
	b.nodes[n].first = 0
	b.lastPath, b.lastDir = ".", 0
}

// imply makes n a directory without attributes of its own.
func (b *builder) imply(n int32) {
	nd := &b.nodes[n]
	nd.dir, nd.entry, nd.group = true, nil, 0
	delete(b.origin, n)
	b.implied = append(b.implied, n)
}

// add lays e, which is no whiteout, into the tree; it replaces what the layer
// had at its path.
func (b *builder) add(e *layer.Entry) {
	p := clean(e.Path)
	if p == "." {
		if e.Type == layer.Dir {
			b.nodes[0].entry = b.at(0, e)
		}
		return
	}
	dir, base := split(p)
	parent := b.lastDir
	if dir != b.lastPath {
		parent = b.parent(dir)
		b.lastPath, b.lastDir = dir, parent
	}
	n, ok := b.child(parent, base)
	if e.Type == layer.HardLink {
		if !ok {
			n = b.newChild(parent, base)
		}
		b.link(n, e, false)
		return
	}
	if !ok {
		n = b.newChild(parent, base)
	}
	b.set(n, e, e.Type == layer.Dir)
}

// set makes n what e says.
func (b *builder) set(n int32, e *layer.Entry, dir bool) {
	if !dir && b.nodes[n].dir {
		b.empty(n)
	}
	delete(b.origin, n)
	nd := &b.nodes[n]
	if nd.present() || !dir && strings.HasPrefix(b.lastPath, clean(e.Path)) {
		b.lastPath, b.lastDir = ".", 0
	}
	nd.dir, nd.group = dir, 0
	nd.entry = b.at(n, e)
}

// at returns e with the path of node n, which is e itself unless it was moved.
func (b *builder) at(n int32, e *layer.Entry) *layer.Entry {
	if b.under(n, e.Path) {
		return e
	}
	c := *e
	c.Path = b.path(n)
	if c.Path != clean(e.Path) {
		b.misplaced = true
		if e.Type == layer.Regular {
			if b.origin == nil {
				b.origin = make(map[int32]origin)
			}
			b.origin[n] = origin{b.pos, e}
		}
	}
	return &c
}

// under tells whether p is the path of node n.
func (b *builder) under(n int32, p string) bool {
	if n == 0 {
		return p == "."
	}
	for {
		name := b.nodes[n].name
		n = b.nodes[n].parent
		if n == 0 {
			return p == name
		}
		k := len(p) - len(name) - 1
		if k < 0 || p[k] != '/' || p[k+1:] != name {
			return false
		}
		p = p[:k]
	}
}

// parent returns the directory in which the tar's entries in dir go, and makes
// what is missing of it. A symlink on the way, of this layer or of one below,
// is followed inside the root, as containerd does when it extracts layers one
// over the other; but a directory that the tar names itself is one, whatever
// lies below.
func (b *builder) parent(dir string) int32 {
	if dir == "." {
		return 0
	}
	rest, cur, links := dir, int32(0), 0
	for rest != "" {
		name := rest
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			name, rest = rest[:i], rest[i+1:]
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
		target, follow := "", false
		c, ok := b.child(cur, name)
		switch {
		case ok && b.nodes[c].dir:
			cur = c
			continue
		case ok && b.nodes[c].entry != nil && b.nodes[c].entry.Type == layer.Symlink:
			target, follow = b.nodes[c].entry.Link, true
		case !ok:
			p := join(b.path(cur), name)
			if e := b.lookBelow(p); e != nil && e.Type == layer.Symlink && !b.states(p) {
				target, follow = e.Link, true
			}
		}
		if b.followed > maxTargets {
			follow = false
		}
		if follow && links == maxLinks { // a loop: then none is followed
			rest, cur, links = dir, 0, maxLinks+1
			continue
		}
		if follow && links < maxLinks {
			links++
			b.followed += len(target)
			if strings.HasPrefix(target, "/") {
				cur = 0
			}
			rest = target + "/" + rest
			continue
		}
		if !ok {
			c = b.newChild(cur, name)
		}
		b.imply(c)
		cur = c
	}
	if got := b.path(cur); got != dir {
		if b.moved == nil {
			b.moved = make(map[string]string)
		}
		b.moved[dir] = got
	}
	return cur
}

// states tells whether the tar names directory p itself.
func (b *builder) states(p string) bool {
	if b.stated == nil {
		b.stated = make(map[string]bool)
		for i := range b.toc.Entries {
			if e := &b.toc.Entries[i]; e.Type == layer.Dir {
				b.stated[clean(e.Path)] = true
			}
		}
	}
	return b.stated[p]
}

// hidden tells whether the layer's whiteouts remove what lies at p below.
func (b *builder) hidden(p string) bool {
	if b.whited == nil && b.opaques == nil {
		return false
	}
	if b.whited[p] {
		return true
	}
	for p != "." {
		p, _ = split(p)
		if b.whited[p] || b.opaques[p] {
			return true
		}
	}
	return false
}

// lookBelow returns what the layers below have at p, nil for nothing.
func (b *builder) lookBelow(p string) *layer.Entry {
	if len(b.below) == 0 || b.hidden(p) {
		return nil
	}
	at := lookup(b.below, p)
	return at.entry()
}
