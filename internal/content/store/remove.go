package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/userns"
)

// Removal says what Remove takes away.
type Removal struct {
	Names []ref.Ref // tags and repositories' digests; what is not there any more is no error
	// Image is an ID: the image goes, unless another name, a record or a lease
	// keeps it. Without, only what the names alone kept goes.
	Image oci.Digest
	// Parts are manifests that go out of every index; anything else that keeps
	// one is a conflict (oci.ErrConflict).
	Parts []oci.Digest
	// KeepImages lets what lost its name stay, as an image without a name.
	KeepImages bool
	// Now deletes at once what else would wait for Undo.
	Now bool
}

// Remove takes names away and, with the last one, the image. What went is not
// there for anybody any more. Its bytes stay until they are reclaimed, unless
// Now: freed.Bytes counts only what was deleted. As with Collect, ctx's lease
// keeps what was looked up under it.
func (s *Store) Remove(ctx context.Context, r Removal) (*Freed, error) {
	if s.readOnly != "" {
		return nil, s.cannotWrite(s.readOnly)
	}
	if err := s.sweepLeases(); err != nil {
		return nil, err
	}
	freed := &Freed{}
	var erased []oci.Digest
	err := s.decide(ctx, true, func(t *tx) error {
		from, err := t.unnameAll(r.Names)
		if err != nil || r.KeepImages {
			return err
		}
		if r.Image != "" {
			shows, err := t.digests(showing, r.Image)
			if err != nil {
				return err
			}
			from = append(from, shows...)
		}
		if err := t.takeOut(r.Parts); err != nil {
			return err
		}
		var removed []oci.Digest
		removed, erased, err = s.discard(t, append(from, r.Parts...), !r.Now, freed)
		if err != nil {
			return err
		}
		return allGone(r.Parts, removed)
	})
	if err != nil {
		return nil, err
	}
	return freed, s.clearOut(ctx, erased, false, freed)
}

// unnameAll removes names and returns what they pointed at.
func (t *tx) unnameAll(names []ref.Ref) ([]oci.Digest, error) {
	var from []oci.Digest
	for _, n := range names {
		if n.Tag == "" {
			from = append(from, n.Digest)
			if err := t.knowDigest(n.Repository(), n.Digest, false); err != nil {
				return nil, err
			}
			continue
		}
		targets, err := t.digests("SELECT digest FROM tag WHERE repo = ? AND tag = ?", n.Repository(), n.Tag)
		if err != nil {
			return nil, err
		}
		from = append(from, targets...)
		if err := t.point(n.Repository(), n.Tag, ""); err != nil {
			return nil, err
		}
		if err := t.unpin(n.Repository(), n.Tag); err != nil {
			return nil, err
		}
	}
	return from, nil
}

// showing is the query of the manifests and indexes that show the image ?1.
const showing = `WITH RECURSIVE up(d) AS (SELECT digest FROM manifest WHERE image = ?1 AND gone = 0
		UNION SELECT e.parent FROM up JOIN edge e ON e.child = up.d AND e.kind = 2)
	SELECT d FROM up`

// discard removes the images that from names and nothing else keeps: from here
// on they are not there. With hold their content waits; without, what nothing
// that waits needs either is erased: its rows are gone, its files are not yet.
func (s *Store) discard(t *tx, from []oci.Digest, hold bool, freed *Freed) (removed, erased []oci.Digest, err error) {
	hold = hold && s.keep > 0
	if removed, err = s.dead(t, question{from: from, loose: true}); err != nil || len(removed) == 0 {
		return nil, nil, err
	}
	if err := t.sort(removed, freed); err != nil {
		return nil, nil, err
	}
	if err := t.setAside(removed, hold); err != nil || hold {
		return removed, nil, err
	}
	if erased, err = s.dead(t, question{from: from, loose: true, waiting: true}); err != nil {
		return nil, nil, err
	}
	return removed, erased, t.bury(erased)
}

// setAside makes the manifests among the dead gone and, with hold, lets them
// wait, and what they reach with them.
func (t *tx) setAside(dead []oci.Digest, hold bool) error {
	list, err := json.Marshal(dead)
	if err != nil {
		return err
	}
	gone, err := t.digests(`UPDATE manifest SET gone = 1
		WHERE gone = 0 AND digest IN (SELECT value FROM json_each(?)) RETURNING digest`, string(list))
	if err != nil || len(gone) == 0 {
		return err
	}
	op, err := t.begun()
	if err != nil {
		return err
	}
	for _, d := range gone {
		if err := t.change(changeImage, "", "", d, ""); err != nil {
			return err
		}
		if hold {
			if _, err := t.Exec("INSERT OR IGNORE INTO waiting(digest, op) VALUES(?,?)", d, op); err != nil {
				return err
			}
		}
	}
	return nil
}

// Reclaim deletes what waits since one of the operations given, or everything
// that waits.
func (s *Store) Reclaim(ctx context.Context, operations ...int64) (*Freed, error) {
	if s.readOnly != "" {
		return nil, s.cannotWrite(s.readOnly)
	}
	query, args := "DELETE FROM waiting RETURNING digest", []any(nil)
	if len(operations) > 0 {
		list, err := json.Marshal(operations)
		if err != nil {
			return nil, err
		}
		query, args = "DELETE FROM waiting WHERE op IN (SELECT value FROM json_each(?)) RETURNING digest", []any{string(list)}
	}
	any := false
	err := s.read(ctx, func(t *tx) (err error) {
		any, err = t.exists("SELECT 1 FROM waiting")
		return err
	})
	freed := &Freed{}
	if err != nil || !any {
		return freed, err
	}
	if err := s.sweepLeases(); err != nil {
		return nil, err
	}
	var erased []oci.Digest
	err = s.decide(ctx, true, func(t *tx) error {
		from, err := t.digests(query, args...)
		if err != nil {
			return err
		}
		if erased, err = s.dead(t, question{from: from, loose: true, waiting: true}); err != nil {
			return err
		}
		if err := t.sort(erased, freed); err != nil {
			return err
		}
		return t.bury(erased)
	})
	if err != nil {
		return nil, err
	}
	return freed, s.clearOut(ctx, erased, false, freed)
}

// relieve reclaims what has waited long enough and, where the disk is nearly
// full, the oldest of the rest until it is not; with all, everything.
//
// Outside the user namespace that made them an ordinary user cannot delete
// trees: the next command that is inside does.
func (s *Store) relieve(ctx context.Context, all bool) error {
	type item struct{ op, at int64 }
	var items []item
	err := s.ask(ctx, func(t *tx) error {
		if s.rootless && !userns.Inside() {
			if trees, err := t.exists("SELECT 1 FROM layer WHERE tree <> 0"); trees || err != nil {
				return err
			}
		}
		return t.each(func(scan func(...any) error) error {
			var i item
			err := scan(&i.op, &i.at)
			items = append(items, i)
			return err
		}, "SELECT id, at FROM operation WHERE id IN (SELECT op FROM waiting) ORDER BY id")
	})
	if err != nil {
		return err
	}
	for _, i := range items {
		if !all && time.Since(time.Unix(0, i.at)) < s.keep && !s.lowSpace() {
			return nil
		}
		if _, err := s.Reclaim(ctx, i.op); err != nil {
			return err
		}
	}
	return nil
}
