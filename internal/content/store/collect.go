package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// Freed is what Collect deleted.
type Freed struct {
	Manifests, Configs, Blobs []oci.Digest // indexes count as manifests
	Layers                    []oci.Digest // diffIDs that lost every form
	Bytes                     int64        // true disk bytes
}

// Collect deletes what no tag, record or lease reaches. With from given, only
// what those digests reach is looked at, which is fast; without, everything is,
// and leftovers of dead processes are swept. It is safe beside any other work.
//
// A lease of ctx counts like any other: what is to go must not have been
// looked up under it.
//
// It goes in three steps. One transaction decides, with all of the graph in
// sight and no writer beside it, and deletes the rows: from then on the content
// is not there, for nobody, and whoever wants it puts it again. It is synced,
// lest a power cut brings rows back whose files are gone. A second one takes
// the write lock, under which files come to their places (see admit), and moves
// those that still have no row out of the way. A file that a Put placed between
// the two has its row, and stays. What was moved is deleted without any lock.
// Dying in between leaves files without rows, which the next Collect of
// everything sweeps.
func (s *Store) Collect(ctx context.Context, from ...oci.Digest) (*Freed, error) {
	if s.readOnly != "" {
		return nil, s.cannotWrite(s.readOnly)
	}
	for _, d := range from {
		if err := checkDigest(d); err != nil {
			return nil, err
		}
	}
	if err := s.sweepLeases(); err != nil { // what they hold is no root any more
		return nil, err
	}
	// Images without a name are images, unless they are meant.
	all := len(from) == 0
	return s.collect(ctx, question{all: all, from: from, loose: !all, waiting: true}, all)
}

// collect deletes what is dead by q, and with sweep files that have no row.
func (s *Store) collect(ctx context.Context, q question, sweep bool) (*Freed, error) {
	freed := &Freed{}
	dead, err := s.bringOut(ctx, q, freed)
	if err != nil {
		return nil, err
	}
	return freed, s.clearOut(ctx, dead, sweep, freed)
}

// clearOut deletes the files of the dead, whose rows are gone, and with sweep
// those that never had any.
func (s *Store) clearOut(ctx context.Context, dead []oci.Digest, sweep bool, freed *Freed) error {
	ctx = context.WithoutCancel(ctx) // finish
	s.forgetTOCs(dead)
	var left leftovers
	seen := map[[2]uint64]bool{}
	if sweep {
		var err error
		if left, err = s.findLeftovers(ctx, false, &freed.Bytes, seen); err != nil {
			return err
		}
	}
	left.blobs = append(left.blobs, dead...)
	left.layers = append(left.layers, dead...)
	if len(left.blobs)+len(left.layers)+len(left.paths) == 0 {
		return nil
	}
	trash := s.path("work", trashPrefix+newName())
	if err := os.Mkdir(trash, 0o700); err != nil {
		return s.failed(trash, err)
	}
	err := s.write(ctx, func(t *tx) error { return s.clearAway(t, left, trash) })
	freed.Bytes += blocks(trash, seen) - ownBlocks(trash)
	if rerr := removeAll(trash); err == nil {
		err = s.failed(trash, rerr)
	}
	return err
}

// bringOut decides what is dead by q and deletes its rows.
func (s *Store) bringOut(ctx context.Context, q question, freed *Freed) (dead []oci.Digest, err error) {
	look := func(t *tx) (err error) {
		dead, err = s.dead(t, q)
		return err
	}
	// Often there is nothing to do, and that is known without the write lock.
	if err := s.read(ctx, look); err != nil || len(dead) == 0 {
		return nil, err
	}
	return dead, s.decide(ctx, true, func(t *tx) error {
		if err := look(t); err != nil {
			return err
		}
		if err := t.sort(dead, freed); err != nil {
			return err
		}
		return t.bury(dead)
	})
}

