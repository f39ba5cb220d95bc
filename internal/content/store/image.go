package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
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
	Names    []ref.Ref      // tags, sorted by their canonical form, as docker's
	Digests  []ref.Ref      // repository@digest, so sorted too
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

// Facts are what a list says of images beyond their IDs, names, times,
// platforms and pins. What is not asked for is left out and costs nothing.
type Facts uint8

const (
	Labels Facts = 1 << iota
	Layers
)

// Selection says what List returns.
type Selection struct {
	Facts Facts
	// Named, if there is one, lets an image through that has a tag or a
	// repository's digest for which it is true: the others are not read at all.
	Named func(ref.Ref) bool
}

// Images lists every image that has a name or was left without one, newest
// first, with all that is known of it.
func (s *Store) Images(ctx context.Context) ([]Image, error) {
	return s.List(ctx, Selection{Facts: Labels | Layers})
}

// List lists images, newest first. Facts come from columns: no blob is read.
//
// Left without a name is what had one, or what was put and belongs to nothing
// else: not to an index, not to a subject, not to a record, not to work in
// flight.
func (s *Store) List(ctx context.Context, sel Selection) ([]Image, error) {
	var all []Image
	err := s.read(ctx, func(t *tx) error {
		g := gathering{s: s, t: t, want: sel.Facts}
		var among []oci.Digest
		if sel.Named != nil {
			few, err := t.selected(sel.Named)
			if err != nil {
				return err
			}
			among = few
		}
		if err := g.load(among); err != nil {
			return err
		}
		var err error
		all, err = g.images()
		return err
	})
	return newestFirst(all), err
}

// newestFirst sorts all in place. An Image is large: small keys are sorted, and
// then each image moves once.
func newestFirst(all []Image) []Image {
	type key struct {
		sec     int64
		nsec, i int32
	}
	keys := make([]key, len(all))
	for i := range all {
		c := all[i].Created
		keys[i] = key{c.Unix(), int32(c.Nanosecond()), int32(i)}
	}
	slices.SortFunc(keys, func(a, b key) int {
		if a.sec != b.sec {
			return cmp.Compare(b.sec, a.sec)
		}
		if a.nsec != b.nsec {
			return cmp.Compare(b.nsec, a.nsec)
		}
		return cmp.Compare(all[a.i].ID, all[b.i].ID)
	})
	// keys[to].i is where to's image lies: each cycle of places is gone round.
	for start := range keys {
		if int(keys[start].i) == start {
			continue
		}
		first := all[start]
		to := start
		for from := int(keys[to].i); from != start; to, from = from, int(keys[from].i) {
			all[to] = all[from]
			keys[to].i = int32(to)
		}
		all[to] = first
		keys[to].i = int32(to)
	}
	return all
}

// manySelected is from how many names on reading all images is faster than
// looking for those that have them.
const manySelected = 500

// selected returns the manifests and indexes that have to be seen to list the
// images with a name that fits, or nil for all.
func (t *tx) selected(fits func(ref.Ref) bool) ([]oci.Digest, error) {
	targets := []oci.Digest{""}
	err := t.rows(func(r row) error {
		if fits(repository(r.text(0)).WithTag(r.text(1))) {
			targets = append(targets, r.digest(2))
		}
		return nil
	}, "SELECT repo, tag, digest FROM tag")
	if err != nil {
		return nil, err
	}
	err = t.rows(func(r row) error {
		if fits(repository(r.text(0)).WithDigest(r.digest(1))) {
			targets = append(targets, r.digest(1))
		}
		return nil
	}, "SELECT repo, digest FROM repodigest")
	if err != nil || len(targets) > manySelected {
		return nil, err
	}
	list, err := json.Marshal(targets)
	if err != nil {
		return nil, err
	}
	// An image is what several targets show, and shows all of its names.
	among, err := t.digests(fmt.Sprintf(related, `digest IN (SELECT value FROM json_each(?1)) OR image <> '' AND image IN (
		WITH RECURSIVE shown(d) AS (SELECT value FROM json_each(?1) UNION SELECT e.child FROM shown JOIN edge e ON e.parent = shown.d AND e.kind = 2)
		SELECT image FROM manifest m JOIN shown ON m.digest = shown.d)`), string(list))
	return append(among, ""), err
}

// candidate is a manifest or index that may be an image's target.
type candidate struct {
	d        oci.Descriptor
	id       oci.Digest // "" of an index
	artifact bool
	children []*candidate
	parents  []*candidate
	dangling bool // without a name, yet to be listed
	hadName  bool
	names    []ref.Ref
	digests  []ref.Ref
	tagged   int64
	added    int64
	facts    *facts
}

// facts is a row of table image.
type facts struct {
	created, size, used          int64
	os, arch, variant, osversion string
	labels, layers               string
	artifact, exact              bool
}

func (f *facts) platform() oci.Platform {
	return oci.Platform{OS: f.os, Architecture: f.arch, Variant: f.variant, OSVersion: f.osversion}
}

// gathering collects what is known of all images, or of some, with one query
// for each table: the tables are joined here, because a look-up by digest for
// each row takes SQLite longer than reading both tables from end to end.
type gathering struct {
	s     *Store
	t     *tx
	want  Facts
	all   map[oci.Digest]*candidate
	order []*candidate
	pins  map[[2]string]bool // repository and tag, or "" and an ID

	some string // the digests it is about, as JSON; "" for all
}

