package store

import (
	"context"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Pin keeps a tag, whatever it points at, from being removed unless that is
// forced, or with pinned false no longer. It fails with oci.ErrNotFound where
// there is no such tag. It tells whether that changed anything.
func (s *Store) Pin(ctx context.Context, r ref.Ref, pinned bool) (changed bool, err error) {
	r = r.WithDefaultTag()
	err = s.writeSynced(ctx, func(t *tx) error {
		there, err := t.exists("SELECT 1 FROM tag WHERE repo = ? AND tag = ?", r.Repository(), r.Tag)
		if err == nil && !there {
			err = notFound("%s", r.Familiar())
		}
		if err == nil {
			changed, err = t.pin(r.Repository(), r.Tag, pinned)
		}
		return err
	})
	return changed, err
}

// PinImage does the same for an image whatever it is called.
func (s *Store) PinImage(ctx context.Context, id oci.Digest, pinned bool) (changed bool, err error) {
	err = s.writeSynced(ctx, func(t *tx) error {
		there, err := t.exists("SELECT 1 FROM manifest WHERE image = ? AND gone = 0", id)
		if err == nil && !there {
			err = notFound("image %s", id)
		}
		if err == nil {
			changed, err = t.pin("", string(id), pinned)
		}
		return err
	})
	return changed, err
}

func (t *tx) unpin(repo, tag string) error {
	_, err := t.pin(repo, tag, false)
	return err
}

func (t *tx) pin(repo, tag string, pinned bool) (changed bool, err error) {
	query, old, now := "DELETE FROM pin WHERE repo = ? AND tag = ?", oci.Digest("pinned"), oci.Digest("")
	if pinned {
		query, old, now = "INSERT OR IGNORE INTO pin(repo, tag) VALUES(?,?)", "", "pinned"
	}
	res, err := t.Exec(query, repo, tag)
	if err != nil {
		return false, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return false, err
	}
	return true, t.change(changePin, repo, tag, old, now)
}
