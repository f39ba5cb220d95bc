package store

import (
	"slices"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// pruneMany decides as prune does, for many images or everything, and for
// every dry run: on the graph in memory, so that a dry run writes nothing and
// asks nothing for each image. from is what records and what waited let go.
func (s *Store) pruneMany(t *tx, p *Prune, from []oci.Digest, done *Pruned) error {
	held, err := s.leased()
	if err != nil {
		return err
	}
	g, err := t.loadGraph(held, true)
	if err != nil {
		return err
	}
	var images []oci.Digest
	for i := range p.Images {
		img := &p.Images[i]
		let, names := g.letImageGo(img)
		images = append(images, let...)
		if len(names) > 0 {
			done.Untagged[img.ID] = append(done.Untagged[img.ID], names...)
		}
		if !p.Dry {
			if _, err := t.unnameAll(names); err != nil {
				return err
			}
		}
	}
	bare := g.dead(question{from: images, loose: true, bare: true})
	hold := !p.Now && s.keep > 0
	removed := g.dead(question{from: images, loose: true})
	g.sort(removed, &done.Freed)
	g.setAside(removed, hold)
	if !p.Dry && len(removed) > 0 {
		if err := t.setAside(removed, hold); err != nil {
			return err
		}
	}
	if !hold {
		done.erased = g.dead(question{from: images, loose: true, waiting: true})
		g.bury(done.erased)
	}
	rest := g.dead(question{all: p.All, from: append(from, p.Content...), loose: true, waiting: true})
	if len(p.Content) > 0 && !p.Now && len(from) == 0 {
		rest = onlyOf(rest, p.Content)
	}
	g.sort(rest, &done.Freed)
	done.erased = append(done.erased, rest...)
	done.Dead = slices.Compact(slices.Sorted(slices.Values(slices.Concat(removed, done.erased))))
	dead := map[oci.Digest]bool{}
	for _, d := range done.Dead {
		dead[d] = true
	}
	done.held = slices.DeleteFunc(bare, func(d oci.Digest) bool { return dead[d] })
	if p.Dry {
		done.owner = g.owners(p.Images, done.Dead)
		return nil
	}
	return t.bury(done.erased)
}

func onlyOf(all, some []oci.Digest) []oci.Digest {
	in := map[oci.Digest]bool{}
	for _, d := range some {
		in[d] = true
	}
	return slices.DeleteFunc(all, func(d oci.Digest) bool { return !in[d] })
}

// letImageGo takes img's names away, unless a record holds it, and returns what
// shows it and those names, as tx.letImageGo does.
func (g *graph) letImageGo(img *Image) (targets []oci.Digest, gone []ref.Ref) {
	for _, d := range []oci.Digest{img.ID, img.Manifest.Digest} {
		if n, ok := g.index[d]; ok && g.is[n]&isRecord != 0 {
			return nil, nil
		}
	}
	targets = []oci.Digest{img.Target.Digest, img.Manifest.Digest}
	id, ok := g.index[img.ID]
	if !ok {
		return targets, nil
	}
	var todo []int32
	for _, m := range g.shows[id] {
		if g.is[m]&(isManifest|isGone) == isManifest {
			todo = append(todo, m)
		}
	}
	seen := map[int32]bool{}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[n] {
			continue
		}
		seen[n] = true
		todo = append(todo, g.inside[n]...)
		targets = append(targets, g.digests[n])
		g.names[n] = slices.DeleteFunc(g.names[n], func(r ref.Ref) bool {
			// An index's other images were not asked for: only what was listed goes.
			if !slices.Contains(img.Names, r) && !slices.Contains(img.Digests, r) {
				return false
			}
			gone = append(gone, r)
			g.named[n]--
			return true
		})
	}
	sortUntagged(gone)
	return targets, gone
}

// setAside makes the manifests among the dead gone and, with hold, lets them
// wait, as tx.setAside does.
func (g *graph) setAside(dead []oci.Digest, hold bool) {
	for _, d := range dead {
		n, ok := g.index[d]
		if !ok || g.is[n]&(isManifest|isGone) != isManifest {
			continue
		}
		g.is[n] |= isGone
		if hold {
			g.is[n] |= isWaiting
		}
	}
}

// owners divides the dead among the images: each belongs to the first that has
// it. What is alive keeps nothing that is dead, so only the dead are followed;
// and what an image before owns, it owns with all below it.
func (g *graph) owners(images []Image, dead []oci.Digest) map[oci.Digest]int {
	in := make([]bool, len(g.digests))
	for _, d := range dead {
		if n, ok := g.index[d]; ok {
			in[n] = true
		}
	}
	owner := make(map[oci.Digest]int, len(dead))
	for i := range images {
		var todo []int32
		for _, d := range []oci.Digest{images[i].Target.Digest, images[i].Manifest.Digest} {
			if n, ok := g.index[d]; ok {
				todo = append(todo, n)
			}
		}
		for len(todo) > 0 {
			n := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if !in[n] {
				continue
			}
			in[n] = false
			owner[g.digests[n]] = i
			for _, e := range g.edges[g.spans[n].from:g.spans[n].to] {
				todo = append(todo, e.child)
			}
		}
	}
	return owner
}
