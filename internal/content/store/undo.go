package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Undone is what Undo did.
type Undone struct {
	Operation int64
	Command   string
	Restored  []Restored
	// Lost are the names and images whose content was reclaimed; Moved are
	// tags that a later operation has moved, which stay where they are.
	Lost, Moved []Restored
}

// Restored is a name or image that was put back.
type Restored struct {
	Ref    ref.Ref    // zero for an image without a name
	Digest oci.Digest // what it points at again; "" where it was not there before
	Pin    bool       // it is about the pin of Ref
}

// Undo takes an operation back, the last one if id is 0: tags point where they
// did, what was removed is there again, and what only the operation had named
// is removed. That is an operation too, and can be taken back itself. With
// force, tags that have moved since are put back as well.
//
// Where nothing of it can be had any more it fails with oci.ErrNotFound and
// changes nothing; where some can, Undone says what is lost.
func (s *Store) Undo(ctx context.Context, id int64, force bool) (*Undone, error) {
	u := &undoing{force: force}
	var erased []oci.Digest
	err := s.decide(ctx, true, func(t *tx) error {
		u.Undone = Undone{}
		if err := t.choose(id, &u.Undone); err != nil {
			return err
		}
		if t.op.command == "" {
			t.op.command = "undo"
		}
		changes, err := t.changes(u.Operation)
		if err != nil {
			return err
		}
		for _, c := range changes {
			if err := u.revert(t, c); err != nil {
				return err
			}
		}
		if len(u.Restored) == 0 {
			return u.failure()
		}
		if err := t.ownOnly(&u.from, u.Operation); err != nil {
			return err
		}
		if _, erased, err = s.discard(t, u.from, true, new(Freed)); err != nil {
			return err
		}
		op, err := t.begun()
		if err == nil {
			_, err = t.Exec("UPDATE operation SET undone = ? WHERE id = ?", op, u.Operation)
		}
		return err
	})
	if err != nil {
		return &u.Undone, err
	}
	return &u.Undone, s.clearOut(ctx, erased, false, new(Freed))
}

// choose finds the operation: the one with that id, or the last that was not
// taken back and is not the taking back of another.
func (t *tx) choose(id int64, u *Undone) error {
	query, args := `SELECT id, command, undone FROM operation o WHERE undone = 0
		AND NOT EXISTS(SELECT 1 FROM operation u WHERE u.undone = o.id)
		AND EXISTS(SELECT 1 FROM change c WHERE c.op = o.id AND `+worthy+`) ORDER BY id DESC LIMIT 1`, []any(nil)
	if id != 0 {
		query, args = "SELECT id, command, undone FROM operation WHERE id = ?", []any{id}
	}
	var by int64
	err := t.QueryRow(query, args...).Scan(&u.Operation, &u.Command, &by)
	switch {
	case errors.Is(err, sql.ErrNoRows) && id == 0:
		return undoError{"nothing to undo", oci.ErrNotFound}
	case errors.Is(err, sql.ErrNoRows):
		return undoError{fmt.Sprintf("no operation %d", id), oci.ErrNotFound}
	case err == nil && by != 0:
		return undoError{fmt.Sprintf("operation %d was taken back already; undo %d does it again", id, by), oci.ErrConflict}
	}
	return err
}

// changed is a row of table change.
type changed struct {
	kind      int
	repo, tag string
	old, now  oci.Digest
}

// changes lists those of an operation, the last one first.
func (t *tx) changes(op int64) ([]changed, error) {
	var all []changed
	err := t.each(func(scan func(...any) error) error {
		var c changed
		var old, now string
		err := scan(&c.kind, &c.repo, &c.tag, &old, &now)
		c.old, c.now = oci.Digest(old), oci.Digest(now)
		all = append(all, c)
		return err
	}, "SELECT kind, repo, tag, old, new FROM change WHERE op = ? ORDER BY n DESC", op)
	return all, err
}

// undoing takes changes back one by one.
type undoing struct {
	Undone
	force bool
	from  []oci.Digest // what only the operation had named, perhaps
}

func (u *undoing) failure() error {
	op := fmt.Sprintf("operation %d (%s)", u.Operation, u.Command)
	switch {
	case len(u.Moved) > 0:
		return undoError{"the tags of " + op + " have moved since; put them back all the same with --force", oci.ErrConflict}
	case len(u.Lost) > 0:
		return undoError{op + " cannot be undone: its space was reclaimed", oci.ErrNotFound}
	}
	return undoError{"nothing is left to undo of " + op, oci.ErrConflict}
}

