package store

import (
	"context"
	"time"

	"github.com/strake-project/strake/internal/oci"
)

// TouchManifest notes that the image of this manifest or index was used: run,
// built from, pushed. Like a record's, its Used is exact to the hour, so that
// most uses write nothing.
func (s *Store) TouchManifest(ctx context.Context, d oci.Digest) error {
	if s.readOnly != "" {
		return nil
	}
	// Of an index it is not known which platform: all that are here.
	const of = `id IN (SELECT image FROM manifest WHERE digest = ?1
		UNION SELECT m.image FROM edge e JOIN manifest m ON m.digest = e.child WHERE e.parent = ?1 AND e.kind = 2)`
	now := time.Now()
	old := false
	err := s.ask(ctx, func(t *tx) (err error) {
		old, err = t.exists("SELECT 1 FROM image WHERE "+of+" AND used < ?2", d, now.Add(-touch).UnixNano())
		return err
	})
	if err != nil || !old {
		return err
	}
	return s.write(ctx, func(t *tx) error {
		_, err := t.Exec("UPDATE image SET used = ?2 WHERE "+of, d, now.UnixNano())
		return err
	})
}
