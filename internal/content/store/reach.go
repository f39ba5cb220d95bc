package store

import (
	"encoding/json"

	"github.com/strake-project/strake/internal/oci"
)

// question is what to look for among the digests that nothing reaches from
// outside the graph. Tags, repositories' digests, records and leases are
// always kept.
type question struct {
	all     bool         // of everything
	from    []oci.Digest // or of what is below these
	loose   bool         // images without a name are kept too, but not from itself
	waiting bool         // and what waits for its space to be reclaimed
	bare    bool         // as if there were no records (for the graph in memory)
}

// rootTables name what is kept from outside the graph.
var rootTables = [...]string{"tag", "record_hold", "repodigest"}

// looseImages are the images without a name, and their indexes: what a list
// shows though nothing names it. More conditions may follow.
const looseImages = `SELECT m.digest FROM manifest m WHERE m.gone = 0
	AND NOT EXISTS(SELECT 1 FROM edge p WHERE p.child = m.digest AND p.kind IN (2, 3))
	AND (EXISTS(SELECT 1 FROM image i WHERE i.id = m.image AND i.artifact = 0)
		OR m.image = '' AND EXISTS(SELECT 1 FROM edge e JOIN manifest c ON c.digest = e.child JOIN image i ON i.id = c.image
			WHERE e.parent = m.digest AND e.kind = 2 AND i.artifact = 0))`

// manyRoots is from how many digests on it is faster to look at everything
// than to climb from each.
const manyRoots = 64

// dead answers q.
func (s *Store) dead(t *tx, q question) ([]oci.Digest, error) {
	if !q.all && len(q.from) == 0 {
		return nil, nil
	}
	held, err := s.leased()
	if err != nil {
		return nil, err
	}
	if q.all || len(q.from) > manyRoots {
		g, err := t.loadGraph(held, false)
		if err != nil {
			return nil, err
		}
		t.graph = g
		return g.dead(q), nil
	}
	return t.deadBelow(q, held)
}

// deadBelow returns what is reached from the digests given, and no root
// reaches. It costs what those digests reach, and for each of that the way up
// to the nearest root.
func (t *tx) deadBelow(q question, held map[oci.Digest]bool) ([]oci.Digest, error) {
	list, err := json.Marshal(q.from)
	if err != nil {
		return nil, err
	}
	all, err := t.digests(`WITH RECURSIVE below(d) AS (
			SELECT value FROM json_each(?) UNION SELECT child FROM edge JOIN below ON parent = d)
		SELECT d FROM below`, string(list))
	if err != nil {
		return nil, err
	}
	c := climb{t: t, held: held, loose: q.loose, meant: map[oci.Digest]bool{}, alive: map[oci.Digest]bool{}}
	for i, table := range rootTables {
		if i > 0 {
			c.roots += " OR "
		}
		c.roots += "EXISTS(SELECT 1 FROM " + table + " WHERE digest = ?1)"
	}
	if q.waiting {
		c.roots += " OR EXISTS(SELECT 1 FROM waiting WHERE digest = ?1)"
	}
	for _, d := range q.from {
		c.meant[d] = true
	}
	var dead []oci.Digest
	for _, d := range all {
		alive, err := c.reach(d)
		if err != nil {
			return nil, err
		}
		if !alive {
			dead = append(dead, d)
		}
	}
	return dead, nil
}

// climb searches upwards for roots and remembers what it found.
type climb struct {
	t     *tx
	held  map[oci.Digest]bool // by leases
	roots string              // the question whether ?1 is one
	meant map[oci.Digest]bool // no roots for being images without a name
	alive map[oci.Digest]bool // false: known to be dead
	loose bool
}

// root tells whether d itself is kept from outside the graph.
func (c *climb) root(d oci.Digest) (is bool, err error) {
	if c.held[d] {
		return true, nil
	}
	query := c.roots
	if c.loose && !c.meant[d] {
		query += " OR EXISTS(" + looseImages + " AND m.digest = ?1)"
	}
	err = c.t.QueryRow("SELECT "+query, d).Scan(&is)
	return is, err
}

// reach tells whether a root reaches d: depth first, so that a layer which
// thousands of images share is answered by the first of them. The graph has
// cycles (forms), hence the set of those visited; if no root is found, none of
// them has one, since all their parents are among them.
func (c *climb) reach(d oci.Digest) (bool, error) {
	visited := map[oci.Digest]bool{d: true}
	path := []ascent{{d: d}}
	for len(path) > 0 {
		top := &path[len(path)-1]
		alive, known := c.alive[top.d]
		if known && !alive {
			path = path[:len(path)-1]
			continue
		}
		if !known && !top.asked {
			top.asked = true
			var err error
			if alive, err = c.root(top.d); err != nil {
				return false, err
			}
		}
		if alive {
			for _, a := range path {
				c.alive[a.d] = true
			}
			return true, nil
		}
		next, err := c.parent(top)
		if err != nil {
			return false, err
		}
		if next == "" {
			path = path[:len(path)-1]
		} else if !visited[next] {
			visited[next] = true
			path = append(path, ascent{d: next})
		}
	}
	for v := range visited {
		c.alive[v] = false
	}
	return false, nil
}

// ascent is one node on the way up, with the parents not yet tried.
type ascent struct {
	d       oci.Digest
	asked   bool
	parents []oci.Digest
	last    oci.Digest
	done    bool
}

// parent returns the node's next parent, or "". They are read in pages: one of
// the first usually decides.
func (c *climb) parent(a *ascent) (oci.Digest, error) {
	const page = 16
	if len(a.parents) == 0 && !a.done {
		parents, err := c.t.digests("SELECT DISTINCT parent FROM edge WHERE child = ? AND parent > ? ORDER BY parent LIMIT ?", a.d, a.last, page)
		if err != nil {
			return "", err
		}
		a.parents, a.done = parents, len(parents) < page
	}
	if len(a.parents) == 0 {
		return "", nil
	}
	a.last, a.parents = a.parents[0], a.parents[1:]
	return a.last, nil
}