// undoError is a sentence of its own, of a kind.
type undoError struct {
	text string
	kind error
}

func (e undoError) Error() string        { return e.text }
func (e undoError) Is(target error) bool { return target == e.kind }

func (u *undoing) revert(t *tx, c changed) error {
	r := repository(c.repo)
	switch c.kind {
	case changeTag:
		return u.revertTag(t, c, r.WithTag(c.tag))
	case changeDigest:
		if c.old == "" {
			u.from = append(u.from, c.now)
			return t.knowDigest(c.repo, c.now, false)
		}
		if back, err := t.revive(c.old); err != nil || !back {
			u.Lost = append(u.Lost, Restored{Ref: r.WithDigest(c.old), Digest: c.old})
			return err
		}
		u.Restored = append(u.Restored, Restored{Ref: r.WithDigest(c.old), Digest: c.old})
		return t.knowDigest(c.repo, c.old, true)
	case changeImage:
		if c.old == "" { // it had been brought back
			u.from = append(u.from, c.now)
			return nil
		}
		back, err := t.revive(c.old)
		if err != nil {
			return err
		}
		if back {
			u.Restored = append(u.Restored, Restored{Digest: c.old})
		} else {
			u.Lost = append(u.Lost, Restored{Digest: c.old})
		}
	case changePart:
		return t.revertPart(c)
	case changePin:
		_, err := t.pin(c.repo, c.tag, c.old != "")
		if err != nil {
			return err
		}
		u.Restored = append(u.Restored, Restored{Ref: r.WithTag(c.tag), Digest: c.old, Pin: true})
	}
	return nil
}

func (u *undoing) revertTag(t *tx, c changed, r ref.Ref) error {
	var at string
	err := t.QueryRow("SELECT digest FROM tag WHERE repo = ? AND tag = ?", c.repo, c.tag).Scan(&at)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if oci.Digest(at) != c.now && !u.force {
		u.Moved = append(u.Moved, Restored{Ref: r, Digest: c.old})
		return nil
	}
	if c.old != "" {
		if back, err := t.revive(c.old); err != nil || !back {
			u.Lost = append(u.Lost, Restored{Ref: r, Digest: c.old})
			return err
		}
	}
	if at != "" {
		u.from = append(u.from, oci.Digest(at))
	}
	u.Restored = append(u.Restored, Restored{Ref: r, Digest: c.old})
	return t.point(c.repo, c.tag, c.old)
}

// revive makes a manifest or index be there again, if it was removed, with what
// went with it. It returns false where it was reclaimed.
func (t *tx) revive(d oci.Digest) (bool, error) {
	there, err := t.exists("SELECT 1 FROM manifest m JOIN blob b ON b.digest = m.digest WHERE m.digest = ?", d)
	if err != nil || !there {
		return false, err
	}
	back, err := t.digests(`UPDATE manifest SET gone = 0 WHERE gone = 1 AND digest IN (
		WITH RECURSIVE below(d) AS (SELECT ? UNION SELECT child FROM edge JOIN below ON parent = d AND kind IN (2, 3))
		SELECT d FROM below) RETURNING digest`, d)
	if err != nil {
		return false, err
	}
	for _, b := range back {
		if err := t.change(changeImage, "", "", "", b); err != nil {
			return false, err
		}
		if _, err := t.Exec("DELETE FROM waiting WHERE digest = ?", b); err != nil {
			return false, err
		}
	}
	return true, nil
}

// ownOnly leaves in from what was not in the store before the operation: what
// was there then, and has no name now, had none then either.
func (t *tx) ownOnly(from *[]oci.Digest, op int64) error {
	list, err := json.Marshal(append([]oci.Digest{}, *from...))
	if err != nil {
		return err
	}
	*from, err = t.digests(`SELECT digest FROM manifest WHERE digest IN (SELECT value FROM json_each(?1)) AND (
		added >= (SELECT began FROM operation WHERE id = ?2)
		OR digest IN (SELECT new FROM change WHERE op = ?2 AND kind = ?3))`, string(list), op, changeImage)
	return err
}
