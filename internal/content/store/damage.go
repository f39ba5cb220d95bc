package store

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/strake-project/strake/internal/oci"
)

// DamagedError says that a store's database cannot be read, or is gone while
// there are blobs. Rebuild makes it again. errors.Is(err, oci.ErrCorrupt).
type DamagedError struct {
	Root string
	What string // "is missing", "is damaged (…)"
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("store %s: its database strake.db %s: run `strake doctor`", e.Root, e.What)
}

// Is makes a DamagedError an oci.ErrCorrupt.
func (e *DamagedError) Is(target error) bool { return target == oci.ErrCorrupt }

// isCorrupt tells what only a damaged database says: bytes that are no
// database, pages that are cut off, a table without its root, a value that is
// not what its column holds.
func isCorrupt(err error) bool {
	switch sqliteCode(err) {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return true
	case sqlite3.SQLITE_IOERR:
		var e *sqlite.Error
		errors.As(err, &e)
		return e.Code() == sqlite3.SQLITE_IOERR_SHORT_READ || e.Code() == sqlite3.SQLITE_IOERR_READ
	case sqlite3.SQLITE_ERROR:
		return strings.Contains(err.Error(), "no such table") || strings.Contains(err.Error(), "no such column") || strings.Contains(err.Error(), "malformed")
	}
	return err != nil && (errors.Is(err, errBadRow) || strings.Contains(err.Error(), "sql: Scan error"))
}

// errBadRow is a value in the database that cannot have been written there.
var errBadRow = errors.New("a row was changed")

func (s *Store) damaged(err error) error {
	var already *DamagedError
	if errors.As(err, &already) {
		return err
	}
	return &DamagedError{Root: s.root, What: fmt.Sprintf("is damaged (%v)", err)}
}

// hadDatabase tells whether there is content, which no store without a
// database ever had.
func (s *Store) hadDatabase() bool {
	for _, dir := range []string{"blobs/sha256", "layers"} {
		if entries, err := os.ReadDir(s.path(dir)); err == nil && len(entries) > 0 {
			return true
		}
	}
	return false
}

// absentBlob is content that somebody knows of and the store does not have.
type absentBlob oci.Digest

func (e absentBlob) Error() string {
	return fmt.Sprintf("blob %s is not in the store; `strake doctor` says whether it was lost", string(e))
}

func (absentBlob) Is(target error) bool { return target == oci.ErrNotFound }
