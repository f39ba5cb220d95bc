package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// noSuchImage speaks docker's words and is an oci.ErrNotFound.
type noSuchImage struct{ name string }

func (e noSuchImage) Error() string        { return "No such image: " + e.name }
func (e noSuchImage) Is(target error) bool { return target == oci.ErrNotFound }

// Find looks up an image by name (latest by default), name@digest, ID, ID
// prefix (with or without "sha256:") or manifest digest, in docker's order. It
// fails with oci.ErrNotFound, or oci.ErrInvalid for an ambiguous prefix.
func (s *Store) Find(ctx context.Context, name string) (*Image, error) {
	var img *Image
	err := s.read(ctx, func(t *tx) (err error) {
		img, err = s.findImage(t, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	if leaseOf(ctx) != nil {
		// Take it into the lease; if it was collected meanwhile, it is gone.
		for _, d := range []oci.Digest{img.Target.Digest, img.Manifest.Digest} {
			f, err := s.lookup(ctx, d)
			if err == nil && f.kind == formNone {
				err = noSuchImage{name}
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return img, nil
}

func (s *Store) findImage(t *tx, name string) (*Image, error) {
	hex := strings.TrimPrefix(name, "sha256:")
	if isHex(hex) && len(hex) == 64 {
		return s.byPrefix(t, name, "sha256:"+hex)
	}
	r, err := ref.Parse(name)
	if err == nil {
		var target oci.Digest
		target, err = t.named(r)
		if err == nil {
			return s.showTarget(t, target, noSuchImage{r.WithDefaultTag().Familiar()})
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
		err = noSuchImage{r.WithDefaultTag().Familiar()}
	}
	if isHex(hex) && hex != "" {
		if img, perr := s.byPrefix(t, name, "sha256:"+hex); perr == nil || !errors.Is(perr, oci.ErrNotFound) {
			return img, perr
		}
	}
	return nil, err
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" && len(s) <= 64 }

// named returns the target of a reference, or sql.ErrNoRows. A digest must be
// one that the repository is known for; a tag beside it is for people.
func (t *tx) named(r ref.Ref) (oci.Digest, error) {
	var d string
	var err error
	if r.Digest != "" {
		err = t.QueryRow("SELECT digest FROM repodigest WHERE repo = ?1 AND digest = ?2 UNION ALL SELECT digest FROM tag WHERE repo = ?1 AND digest = ?2 LIMIT 1",
			r.Repository(), r.Digest).Scan(&d)
	} else {
		err = t.QueryRow("SELECT digest FROM tag WHERE repo = ? AND tag = ?", r.Repository(), r.WithDefaultTag().Tag).Scan(&d)
	}
	return oci.Digest(d), err
}

// related is the query of all manifests and indexes that have to be seen to
// tell what start looks like from outside: the indexes it is in, and what else
// is in those.
const related = `WITH RECURSIVE
	up(d) AS (SELECT digest FROM manifest WHERE %s UNION SELECT e.parent FROM up JOIN edge e ON e.child = up.d AND e.kind = 2),
	down(d) AS (SELECT d FROM up UNION SELECT e.child FROM down JOIN edge e ON e.parent = down.d AND e.kind = 2)
	SELECT d FROM down`

// showTarget returns the image that the manifest or index d shows.
func (s *Store) showTarget(t *tx, d oci.Digest, missing error) (*Image, error) {
	among, err := t.digests(fmt.Sprintf(related, "digest = ?"), d)
	if err != nil {
		return nil, err
	}
	g := &gathering{s: s, t: t, want: Labels | Layers}
	if err := g.load(append(among, "")); err != nil {
		return nil, err
	}
	if g.all[d] == nil {
		return nil, missing
	}
	chosen := g.choose(g.all[d], 4)
	if chosen == nil {
		return nil, missing
	}
	return s.showImage(t, chosen.id, d, missing)
}

// showImage returns the image id, as seen through target unless that is "".
func (s *Store) showImage(t *tx, id, target oci.Digest, missing error) (*Image, error) {
	among, err := t.digests(fmt.Sprintf(related, "image = ?"), id)
	if err != nil {
		return nil, err
	}
	g := &gathering{s: s, t: t, want: Labels | Layers}
	if err := g.load(append(among, "")); err != nil {
		return nil, err
	}
	all, err := g.images()
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].ID == id {
			if c := g.all[target]; c != nil && all[i].Target.Digest != target {
				if chosen := g.choose(c, 4); chosen != nil && chosen.id == id {
					all[i].seenThrough(c, chosen)
				}
			}
			return &all[i], nil
		}
	}
	// It is not listed: another platform of an index, or work in flight.
	for _, c := range g.order {
		if c.id == id && c.facts != nil && (target == "" || g.all[target] == nil || g.all[target].id != id || c.d.Digest == target) {
			img, err := g.image(c, c)
			return &img, err
		}
	}
	return nil, missing
}

// byPrefix finds the one image whose ID, or a manifest of which, begins with
// prefix.
func (s *Store) byPrefix(t *tx, name, prefix string) (*Image, error) {
	// '~' sorts after every hex digit.
	ids, err := t.digests(`SELECT image FROM manifest WHERE gone = 0 AND image >= ?1 AND image < ?2
		UNION SELECT CASE WHEN image = '' THEN digest ELSE image END FROM manifest WHERE gone = 0 AND digest >= ?1 AND digest < ?2 LIMIT 2`, prefix, prefix+"~")
	if err != nil {
		return nil, err
	}
	missing := noSuchImage{name}
	switch len(ids) {
	case 0:
		return nil, missing
	case 2:
		return nil, fmt.Errorf("image ID prefix %q is ambiguous: %w", name, oci.ErrInvalid)
	}
	// A whole manifest digest says which manifest is meant.
	var exact string
	err = t.QueryRow("SELECT digest FROM manifest WHERE digest = ? AND gone = 0", prefix).Scan(&exact)
	if err == nil {
		return s.showTarget(t, oci.Digest(exact), missing)
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	isIndex, err := t.exists("SELECT 1 FROM manifest WHERE digest = ? AND image = ''", ids[0])
	if err != nil {
		return nil, err
	}
	if isIndex {
		return s.showTarget(t, ids[0], missing)
	}
	return s.showImage(t, ids[0], "", missing)
}
