package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

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
	// Content goes too, where nothing needs it; nothing beside it does.
	Content []oci.Digest
	// All collects everything else that nothing reaches, and what dead
	// processes left.
	All bool
	// Now deletes the images at once, and what waits from before with them.
	Now bool
	// Dry changes nothing and tells what would happen.
	Dry bool
}

// Pruned is what Prune did, or would do.
type Pruned struct {
	Freed                             // Bytes are those deleted; lists have also what waits
	Untagged map[oci.Digest][]ref.Ref // by image ID: its tags, then its repositories' digests
	Records  []Record                 // that are gone
	Dead     []oci.Digest             // blobs and layers that nothing needs any more, all of them
	Waiting  int64                    // disk bytes of what was removed and waits
	// Held is the disk bytes of what of the Images stays because of records
	// alone. It is known of many images, of everything, and in a dry run.
	Held int64

	// Of a dry run: the disk bytes that go with each of the Images, those that
	// several have at the first; and which of the Dead none of them has.
	Shares []int64
	Rest   []oci.Digest

	held   []oci.Digest       // see Held
	erased []oci.Digest       // of the dead, those that do not wait
	owner  map[oci.Digest]int // of a dry run's dead, whose share they are
}

// errDry takes a dry run's transaction back.
var errDry = errors.New("dry run")

// Prune lets go of what p names, decided in one transaction. Images are not
// there any more, and their bytes wait to be reclaimed unless p.Now; what
// nothing else reaches is deleted. As with Collect, ctx's lease keeps what was
// looked up under it.
func (s *Store) Prune(ctx context.Context, p Prune) (*Pruned, error) {
	if s.readOnly != "" {
		return nil, s.cannotWrite(s.readOnly)
	}
	if err := s.sweepLeases(); err != nil {
		return nil, err
	}
	if !p.Dry {
		s.worked.Store(true) // who prunes wants what has waited long enough gone too
	}
	done := &Pruned{Untagged: map[oci.Digest][]ref.Ref{}}
	err := s.decide(ctx, !p.Dry, func(t *tx) error {
		if err := s.prune(t, &p, done); err != nil || !p.Dry {
			return err
		}
		return errDry
	})
	if err != nil && !(p.Dry && errors.Is(err, errDry)) {
		return nil, err
	}
	if err := s.weigh(ctx, &p, done); err != nil || p.Dry {
		return done, err
	}
	return done, s.clearOut(ctx, done.erased, p.All, &done.Freed)
}

// prune decides.
func (s *Store) prune(t *tx, p *Prune, done *Pruned) error {
	if err := s.trust(t); err != nil {
		return err
	}
	from, err := t.letGo(p, done)
	if err != nil {
		return err
	}
	if p.Now {
		waited, err := t.digests("DELETE FROM waiting RETURNING digest")
		if err != nil {
			return err
		}
		from = append(from, waited...)
	}
	if p.Dry || p.All || len(p.Images) > manyRoots {
		return s.pruneMany(t, p, from, done)
	}
	var images []oci.Digest
	for i := range p.Images {
		let, err := t.letImageGo(&p.Images[i], done)
		if err != nil {
			return err
		}
		images = append(images, let...)
	}
	removed, erased, err := s.discard(t, images, !p.Now, &done.Freed)
	if err != nil {
		return err
	}
	rest, err := s.dead(t, question{from: append(from, p.Content...), loose: true, waiting: true})
	if err != nil {
		return err
	}
	if len(p.Content) > 0 && !p.Now && len(from) == 0 {
		rest = onlyOf(rest, p.Content)
	}
	if err := t.sort(rest, &done.Freed); err != nil {
		return err
	}
	done.erased = append(erased, rest...)
	done.Dead = slices.Compact(slices.Sorted(slices.Values(slices.Concat(removed, done.erased))))
	return t.bury(rest)
}

// letGo removes the records, and returns what they reached directly.
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
	return from, nil
}

// letImageGo removes img's names, unless a record has come to hold it, and
// returns what shows it.
func (t *tx) letImageGo(img *Image, done *Pruned) ([]oci.Digest, error) {
	used, err := t.exists("SELECT 1 FROM record_hold WHERE digest IN (?, ?)", img.ID, img.Manifest.Digest)
	if err != nil || used {
		return nil, err
	}
	targets, err := t.unname(img, done)
	return append(targets, img.Target.Digest, img.Manifest.Digest), err
}

// unname removes those of img's names that still show it, and returns all
// manifests and indexes that do.
func (t *tx) unname(img *Image, done *Pruned) ([]oci.Digest, error) {
	targets, err := t.digests(showing, img.ID)
	if err != nil {
		return nil, err
	}
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
			if err := t.knowDigest(r.Repository(), d, false); err != nil {
				return nil, err
			}
		}
		if len(names)+len(digests) > 0 {
			done.Untagged[img.ID] = append(append(done.Untagged[img.ID], names...), digests...)
		}
	}
	sortUntagged(done.Untagged[img.ID])
	return targets, nil
}

// sortUntagged puts tags first.
func sortUntagged(names []ref.Ref) {
	slices.SortStableFunc(names, func(a, b ref.Ref) int {
		return cmp.Or(strings.Compare(string(a.Digest), string(b.Digest)), strings.Compare(a.Familiar(), b.Familiar()))
	})
}

// weigh counts what waits, and of a dry run what deleting the files of the rest
// would free.
func (s *Store) weigh(ctx context.Context, p *Prune, done *Pruned) error {
	sizes, err := s.sizes(ctx, done.Dead)
	if err != nil {
		return err
	}
	held, err := s.sizes(ctx, done.held)
	if err != nil {
		return err
	}
	for _, n := range held {
		done.Held += n
	}
	erased := map[oci.Digest]bool{}
	for _, d := range done.erased {
		erased[d] = true
	}
	if p.Dry {
		done.Shares = make([]int64, len(p.Images))
	}
	for i, d := range done.Dead {
		switch {
		case !erased[d]:
			done.Waiting += sizes[i]
		case p.Dry:
			done.Bytes += sizes[i]
		}
		if owner, ok := done.owner[d]; ok {
			done.Shares[owner] += sizes[i]
		} else if p.Dry {
			done.Rest = append(done.Rest, d)
		}
	}
	if !p.Dry || !p.All {
		return nil
	}
	seen := map[[2]uint64]bool{}
	left, err := s.findLeftovers(ctx, true, &done.Bytes, seen)
	if err != nil {
		return err
	}
	for _, d := range left.blobs {
		done.Bytes += blocks(s.blobPath(d), seen)
	}
	for _, d := range left.layers {
		done.Bytes += blocks(s.layerPath(d), seen)
	}
	for _, p := range left.paths {
		done.Bytes += blocks(p, seen)
	}
	return nil
}
