package store

import (
	"context"
	"slices"
	"time"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Operation is one line of the log of operations.
type Operation struct {
	ID      int64
	At      time.Time
	Command string
	Undone  int64        // the operation that took it back, or 0
	Undoes  int64        // the operation that this one took back, or 0
	Names   []ref.Ref    // tags that it made, moved, removed or pinned
	Images  []oci.Digest // without a name that it removed or brought back
	// Possible tells whether Undo would do anything.
	Possible bool
	// Bytes are the disk bytes that go when what waits since this operation is
	// reclaimed, everything older first; until when it waits, if the disk has
	// room.
	Bytes int64
	Until time.Time
}

// Operations lists the last n operations, or all with n 0, newest first.
func (s *Store) Operations(ctx context.Context, n int) ([]Operation, error) {
	var all []Operation
	var dead [][]oci.Digest
	err := s.read(ctx, func(t *tx) (err error) {
		if all, err = t.operations(n); err != nil {
			return err
		}
		dead, err = s.waitingFor(t, all)
		return err
	})
	if err != nil {
		return nil, err
	}
	seen := map[[2]uint64]bool{}
	for i := range all {
		for _, d := range dead[i] {
			all[i].Bytes += blocks(s.blobPath(d), seen) + blocks(s.layerPath(d), seen)
		}
		if len(dead[i]) > 0 {
			all[i].Until = all[i].At.Add(max(s.keep, 0))
		}
	}
	return all, nil
}

// worthy is the condition that change c is one that people would take back: that
// a push taught a repository's digest is not.
const worthy = "(c.kind <> 2 OR c.old <> '')"

// possible is the condition that taking change c back would do something.
const possible = `(c.kind IN (1, 2) AND c.new = coalesce((SELECT digest FROM tag WHERE repo = c.repo AND tag = c.tag), '')
		AND (c.old = '' OR c.old IN (SELECT digest FROM manifest))
	OR c.kind = 3 AND c.old IN (SELECT digest FROM manifest WHERE gone = 1) OR c.kind = 4)`

func (t *tx) operations(n int) ([]Operation, error) {
	if n <= 0 {
		n = -1
	}
	var all []Operation
	index := map[int64]int{}
	err := t.each(func(scan func(...any) error) error {
		var o Operation
		var at int64
		err := scan(&o.ID, &at, &o.Command, &o.Undone, &o.Undoes, &o.Possible)
		o.At = time.Unix(0, at)
		index[o.ID] = len(all)
		all = append(all, o)
		return err
	}, `SELECT o.id, o.at, o.command, o.undone, coalesce((SELECT u.id FROM operation u WHERE u.undone = o.id), 0),
			o.undone = 0 AND EXISTS(SELECT 1 FROM change c WHERE c.op = o.id AND `+possible+" AND "+worthy+`)
		FROM operation o ORDER BY o.id DESC LIMIT ?`, n)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	err = t.each(func(scan func(...any) error) error {
		var op int64
		var kind int
		var repo, tag, old, now string
		if err := scan(&op, &kind, &repo, &tag, &old, &now); err != nil {
			return err
		}
		i, ok := index[op]
		switch o := &all[i]; {
		case !ok:
		case kind == changeImage:
			o.Images = append(o.Images, oci.Digest(old+now))
		case repo != "" && tag != "":
			if r := repository(repo).WithTag(tag); !slices.Contains(o.Names, r) {
				o.Names = append(o.Names, r)
			}
		}
		return nil
	}, `SELECT c.op, c.kind, c.repo, c.tag, c.old, c.new FROM change c WHERE c.op >= ? AND (c.kind IN (1, 4) OR c.kind = 3
			AND NOT EXISTS(SELECT 1 FROM change d WHERE d.op = c.op AND d.kind IN (1, 2) AND d.old = c.old AND d.new = c.new)
			AND NOT EXISTS(SELECT 1 FROM edge e WHERE e.child = c.old || c.new AND e.kind = 2)) ORDER BY c.n`, all[len(all)-1].ID)
	return all, err
}

// waitingFor returns for each operation, newest first, what goes with it when
// it is reclaimed after all that are older.
func (s *Store) waitingFor(t *tx, all []Operation) ([][]oci.Digest, error) {
	dead := make([][]oci.Digest, len(all))
	counted := map[oci.Digest]bool{}
	for i, o := range all {
		from, err := t.digests("SELECT digest FROM waiting WHERE op = ?", o.ID)
		if err != nil {
			return nil, err
		}
		below, err := s.dead(t, question{from: from, loose: true})
		if err != nil {
			return nil, err
		}
		for _, d := range below {
			if !counted[d] {
				counted[d] = true
				dead[i] = append(dead[i], d)
			}
		}
	}
	return dead, nil
}
