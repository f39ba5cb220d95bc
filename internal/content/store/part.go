package store

import (
	"fmt"
	"slices"

	"github.com/strake-project/strake/internal/oci"
)

// Where a change of kind changePart has taken a manifest: column tag.
const (
	partOut = "out"
	partIn  = "in"
)

// takeOut takes images of one platform out of every index that lists them. The
// indexes stay as they are: what they list and the store has not is what was
// never pulled, too.
func (t *tx) takeOut(parts []oci.Digest) error {
	for _, d := range parts {
		parents, err := t.digests("DELETE FROM edge WHERE child = ? AND kind = ? RETURNING parent", d, edgeImage)
		if err != nil {
			return err
		}
		for _, p := range parents {
			if err := t.change(changePart, "", partOut, p, d); err != nil {
				return err
			}
		}
	}
	return nil
}

// allGone checks that what was taken out is kept by nothing else.
func allGone(parts, removed []oci.Digest) error {
	for _, d := range parts {
		if !slices.Contains(removed, d) {
			return fmt.Errorf("conflict: unable to delete %s - another name, a container or a running command uses it: %w", d, oci.ErrConflict)
		}
	}
	return nil
}

// putBack makes d part again of the indexes that it was taken out of and that
// are still there.
func (t *tx) putBack(d oci.Digest) error {
	_, err := t.Exec(`INSERT OR IGNORE INTO edge(parent, child, kind, ord)
		SELECT old, new, ?2, 0 FROM change WHERE kind = ?3 AND tag = ?4 AND new = ?1 AND EXISTS(SELECT 1 FROM manifest WHERE digest = old)`,
		d, edgeImage, changePart, partOut)
	return err
}

// revertPart undoes takeOut, or an undo of it.
func (t *tx) revertPart(c changed) error {
	if c.tag == partIn {
		if _, err := t.Exec("DELETE FROM edge WHERE parent = ? AND child = ? AND kind = ?", c.old, c.now, edgeImage); err != nil {
			return err
		}
		return t.change(changePart, "", partOut, c.old, c.now)
	}
	there, err := t.exists("SELECT 1 FROM manifest WHERE digest = ?", c.old)
	if err != nil || !there {
		return err
	}
	if err := t.edge(c.old, c.now, edgeImage, 0); err != nil {
		return err
	}
	return t.change(changePart, "", partIn, c.old, c.now)
}
