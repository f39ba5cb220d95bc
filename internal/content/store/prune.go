package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Prune says what to let go. What was listed for it may have come into use
// since; that stays.
type Prune struct {
	// Images lose their names and go, but for those that a record has come to
	// hold. Of their names only those go that still show the image.
	Images []Image
	// Records go unless they were used since they were listed.
	Records []Record
	// All collects everything else that nothing reaches, and what dead
	// processes left.
	All bool
	// Dry changes nothing and tells what would happen.
	Dry bool
}

// Pruned is what Prune did, or would do.
type Pruned struct {
	Freed
	Untagged map[oci.Digest][]ref.Ref // by image ID: its tags, then its repositories' digests
	Records  []Record                 // that are gone
	Dead     []oci.Digest             // blobs and layers, all of them
}

// errDry takes a dry run's transaction back.
var errDry = errors.New("dry run")

// Prune lets go of what p names and deletes what then nothing reaches, decided
// in one transaction. As with Collect, ctx's lease keeps what was looked up
// under it.
func (s *Store) Prune(ctx context.Context, p Prune) (*Pruned, error) {
	if s.readOnly != "" {
		return nil, s.cannotWrite(s.readOnly)
	}
	if err := s.sweepLeases(); err != nil {
		return nil, err
	}
	done := &Pruned{Untagged: map[oci.Digest][]ref.Ref{}}
	dead, err := s.decidePrune(ctx, &p, done)
	done.Dead = dead
	switch {
	case p.Dry && errors.Is(err, errDry):
		return done, s.weigh(ctx, dead, p.All, &done.Freed)
	case err != nil:
		return nil, err
	}
	return done, s.clearOut(ctx, dead, p.All, &done.Freed)
}

func (s *Store) decidePrune(ctx context.Context, p *Prune, done *Pruned) (dead []oci.Digest, err error) {
	gate, err := s.gate(unix.LOCK_EX) // see bringOut
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	begin := s.writeSynced
	if p.Dry {
		begin = s.write
	}
	err = begin(ctx, func(t *tx) error {
		from, err := t.letGo(p, done)
		if err != nil {
			return err
		}
		if p.All || len(from) > 0 {
			if dead, err = s.dead(t, p.All, from); err != nil {
				return err
			}
		}
		if err := t.bury(dead, &done.Freed); err != nil {
			return err
		}
		if p.Dry {
			return errDry
		}
		return nil
	})
	return dead, err
}

// letGo removes the names and records, and returns what they reached directly.
func (t *tx) letGo(p *Prune, done *Pruned) ([]oci.Digest, error) {
	var from []oci.Digest
	for i := range p.Records {
		r := &p.Records[i]
		res, err := t.Exec("DELETE FROM record WHERE bucket = ? AND key = ? AND used <= ?", r.Bucket, r.Key, r.Used.UnixNano())
		if err != nil {
			return nil, err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			if err != nil {
				return nil, err
			}
			continue
		}
		if _, err := t.Exec("DELETE FROM record_hold WHERE bucket = ? AND key = ?", r.Bucket, r.Key); err != nil {
			return nil, err
		}
		done.Records = append(done.Records, *r)
		from = append(from, r.Holds...)
	}
	for i := range p.Images {
		img := &p.Images[i]
		used, err := t.exists("SELECT 1 FROM record_hold WHERE digest IN (?, ?)", img.ID, img.Manifest.Digest)
		if err != nil {
			return nil, err
		}
		if used {
			continue
		}
		targets, err := t.unname(img, done)
		if err != nil {
			return nil, err
		}
		from = append(append(from, targets...), img.Target.Digest, img.Manifest.Digest)
	}
	return from, nil
}

// unname removes those of img's names that still show it, and returns what
// they pointed at.
func (t *tx) unname(img *Image, done *Pruned) ([]oci.Digest, error) {
	targets, err := t.digests(`WITH RECURSIVE up(d) AS (SELECT digest FROM manifest WHERE image = ?
			UNION SELECT e.parent FROM up JOIN edge e ON e.child = up.d AND e.kind = 2)
		SELECT d FROM up`, img.ID)
	if err != nil {
		return nil, err
	}
	gone := []oci.Digest{}
	for _, d := range targets {
		var names, digests []ref.Ref
		err := t.each(func(scan func(...any) error) error {
			var repo, tag string
			err := scan(&repo, &tag)
			if r := repository(repo); tag != "" {
				names = append(names, r.WithTag(tag))
			} else {
				digests = append(digests, r.WithDigest(d))
			}
			return err
		}, "SELECT repo, tag FROM tag WHERE digest = ?1 UNION ALL SELECT repo, '' FROM repodigest WHERE digest = ?1", d)
		if err != nil {
			return nil, err
		}
		// An index's other images were not asked for: only what was listed goes.
		names = slices.DeleteFunc(names, func(r ref.Ref) bool { return !slices.Contains(img.Names, r) })
		digests = slices.DeleteFunc(digests, func(r ref.Ref) bool { return !slices.Contains(img.Digests, r) })
		for _, r := range names {
			if err := t.point(r.Repository(), r.Tag, ""); err != nil {
				return nil, err
			}
		}
		for _, r := range digests {
			t.noteDigest(r.Repository(), d, false)
			if _, err := t.Exec("DELETE FROM repodigest WHERE repo = ? AND digest = ?", r.Repository(), d); err != nil {
				return nil, err
			}
		}
		if len(names)+len(digests) > 0 {
			gone = append(gone, d)
			done.Untagged[img.ID] = append(append(done.Untagged[img.ID], names...), digests...)
		}
	}
	slices.SortStableFunc(done.Untagged[img.ID], func(a, b ref.Ref) int {
		return cmp.Or(strings.Compare(string(a.Digest), string(b.Digest)), strings.Compare(a.Familiar(), b.Familiar()))
	})
	return gone, nil
}

// weigh counts what deleting the files of the dead would free.
func (s *Store) weigh(ctx context.Context, dead []oci.Digest, sweep bool, freed *Freed) error {
	seen := map[[2]uint64]bool{}
	if sweep {
		left, err := s.findLeftovers(ctx, true, &freed.Bytes, seen)
		if err != nil {
			return err
		}
		for _, d := range left.blobs {
			freed.Bytes += blocks(s.blobPath(d), seen)
		}
		for _, d := range left.layers {
			freed.Bytes += blocks(s.layerPath(d), seen)
		}
		for _, p := range left.paths {
			freed.Bytes += blocks(p, seen)
		}
	}
	for _, d := range dead {
		freed.Bytes += blocks(s.blobPath(d), seen) + blocks(s.layerPath(d), seen)
	}
	return nil
}
