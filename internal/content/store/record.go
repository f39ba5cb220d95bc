package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/oci"
)

// Record is a value that another room keeps in the store under a key, such as
// the build cache's results and the containers. What Holds names (layers by
// diffID, blobs by digest) is not collected while the record is there.
type Record struct {
	Bucket, Key string
	Value       []byte
	Holds       []oci.Digest
	Created     time.Time // now, if zero
	Used        time.Time // now, if zero
}

// touch is how old a record's Used may be before a look-up renews it: exact
// enough for choosing what to prune, and most look-ups write nothing.
const touch = time.Hour

// PutRecord stores r, replacing what the key had.
func (s *Store) PutRecord(ctx context.Context, r Record) error {
	now := time.Now()
	if r.Created.IsZero() {
		r.Created = now
	}
	if r.Used.IsZero() {
		r.Used = now
	}
	if r.Value == nil {
		r.Value = []byte{}
	}
	return s.write(ctx, func(t *tx) error {
		_, err := t.Exec("INSERT OR REPLACE INTO record(bucket, key, value, created, used) VALUES(?,?,?,?,?)",
			r.Bucket, r.Key, r.Value, r.Created.UnixNano(), r.Used.UnixNano())
		if err != nil {
			return err
		}
		if _, err := t.Exec("DELETE FROM record_hold WHERE bucket = ? AND key = ?", r.Bucket, r.Key); err != nil {
			return err
		}
		for _, d := range r.Holds {
			if _, err := t.Exec("INSERT OR IGNORE INTO record_hold(digest, bucket, key) VALUES(?,?,?)", d, r.Bucket, r.Key); err != nil {
				return err
			}
		}
		return nil
	})
}

// GetRecord returns the record, or oci.ErrNotFound, and takes what it holds
// into ctx's lease. Under a lease it also counts as a use.
func (s *Store) GetRecord(ctx context.Context, bucket, key string) (*Record, error) {
	var r *Record
	l := leaseOf(ctx)
	err := s.leasing(ctx, func(t *tx) (err error) {
		if r, err = t.record(bucket, key); err == nil {
			err = s.hold(l, r.Holds...) // behind the gate
		}
		return err
	})
	if err != nil || l == nil || s.readOnly != "" || time.Since(r.Used) < touch {
		return r, err
	}
	r.Used = time.Now()
	return r, s.write(ctx, func(t *tx) error {
		_, err := t.Exec("UPDATE record SET used = ? WHERE bucket = ? AND key = ?", r.Used.UnixNano(), bucket, key)
		return err
	})
}

// GetFresh returns those of a bucket's records that are there and whose use
// GetRecord would not write down, and takes what they hold into ctx's lease.
// It is one query for all, a fifth of what one for each takes.
func (s *Store) GetFresh(ctx context.Context, bucket string, keys []string) (map[string]*Record, error) {
	list, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	found := map[string]*Record{}
	var holds []oci.Digest
	err = s.leasing(ctx, func(t *tx) error {
		err := t.each(func(scan func(...any) error) error {
			r, err := scanRecord(bucket, scan)
			if err != nil {
				return err
			}
			if time.Since(r.Used) < touch {
				found[r.Key] = r
				holds = append(holds, r.Holds...)
			}
			return nil
		}, selectRecord+"(SELECT value FROM json_each(?2))", bucket, string(list))
		if err != nil {
			return err
		}
		return s.hold(leaseOf(ctx), holds...) // behind the gate
	})
	return found, err
}

const selectRecord = `SELECT key, value, created, used, coalesce((SELECT group_concat(digest, ' ') FROM
	(SELECT digest FROM record_hold h WHERE h.bucket = ?1 AND h.key = record.key ORDER BY digest)), '')
	FROM record WHERE bucket = ?1 AND key IN `

func (t *tx) record(bucket, key string) (*Record, error) {
	r, err := scanRecord(bucket, t.QueryRow(selectRecord+"(?2)", bucket, key).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, notFound("%s %s", bucket, key)
	}
	return r, err
}

// scanRecord reads a row of selectRecord.
func scanRecord(bucket string, scan func(...any) error) (*Record, error) {
	r := &Record{Bucket: bucket}
	var created, used int64
	var holds string
	if err := scan(&r.Key, &r.Value, &created, &used, &holds); err != nil {
		return nil, err
	}
	r.Created, r.Used = time.Unix(0, created), time.Unix(0, used)
	for d := range strings.FieldsSeq(holds) {
		r.Holds = append(r.Holds, oci.Digest(d))
	}
	return r, nil
}

// Records lists a bucket, most recently used first.
func (s *Store) Records(ctx context.Context, bucket string) ([]Record, error) {
	var all []Record
	err := s.read(ctx, func(t *tx) error {
		index := map[string]int{}
		err := t.each(func(scan func(...any) error) error {
			r := Record{Bucket: bucket}
			var created, used int64
			err := scan(&r.Key, &r.Value, &created, &used)
			r.Created, r.Used = time.Unix(0, created), time.Unix(0, used)
			index[r.Key] = len(all)
			all = append(all, r)
			return err
		}, "SELECT key, value, created, used FROM record WHERE bucket = ? ORDER BY used DESC, key", bucket)
		if err != nil {
			return err
		}
		return t.each(func(scan func(...any) error) error {
			var key, d string
			err := scan(&key, &d)
			r := &all[index[key]]
			r.Holds = append(r.Holds, oci.Digest(d))
			return err
		}, "SELECT key, digest FROM record_hold WHERE bucket = ? ORDER BY key, digest", bucket)
	})
	return all, err
}

// DeleteRecord removes one; it is no error if it is not there.
func (s *Store) DeleteRecord(ctx context.Context, bucket, key string) error {
	return s.write(ctx, func(t *tx) error {
		_, err := t.Exec("DELETE FROM record WHERE bucket = ? AND key = ?", bucket, key)
		if err == nil {
			_, err = t.Exec("DELETE FROM record_hold WHERE bucket = ? AND key = ?", bucket, key)
		}
		return err
	})
}

// HeldBytes estimates what the layers take that the records of a bucket hold,
// each counted once. It reads two indexes and no disk.
func (s *Store) HeldBytes(ctx context.Context, bucket string) (n int64, err error) {
	err = s.read(ctx, func(t *tx) error {
		return t.QueryRow(`SELECT coalesce(sum(bytes), 0) FROM layer
			WHERE diffid IN (SELECT digest FROM record_hold WHERE bucket = ?)`, bucket).Scan(&n)
	})
	return n, err
}
