package store

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Image is what lists and look-ups say of one image. An image is a config:
// its ID is the config's digest, and one ID may be reached through several
// manifests (packed differently) and names. An artifact, whose config is no
// image's, has its manifest's digest as ID and no Layers.
type Image struct {
	ID       oci.Digest
	Manifest oci.Descriptor // for the platform chosen
	Target   oci.Descriptor // what the names point at: Manifest, or its index
	Names    []ref.Ref      // tags, sorted
	Digests  []ref.Ref      // repository@digest, sorted
	Created  time.Time
	Tagged   time.Time // when a tag last came to point at it
	Platform oci.Platform
	Labels   map[string]string
	// Size is the sum of its layers' file sizes: exact where every layer has a
	// TOC, else estimated from the length of the plain tars.
	Size      int64
	SizeExact bool
	Layers    []oci.Digest // diffIDs
	// Used is when it was last pulled, built, loaded, tagged, run, built from or
	// pushed, as far as the store was told; to the hour.
	Used        time.Time
	PinnedNames []ref.Ref // those of Names that are pinned
	Pinned      bool      // it is, whatever it is called
}

// Images lists every image that has a name or was left without one, newest
// first. Facts come from columns: no blob is read.
//
// Left without a name is what had one, or what was put and belongs to nothing
// else: not to an index, not to a subject, not to a record, not to work in
// flight.
func (s *Store) Images(ctx context.Context) ([]Image, error) {
	var all []Image
	err := s.read(ctx, func(t *tx) error {
		g := gathering{s: s, t: t}
		if err := g.load(nil); err != nil {
			return err
		}
		var err error
		all, err = g.images()
		return err
	})
	slices.SortFunc(all, func(a, b Image) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return all, err
}

// candidate is a manifest or index that may be an image's target.
type candidate struct {
	d        oci.Descriptor
	id       oci.Digest // "" of an index
	artifact bool
	children []*candidate
	parents  []*candidate
	dangling bool // without a name, yet to be listed
	names    []ref.Ref
	digests  []ref.Ref
	tagged   int64
	added    int64
	facts    *facts
}

// facts is a row of table image.
type facts struct {
	id                           oci.Digest
	created, size, used          int64
	os, arch, variant, osversion string
	labels, layers               string
	artifact                     bool
}

func (f *facts) platform() oci.Platform {
	return oci.Platform{OS: f.os, Architecture: f.arch, Variant: f.variant, OSVersion: f.osversion}
}

// gathering collects what is known of all images, or of one, with one query
// for each table.
type gathering struct {
	s      *Store
	t      *tx
	all    map[oci.Digest]*candidate
	order  []*candidate
	sizes  map[string]layerSize
	leased map[oci.Digest]bool
	pins   map[[2]string]bool // repository and tag, or "" and an ID
}

type layerSize struct {
	bytes int64
	exact bool
}

// load reads all manifests and indexes, or only those among the digests given,
// with their names.
func (g *gathering) load(among []oci.Digest) error {
	g.all = map[oci.Digest]*candidate{}
	g.sizes = map[string]layerSize{}
	args := []any(nil)
	where := func(prefix, column string) string {
		if among == nil {
			return ""
		}
		return prefix + column + " IN (SELECT value FROM json_each(?1))"
	}
	if among != nil {
		list, err := json.Marshal(among)
		if err != nil {
			return err
		}
		args = []any{string(list)}
	}
	if err := g.manifests(where(" AND ", "m.digest"), args); err != nil {
		return err
	}
	err := g.t.each(func(scan func(...any) error) error {
		var parent, child string
		if err := scan(&parent, &child); err != nil {
			return err
		}
		p, c := g.all[oci.Digest(parent)], g.all[oci.Digest(child)]
		if p != nil && c != nil {
			p.children, c.parents = append(p.children, c), append(c.parents, p)
		}
		return nil
	}, "SELECT parent, child FROM edge WHERE kind = 2"+where(" AND ", "parent")+" ORDER BY parent, ord", args...)
	if err != nil {
		return err
	}
	err = g.t.each(func(scan func(...any) error) error {
		var repo, tag, d string
		var at int64
		if err := scan(&repo, &tag, &d, &at); err != nil {
			return err
		}
		if c := g.all[oci.Digest(d)]; c != nil {
			c.names = append(c.names, repository(repo).WithTag(tag))
			c.tagged = max(c.tagged, at)
		}
		return nil
	}, "SELECT repo, tag, digest, at FROM tag"+where(" WHERE ", "digest")+" ORDER BY repo, tag", args...)
	if err != nil {
		return err
	}
	g.pins = map[[2]string]bool{}
	err = g.t.each(func(scan func(...any) error) error {
		var repo, tag string
		err := scan(&repo, &tag)
		g.pins[[2]string{repo, tag}] = true
		return err
	}, "SELECT repo, tag FROM pin")
	if err != nil {
		return err
	}
	return g.t.each(func(scan func(...any) error) error {
		var repo, d string
		if err := scan(&repo, &d); err != nil {
			return err
		}
		if c := g.all[oci.Digest(d)]; c != nil {
			c.digests = append(c.digests, repository(repo).WithDigest(oci.Digest(d)))
		}
		return nil
	}, "SELECT repo, digest FROM repodigest"+where(" WHERE ", "digest")+" ORDER BY repo, digest", args...)
}

func (g *gathering) manifests(where string, args []any) error {
	return g.t.each(func(scan func(...any) error) error {
		c := new(candidate)
		var f facts
		var digest, id string
		var named bool
		if err := scan(&digest, &c.d.MediaType, &c.d.Size, &id, &named, &c.dangling,
			&f.artifact, &f.created, &f.os, &f.arch, &f.variant, &f.osversion, &f.labels, &f.layers, &f.size, &f.used, &c.added); err != nil {
			return err
		}
		if !named && c.dangling {
			// Work in flight? Few manifests never had a name.
			if g.leased == nil {
				var err error
				if g.leased, err = g.s.leased(); err != nil {
					return err
				}
			}
			c.dangling = !g.leased[oci.Digest(digest)]
		}
		c.d.Digest, c.id, f.id = oci.Digest(digest), oci.Digest(id), oci.Digest(id)
		if f.size >= 0 { // -1: an index, or an image whose config is not here
			c.facts, c.artifact = &f, f.artifact
		}
		g.all[c.d.Digest] = c
		g.order = append(g.order, c)
		return nil
	}, `SELECT m.digest, m.mediatype, m.size, m.image,
			m.named, m.named OR NOT EXISTS(SELECT 1 FROM record_hold h WHERE h.digest = m.digest),
			coalesce(i.artifact, 0), coalesce(i.created, 0), coalesce(i.os, ''), coalesce(i.arch, ''), coalesce(i.variant, ''),
			coalesce(i.osversion, ''), coalesce(i.labels, ''), coalesce(i.layers, ''), coalesce(i.size, -1), coalesce(i.used, 0), m.added
		FROM manifest m LEFT JOIN image i ON i.id = m.image WHERE m.gone = 0`+where, args...)
}

// choose picks the image that target shows: itself, or of an index the one for
// this machine, else the first that is here and no attestation.
func (g *gathering) choose(target *candidate, depth int) *candidate {
	if target.facts != nil {
		return target
	}
	var here []*candidate
	for _, c := range target.children {
		if depth > 0 {
			if chosen := g.choose(c, depth-1); chosen != nil && !chosen.attestation() {
				here = append(here, chosen)
			}
		}
	}
	if len(here) == 0 {
		return nil
	}
	if len(here) > 1 {
		ds := make([]oci.Descriptor, len(here))
		for i, c := range here {
			ds[i] = c.d
			p := c.facts.platform()
			ds[i].Platform = &p
		}
		if d, err := content.Choose(ds, content.Host()); err == nil {
			return g.all[d.Digest]
		}
	}
	return here[0]
}

func (c *candidate) attestation() bool {
	return c.facts.os == "unknown" && c.facts.arch == "unknown"
}

// images makes one Image of each ID that is to be listed.
func (g *gathering) images() ([]Image, error) {
	if err := g.layerSizes(); err != nil {
		return nil, err
	}
	byID := map[oci.Digest]int{}
	var all []Image
	for _, target := range g.order {
		named := len(target.names) > 0 || len(target.digests) > 0
		if !named && (!target.dangling || len(target.parents) > 0) {
			continue
		}
		chosen := g.choose(target, 4)
		if chosen == nil || chosen.artifact && !named {
			continue
		}
		i, ok := byID[chosen.id]
		if !ok {
			img, err := g.image(target, chosen)
			if err != nil {
				return nil, err
			}
			byID[chosen.id] = len(all)
			all = append(all, img)
			continue
		}
		all[i].merge(target, chosen)
	}
	for i := range all {
		sortRefs(all[i].Names)
		sortRefs(all[i].Digests)
		g.pin(&all[i])
	}
	return all, nil
}

// pin says what of an image is pinned.
func (g *gathering) pin(img *Image) {
	if len(g.pins) == 0 {
		return
	}
	img.Pinned = g.pins[[2]string{"", string(img.ID)}]
	for _, n := range img.Names {
		if g.pins[[2]string{n.Repository(), n.Tag}] {
			img.PinnedNames = append(img.PinnedNames, n)
		}
	}
}

func sortRefs(refs []ref.Ref) {
	if len(refs) > 1 {
		slices.SortFunc(refs, func(a, b ref.Ref) int { return cmp.Compare(a.Familiar(), b.Familiar()) })
	}
}

// layerSizes loads the sizes of layers, of all at once where many are needed.
func (g *gathering) layerSizes() error {
	var wanted []string
	for _, c := range g.order {
		if c.facts != nil && len(wanted) <= 1000 {
			wanted = append(wanted, strings.Fields(c.facts.layers)...)
		}
	}
	load := func(where string, args ...any) error {
		return g.t.each(func(scan func(...any) error) error {
			var id string
			var l layerSize
			err := scan(&id, &l.bytes, &l.exact)
			g.sizes[id] = l
			return err
		}, "SELECT diffid, bytes, toc FROM layer"+where, args...)
	}
	if len(wanted) > 1000 {
		return load("")
	}
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	if len(wanted) == 0 {
		return nil
	}
	list, err := json.Marshal(wanted)
	if err != nil {
		return err
	}
	return load(" WHERE diffid IN (SELECT value FROM json_each(?))", string(list))
}

func (g *gathering) image(target, chosen *candidate) (Image, error) {
	f := chosen.facts
	p := f.platform()
	img := Image{
		ID: chosen.id, Manifest: chosen.d, Target: target.d, Platform: p,
		Names: target.names, Digests: target.digests,
		Size: f.size, SizeExact: !f.artifact,
	}
	if f.os != "" || f.arch != "" {
		img.Manifest.Platform = &p
	}
	if f.created != 0 {
		img.Created = time.Unix(0, f.created).UTC()
	}
	if target.tagged != 0 {
		img.Tagged = time.Unix(0, target.tagged)
	}
	img.Used = time.Unix(0, max(f.used, chosen.added, target.added, target.tagged))
	if f.labels != "" {
		if err := json.Unmarshal([]byte(f.labels), &img.Labels); err != nil {
			return img, err
		}
	}
	for id := range strings.FieldsSeq(f.layers) {
		l := g.sizes[id]
		img.Layers = append(img.Layers, oci.Digest(id))
		img.Size += l.bytes
		img.SizeExact = img.SizeExact && l.exact
	}
	return img, nil
}

// merge adds another target of the same image. What has names is preferred to
// what has none.
func (img *Image) merge(target, chosen *candidate) {
	if len(img.Names) == 0 && len(target.names) > 0 || len(img.Names)+len(img.Digests) == 0 {
		img.seenThrough(target, chosen)
	}
	img.Names = append(slices.Clip(img.Names), target.names...)
	img.Digests = append(slices.Clip(img.Digests), target.digests...)
	if t := time.Unix(0, target.tagged); target.tagged != 0 && t.After(img.Tagged) {
		img.Tagged = t
	}
	if t := time.Unix(0, max(target.added, target.tagged)); t.After(img.Used) {
		img.Used = t
	}
}

func (img *Image) seenThrough(target, chosen *candidate) {
	platform := img.Manifest.Platform
	img.Target, img.Manifest = target.d, chosen.d
	img.Manifest.Platform = platform
}