// rows is the transaction's, of what where says if it is about some digests.
func (g *gathering) rows(fn func(row) error, query, where, order string) error {
	if g.some == "" {
		return g.t.rows(fn, query+order)
	}
	return g.t.rows(fn, query+where+order, g.some)
}

// load reads all manifests and indexes, or only those among the digests given,
// with their names.
func (g *gathering) load(among []oci.Digest) error {
	g.all = map[oci.Digest]*candidate{}
	g.pins = map[[2]string]bool{}
	if among != nil {
		list, err := json.Marshal(among)
		if err != nil {
			return err
		}
		g.some = string(list)
	}
	for _, load := range []func() error{g.manifests, g.facts, g.indexes, g.names} {
		if err := load(); err != nil {
			return err
		}
	}
	return nil
}

func (g *gathering) manifests() error {
	unnamed := false
	err := g.rows(func(r row) error {
		c := &candidate{
			d:  oci.Descriptor{Digest: r.digest(0), MediaType: r.text(1), Size: r.int(2)},
			id: r.digest(3), dangling: true, hadName: r.bool(4), added: r.int(5),
		}
		unnamed = unnamed || !c.hadName
		g.all[c.d.Digest] = c
		g.order = append(g.order, c)
		return nil
	}, "SELECT digest, mediatype, size, image, named, added FROM manifest WHERE gone = 0", " AND digest IN (SELECT value FROM json_each(?1))", "")
	if err != nil || !unnamed {
		return err
	}
	// What never had a name may be a record's, or work in flight.
	leased, err := g.s.leased()
	if err != nil {
		return err
	}
	for _, c := range g.order {
		c.dangling = c.hadName || !leased[c.d.Digest]
	}
	return g.rows(func(r row) error {
		if c := g.all[r.digest(0)]; c != nil {
			c.dangling = false
		}
		return nil
	}, "SELECT digest FROM manifest m WHERE named = 0 AND EXISTS(SELECT 1 FROM record_hold h WHERE h.digest = m.digest)",
		" AND digest IN (SELECT value FROM json_each(?1))", "")
}

func (g *gathering) facts() error {
	byID := map[oci.Digest]*facts{}
	columns := "id, artifact, created, os, arch, variant, osversion, size + bytes, exact, used"
	for _, c := range []struct {
		fact   Facts
		column string
	}{{Labels, "labels"}, {Layers, "layers"}} {
		if g.want&c.fact == 0 {
			c.column = "''"
		}
		columns += ", " + c.column
	}
	err := g.rows(func(r row) error {
		byID[r.digest(0)] = &facts{
			artifact: r.bool(1), created: r.int(2), os: r.text(3), arch: r.text(4), variant: r.text(5), osversion: r.text(6),
			size: r.int(7), exact: r.bool(8), used: r.int(9), labels: r.text(10), layers: r.text(11),
		}
		return nil
	}, "SELECT "+columns+" FROM image", " WHERE id IN (SELECT image FROM manifest WHERE digest IN (SELECT value FROM json_each(?1)))", "")
	for _, c := range g.order {
		if f := byID[c.id]; f != nil {
			c.facts, c.artifact = f, f.artifact
		}
	}
	return err
}

func (g *gathering) indexes() error {
	return g.rows(func(r row) error {
		p, c := g.all[r.digest(0)], g.all[r.digest(1)]
		if p != nil && c != nil {
			p.children, c.parents = append(p.children, c), append(c.parents, p)
		}
		return nil
	}, "SELECT parent, child FROM edge WHERE kind = 2", " AND parent IN (SELECT value FROM json_each(?1))", " ORDER BY parent, ord")
}

func (g *gathering) names() error {
	err := g.rows(func(r row) error {
		if c := g.all[r.digest(2)]; c != nil {
			c.names = append(c.names, repository(r.text(0)).WithTag(r.text(1)))
			c.tagged = max(c.tagged, r.int(3))
		}
		return nil
	}, "SELECT repo, tag, digest, at FROM tag", " WHERE digest IN (SELECT value FROM json_each(?1))", " ORDER BY repo, tag")
	if err != nil {
		return err
	}
	err = g.rows(func(r row) error {
		d := r.digest(1)
		if c := g.all[d]; c != nil {
			c.digests = append(c.digests, repository(r.text(0)).WithDigest(d))
		}
		return nil
	}, "SELECT repo, digest FROM repodigest", " WHERE digest IN (SELECT value FROM json_each(?1))", " ORDER BY repo, digest")
	if err != nil {
		return err
	}
	return g.t.rows(func(r row) error {
		g.pins[[2]string{r.text(0), r.text(1)}] = true
		return nil
	}, "SELECT repo, tag FROM pin")
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
	byID := make(map[oci.Digest]int, len(g.order))
	all := make([]Image, 0, len(g.order))
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
		slices.SortFunc(refs, func(a, b ref.Ref) int { return cmp.Compare(a.String(), b.String()) })
	}
}

func (g *gathering) image(target, chosen *candidate) (Image, error) {
	f := chosen.facts
	p := f.platform()
	img := Image{
		ID: chosen.id, Manifest: chosen.d, Target: target.d, Platform: p,
		Names: target.names, Digests: target.digests, Size: f.size, SizeExact: f.exact,
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
		img.Layers = append(img.Layers, oci.Digest(id))
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
