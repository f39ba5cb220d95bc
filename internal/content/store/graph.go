package store

import (
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// graph is what keeps what, all of it, in memory: for questions about more
// than a few digests, where a statement for each would take minutes. It is the
// transaction's state when it was loaded; what is changed since has to be said
// to it.
type graph struct {
	index   map[oci.Digest]int32
	digests []oci.Digest
	is      []trait
	edges   []edge              // by parent
	spans   []span              // node → its edges
	named   []int32             // node → how many tags and repositories' digests it has
	above   []int32             // node → how many indexes and subjects have it
	config  []int32             // manifest → node, or -1
	image   []int32             // manifest → its image's ID, -1 of an index
	shows   map[int32][]int32   // image's ID → manifests
	inside  map[int32][]int32   // manifest or index → the indexes it is in
	names   map[int32][]ref.Ref // if they are wanted
}

type edge struct {
	child int32
	kind  uint8
}

type span struct{ from, to int32 }

// trait is what rows say of a digest.
type trait uint16

const (
	isBlob trait = 1 << iota
	isLayer
	isManifest
	isImage // an image's ID, and no artifact's
	isGone
	isHeld    // by a lease
	isRecord  // held by a record
	isWaiting // until it is reclaimed
	hasTree
	isBuried
)

// loadGraph reads it, with the names that point at manifests if they are wanted.
func (t *tx) loadGraph(held map[oci.Digest]bool, names bool) (*graph, error) {
	g := &graph{
		index: map[oci.Digest]int32{}, shows: map[int32][]int32{}, inside: map[int32][]int32{}, names: map[int32][]ref.Ref{},
	}
	if err := g.nodes(t); err != nil {
		return nil, err
	}
	var parents []int32
	err := t.rows(func(r row) error {
		parents = append(parents, g.node(r.digest(0)))
		g.edges = append(g.edges, edge{g.node(r.digest(1)), uint8(r.int(2))})
		return nil
	}, "SELECT parent, child, kind FROM edge ORDER BY parent")
	if err != nil {
		return nil, err
	}
	if err := g.roots(t, names); err != nil {
		return nil, err
	}
	for d := range held {
		g.is[g.node(d)] |= isHeld
	}
	g.connect(parents)
	return g, nil
}

// node is d's number.
func (g *graph) node(d oci.Digest) int32 {
	n, ok := g.index[d]
	if !ok {
		n = int32(len(g.digests))
		g.index[d] = n
		g.digests = append(g.digests, d)
		g.is = append(g.is, 0)
		g.named = append(g.named, 0)
	}
	return n
}

func (g *graph) nodes(t *tx) error {
	type facts struct{ manifest, image, config int32 }
	var manifests []facts
	err := t.rows(func(r row) error {
		f := facts{g.node(r.digest(0)), -1, -1}
		g.is[f.manifest] |= isManifest
		if r.bool(3) {
			g.is[f.manifest] |= isGone
		}
		if d := r.digest(1); d != "" {
			f.image = g.node(d)
			g.shows[f.image] = append(g.shows[f.image], f.manifest)
		}
		if d := r.digest(2); d != "" {
			f.config = g.node(d)
		}
		manifests = append(manifests, f)
		return nil
	}, "SELECT digest, image, config, gone FROM manifest")
	if err != nil {
		return err
	}
	for _, q := range []struct {
		query string
		is    trait
	}{
		{"SELECT digest FROM blob", isBlob},
		{"SELECT diffid, tree <> 0 FROM layer", isLayer},
		{"SELECT id FROM image WHERE artifact = 0", isImage},
	} {
		err := t.rows(func(r row) error {
			n := g.node(r.digest(0))
			g.is[n] |= q.is
			if len(r) > 1 && r.bool(1) {
				g.is[n] |= hasTree
			}
			return nil
		}, q.query)
		if err != nil {
			return err
		}
	}
	g.image, g.config = make([]int32, len(g.digests)), make([]int32, len(g.digests))
	for i := range g.image {
		g.image[i], g.config[i] = -1, -1
	}
	for _, f := range manifests {
		g.image[f.manifest], g.config[f.manifest] = f.image, f.config
	}
	return nil
}

func (g *graph) roots(t *tx, names bool) error {
	mark := func(is trait) func(row) error {
		return func(r row) error {
			g.is[g.node(r.digest(0))] |= is
			return nil
		}
	}
	name := func(r row) error {
		n := g.node(r.digest(0))
		g.named[n]++
		if names {
			to := repository(r.text(1))
			if tag := r.text(2); tag != "" {
				to.Tag = tag
			} else {
				to.Digest = g.digests[n]
			}
			g.names[n] = append(g.names[n], to)
		}
		return nil
	}
	for _, q := range []struct {
		fn    func(row) error
		query string
	}{
		{name, "SELECT digest, repo, tag FROM tag"},
		{name, "SELECT digest, repo, '' FROM repodigest"},
		{mark(isRecord), "SELECT DISTINCT digest FROM record_hold"},
		{mark(isWaiting), "SELECT digest FROM waiting"},
	} {
		if err := t.rows(q.fn, q.query); err != nil {
			return err
		}
	}
	return nil
}

// connect makes the rest from the parents of all edges.
func (g *graph) connect(parents []int32) {
	n := len(g.digests)
	for len(g.image) < n {
		g.image, g.config = append(g.image, -1), append(g.config, -1)
	}
	g.above = make([]int32, n)
	g.spans = make([]span, n)
	for _, p := range parents {
		g.spans[p].to++
	}
	sum := int32(0)
	for i, s := range g.spans {
		g.spans[i] = span{sum, sum}
		sum += s.to
	}
	sorted := make([]edge, len(g.edges))
	for i, p := range parents {
		e := g.edges[i]
		sorted[g.spans[p].to] = e
		g.spans[p].to++
		if e.kind == edgeImage || e.kind == edgeSubject {
			g.above[e.child]++
		}
		if e.kind == edgeImage {
			g.inside[e.child] = append(g.inside[e.child], p)
		}
	}
	g.edges = sorted
}

// below are n's edges, none if its rows are gone.
func (g *graph) below(n int32) []edge {
	if g.is[n]&isBuried != 0 {
		return nil
	}
	return g.edges[g.spans[n].from:g.spans[n].to]
}

// reach marks what is reached from the nodes.
func (g *graph) reach(marked []bool, from []int32) {
	for _, n := range from {
		marked[n] = true
	}
	for len(from) > 0 {
		n := from[len(from)-1]
		from = from[:len(from)-1]
		for _, e := range g.below(n) {
			if !marked[e.child] {
				marked[e.child] = true
				from = append(from, e.child)
			}
		}
	}
}

// loose tells whether n is an image without a name, or the index of one, as
// looseImages says it.
func (g *graph) loose(n int32) bool {
	if g.is[n]&(isManifest|isGone) != isManifest || g.above[n] > 0 {
		return false
	}
	if i := g.image[n]; i >= 0 {
		return g.is[i]&isImage != 0
	}
	for _, e := range g.below(n) {
		if i := g.image[e.child]; e.kind == edgeImage && g.is[e.child]&isManifest != 0 && i >= 0 && g.is[i]&isImage != 0 {
			return true
		}
	}
	return false
}

// dead answers q.
func (g *graph) dead(q question) []oci.Digest {
	var from []int32
	meant := map[int32]bool{}
	for _, d := range q.from {
		n, ok := g.index[d]
		if ok && !meant[n] {
			meant[n] = true
			from = append(from, n)
		}
	}
	rooted := isHeld | isRecord
	if q.bare {
		rooted = isHeld
	}
	if q.waiting {
		rooted |= isWaiting
	}
	var roots []int32
	for n := range int32(len(g.digests)) {
		if g.named[n] > 0 || g.is[n]&rooted != 0 || q.loose && !meant[n] && g.loose(n) {
			roots = append(roots, n)
		}
	}
	live := make([]bool, len(g.digests))
	g.reach(live, roots)
	asked := make([]bool, len(g.digests))
	if q.all {
		for n := range asked {
			asked[n] = g.is[n]&(isBlob|isLayer|isManifest) != 0
		}
	} else {
		g.reach(asked, from)
	}
	var dead []oci.Digest
	for n, d := range g.digests {
		if asked[n] && !live[n] {
			dead = append(dead, d)
		}
	}
	for _, d := range q.from {
		if _, known := g.index[d]; !known && !q.all {
			dead = append(dead, d) // files without rows, perhaps
		}
	}
	return dead
}

// sort says what the dead were, as tx.sort does.
func (g *graph) sort(dead []oci.Digest, freed *Freed) {
	in, configs := make([]bool, len(g.digests)), make([]bool, len(g.digests))
	for _, d := range dead {
		if n, ok := g.index[d]; ok {
			in[n] = true
		}
	}
	for n, d := range g.digests {
		if !in[n] || g.is[n]&isManifest == 0 {
			continue
		}
		freed.Manifests = append(freed.Manifests, d)
		if c := g.config[n]; c >= 0 && !configs[c] {
			configs[c] = true
			if in[c] && g.is[c]&isBlob != 0 {
				freed.Configs = append(freed.Configs, g.digests[c])
			}
		}
	}
	for n, d := range g.digests {
		if !in[n] {
			continue
		}
		if g.is[n]&(isBlob|isManifest) == isBlob && !configs[n] {
			freed.Blobs = append(freed.Blobs, d)
		}
		if g.is[n]&isLayer != 0 && g.hasForm(int32(n)) {
			freed.Layers = append(freed.Layers, d)
		}
	}
}

// hasForm tells whether layer n is there in any form.
func (g *graph) hasForm(n int32) bool {
	if g.is[n]&(isBlob|hasTree) != 0 {
		return true
	}
	for _, e := range g.below(n) {
		if e.kind == edgeForm && g.is[e.child]&isBlob != 0 {
			return true
		}
	}
	return false
}

// bury forgets the rows of the dead.
func (g *graph) bury(dead []oci.Digest) {
	for _, d := range dead {
		n, ok := g.index[d]
		if !ok {
			continue
		}
		for _, e := range g.below(n) {
			if e.kind == edgeImage || e.kind == edgeSubject {
				g.above[e.child]--
			}
		}
		g.is[n] = g.is[n]&^(isBlob|isLayer|isManifest|hasTree) | isBuried
		g.image[n], g.config[n] = -1, -1
	}
}