// decide runs fn, which decides what is dead, in a write transaction. Whoever
// finds something from here on waits for the decision; who found it before has
// written down that it holds it.
func (s *Store) decide(ctx context.Context, sync bool, fn func(*tx) error) error {
	gate, err := s.gate(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer gate.Close()
	return s.transact(ctx, sync, fn)
}

// sort says what the dead were, as far as they have rows.
func (t *tx) sort(dead []oci.Digest, freed *Freed) error {
	if t.graph != nil {
		t.graph.sort(dead, freed)
		return nil
	}
	b, err := json.Marshal(dead)
	if err != nil {
		return err
	}
	const among = " IN (SELECT value FROM json_each(?1))"
	for _, q := range []struct {
		into  *[]oci.Digest
		query string
	}{
		{&freed.Manifests, "SELECT digest FROM manifest WHERE digest" + among},
		{&freed.Configs, "SELECT DISTINCT config FROM manifest WHERE digest" + among + " AND config IN (SELECT digest FROM blob WHERE digest" + among + ")"},
		{&freed.Blobs, "SELECT digest FROM blob WHERE digest" + among + ` AND digest NOT IN (SELECT digest FROM manifest)
			AND digest NOT IN (SELECT config FROM manifest WHERE digest` + among + ")"},
		{&freed.Layers, "SELECT diffid FROM layer l WHERE diffid" + among + ` AND (tree <> 0 OR EXISTS(SELECT 1 FROM blob WHERE digest = l.diffid)
			OR EXISTS(SELECT 1 FROM packed p JOIN blob b ON b.digest = p.digest WHERE p.diffid = l.diffid))`},
	} {
		found, err := t.digests(q.query, string(b))
		if err != nil {
			return err
		}
		*q.into = append(*q.into, found...)
	}
	return nil
}

// bury deletes the rows of the dead.
func (t *tx) bury(dead []oci.Digest) error {
	if len(dead) == 0 {
		return nil
	}
	b, err := json.Marshal(dead)
	if err != nil {
		return err
	}
	t.graph = nil
	// A table of its own: some of these ask for each row whether it is in there.
	const among = " IN (SELECT digest FROM temp.doomed)"
	for _, q := range []string{
		"CREATE TEMP TABLE IF NOT EXISTS doomed(digest TEXT PRIMARY KEY) WITHOUT ROWID",
		"DELETE FROM temp.doomed",
		"INSERT OR IGNORE INTO temp.doomed SELECT value FROM json_each(?1)",
		"DELETE FROM image WHERE id IN (SELECT image FROM manifest WHERE digest" + among + `)
			AND NOT EXISTS(SELECT 1 FROM manifest m WHERE m.image = image.id AND m.digest NOT` + among + ")",
		"DELETE FROM manifest WHERE digest" + among,
		"DELETE FROM blob WHERE digest" + among,
		"DELETE FROM layer WHERE diffid" + among,
		"DELETE FROM packed WHERE digest" + among,
		"DELETE FROM packed WHERE diffid" + among,
		"DELETE FROM origin WHERE digest" + among,
		"DELETE FROM edge WHERE parent" + among,
		// An index that stays, dead itself, goes on naming its images; what
		// the child itself said goes with it.
		fmt.Sprintf("DELETE FROM edge WHERE kind IN (%d, %d) AND child", edgeSubject, edgeForm) + among,
	} {
		args := []any{}
		if strings.Contains(q, "?1") {
			args = append(args, string(b))
		}
		if _, err := t.Exec(q, args...); err != nil {
			return err
		}
	}
	return nil
}

// leftovers are files to clear away, if no row speaks for them.
type leftovers struct {
	blobs  []oci.Digest
	layers []oci.Digest
	paths  []string // within layers' directories
}

// clearAway moves the files of what has no row to trash. The transaction is
// for its lock: nothing comes to its place meanwhile.
func (s *Store) clearAway(t *tx, left leftovers, trash string) error {
	move := func(path, name string) error {
		err := os.Rename(path, filepath.Join(trash, name))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, d := range left.blobs {
		there, err := t.exists("SELECT 1 FROM blob WHERE digest = ?", d)
		if err != nil {
			return err
		}
		if !there {
			if err := move(s.blobPath(d), "blob-"+d.Encoded()); err != nil {
				return err
			}
		}
	}
	for _, d := range left.layers {
		there, err := t.exists("SELECT 1 FROM layer WHERE diffid = ?", d)
		if err != nil {
			return err
		}
		// Whoever has it locked is making a form of it, and will have a row.
		lock := tryLock(s.layerPath(d))
		if there || lock == nil {
			if lock != nil {
				lock.Close()
			}
			continue
		}
		err = move(s.layerPath(d), "layer-"+d.Encoded())
		lock.Close()
		if err != nil {
			return err
		}
	}
	for _, p := range left.paths {
		lock := tryLock(filepath.Dir(p))
		if lock == nil {
			continue
		}
		err := move(p, newName())
		lock.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
