package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// salvaged is what could be read of a damaged database and of the journal.
type salvaged struct {
	whole      bool // every table could be read to its end
	names      []nameEvent
	mediaTypes map[oci.Digest]string
	added      map[oci.Digest]int64
	origins    [][2]string // digest, repository
	records    []Record
	holds      [][3]string // digest, bucket, key
	remembered
}

// salvage reads what it can. It works on copies, and never fails: what cannot
// be read is not there. fresh is a new database, whose first page can stand in
// for a damaged one: tables are made in the same order, and so in the same
// places.
func (s *Store) salvage(ctx context.Context, fresh string) *salvaged {
	out := &salvaged{mediaTypes: map[oci.Digest]string{}, added: map[oci.Digest]int64{}}
	dir, err := os.MkdirTemp(s.path("work"), trashPrefix)
	if err != nil {
		return out
	}
	defer os.RemoveAll(dir)
	from := s.path("strake.db")
	if fi, err := os.Stat(from); err != nil || fi.Size() == 0 {
		from = s.path(damagedName) // a Rebuild was killed between its renames
	}
	for i, mend := range []func(string) error{nil, func(path string) error { return transplant(path, fresh) }} {
		path := filepath.Join(dir, fmt.Sprint(i))
		if copyFile(path, from) != nil {
			break
		}
		_ = copyFile(path+"-wal", from+"-wal") // there may be none
		if mend != nil && mend(path) != nil {
			break
		}
		if out.read(ctx, path, mend == nil) {
			break
		}
	}
	out.names = append(out.names, s.readNames()...)
	slices.SortStableFunc(out.names, func(a, b nameEvent) int { return int(min(1, max(-1, a.at-b.at))) })
	return out
}

// transplant gives the database at path the first page of another one of the
// same schema, with its own length.
func transplant(path, healthy string) error {
	page, err := os.ReadFile(healthy)
	if err != nil || len(page) < 100 {
		return fmt.Errorf("%s is no database: %v", healthy, err)
	}
	size := int(binary.BigEndian.Uint16(page[16:]))
	if size == 1 {
		size = 65536
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || size < 512 || len(page) < size {
		return fmt.Errorf("%s: %v", path, err)
	}
	page = bytes.Clone(page[:size])
	binary.BigEndian.PutUint32(page[28:], uint32(fi.Size()/int64(size)))
	clear(page[32:40])             // no free pages
	copy(page[92:96], page[24:28]) // the length is valid for this change
	_, err = f.WriteAt(page, 0)
	return err
}

// read adds what the database at path says, and tells whether it said all. The
// log is read only of one whose tables are where it says itself: a store that an
// older strake began has them in other places.
func (o *salvaged) read(ctx context.Context, path string, log bool) bool {
	db := connect(path, "mode=rw")
	defer db.Close()
	whole := true
	// From both ends: damage in the middle hides only the middle.
	rows := func(fn func(scan func(...any) error) error, table, columns, key string) {
		if readRows(ctx, db, "SELECT "+columns+" FROM "+table, fn) != nil {
			whole = false
			_ = readRows(ctx, db, "SELECT "+columns+" FROM "+table+" ORDER BY "+key, fn)
		}
	}
	name := func(scan func(...any) error) error {
		var e nameEvent
		if err := scan(&e.repo, &e.tag, &e.digest, &e.at); err != nil {
			return err
		}
		if e.valid() {
			o.names = append(o.names, e)
		}
		return nil
	}
	rows(name, "taglog", "repo, tag, digest, at", "n DESC")
	rows(name, "tag", "repo, tag, digest, at", "repo DESC, tag DESC")
	rows(func(scan func(...any) error) error {
		e := nameEvent{}
		if err := scan(&e.repo, &e.digest); err != nil {
			return err
		}
		if e.valid() {
			o.names = append(o.names, e)
		}
		return nil
	}, "repodigest", "repo, digest", "repo DESC, digest DESC")
	rows(func(scan func(...any) error) error {
		var d oci.Digest
		var mediaType string
		err := scan(&d, &mediaType)
		o.mediaTypes[d] = mediaType
		return err
	}, "blob", "digest, mediatype", "digest DESC")
	rows(func(scan func(...any) error) error {
		var d oci.Digest
		var at int64
		err := scan(&d, &at)
		o.added[d] = at
		return err
	}, "manifest", "digest, added", "digest DESC")
	rows(func(scan func(...any) error) error {
		var row [2]string
		err := scan(&row[0], &row[1])
		if err == nil && checkDigest(oci.Digest(row[0])) == nil {
			o.origins = append(o.origins, row)
		}
		return err
	}, "origin", "digest, repo", "digest DESC")
	o.readRecords(rows)
	if log {
		o.readLog(rows)
	}
	o.whole = o.whole || whole
	return whole
}

func (o *salvaged) readRecords(rows func(fn func(scan func(...any) error) error, table, columns, key string)) {
	rows(func(scan func(...any) error) error {
		var r Record
		var created, used int64
		if err := scan(&r.Bucket, &r.Key, &r.Value, &created, &used); err != nil {
			return err
		}
		r.Created, r.Used = time.Unix(0, created), time.Unix(0, used)
		o.records = append(o.records, r)
		return nil
	}, "record", "bucket, key, value, created, used", "bucket DESC, key DESC")
	rows(func(scan func(...any) error) error {
		var row [3]string
		err := scan(&row[0], &row[1], &row[2])
		if err == nil && checkDigest(oci.Digest(row[0])) == nil {
			o.holds = append(o.holds, row)
		}
		return err
	}, "record_hold", "digest, bucket, key", "digest DESC, bucket DESC, key DESC")
}

func readRows(ctx context.Context, db *sql.DB, query string, fn func(scan func(...any) error) error) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	return eachRow(rows, fn)
}

// validRef tells whether r is a reference that can be parsed again.
func validRef(r ref.Ref) bool {
	back, err := ref.Parse(r.String())
	return err == nil && back == r
}
