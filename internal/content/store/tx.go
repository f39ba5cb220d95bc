package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/strake-project/strake/internal/oci"
)

// tx is what queries are asked of: a transaction, for reading or writing, or
// (see ask) the database itself.
type tx struct {
	querier
	conn  *sql.Conn  // nil without a transaction
	op    *operation // of which a write is part
	names []byte     // lines for the journal of names
	graph *graph     // the last that was loaded, until rows are buried
}

type querier interface {
	Exec(query string, args ...any) (sql.Result, error)
	Query(query string, args ...any) (*sql.Rows, error)
	QueryRow(query string, args ...any) *sql.Row
}

// write runs fn in a write transaction. They are short, and not abandoned half
// way when a context ends: that would leave renamed files without their rows.
func (s *Store) write(ctx context.Context, fn func(*tx) error) error {
	return s.transact(ctx, false, fn)
}

// writeSynced is write for what is acknowledged to people or precedes the
// deletion of files: when it returns, this transaction and all before it
// survive a power cut.
func (s *Store) writeSynced(ctx context.Context, fn func(*tx) error) error {
	return s.transact(ctx, true, fn)
}

func (s *Store) transact(ctx context.Context, sync bool, fn func(*tx) error) error {
	if s.readOnly != "" {
		return s.cannotWrite(s.readOnly)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	s.wmu.Lock()
	defer s.wmu.Unlock()
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return s.failed("", err)
	}
	defer conn.Close()
	if sync {
		// The sync of the log that FULL asks for covers all earlier frames.
		if _, err := conn.ExecContext(ctx, "PRAGMA synchronous = FULL"); err != nil {
			return s.failed("", err)
		}
		defer conn.ExecContext(ctx, "PRAGMA synchronous = NORMAL")
	}
	t, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return s.failed("", err)
	}
	defer t.Rollback()
	marked, err := s.markSynced(t)
	if err != nil {
		return s.failed("", err)
	}
	work := &tx{querier: t, conn: conn, op: s.operation(ctx)}
	before := work.op.id
	if err = fn(work); err == nil {
		s.noteNames(work)
		err = t.Commit()
	}
	if err != nil {
		work.op.id = before
		s.unmark(marked)
		return s.failed("", err)
	}
	if work.op.id != 0 {
		s.changed.Store(true)
	}
	return nil
}

// markSynced writes down what was synced since the last transaction.
func (s *Store) markSynced(t *sql.Tx) ([]oci.Digest, error) {
	s.mu.Lock()
	list := s.synced
	s.synced = nil
	s.mu.Unlock()
	for _, d := range list {
		if _, err := t.Exec("UPDATE blob SET boot = '' WHERE digest = ?", d); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (s *Store) unmark(list []oci.Digest) {
	s.mu.Lock()
	s.synced = append(s.synced, list...)
	s.mu.Unlock()
}

// read runs fn on one snapshot of the database.
func (s *Store) read(ctx context.Context, fn func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return s.failed("", err)
	}
	defer conn.Close()
	t, err := conn.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return s.failed("", err)
	}
	defer t.Rollback()
	return s.failed("", fn(&tx{querier: t, conn: conn}))
}

// ask runs fn without a transaction: each of its queries sees the newest
// state. It is for the few questions that a build asks, some for each step:
// their statements stay prepared, and BEGIN and ROLLBACK are not parsed either,
// which were two thirds of what such a question cost.
func (s *Store) ask(ctx context.Context, fn func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.failed("", fn(&tx{querier: (*prepared)(s)}))
}

// prepared is a store's database by prepared statements.
type prepared Store

func (p *prepared) statement(query string) (*sql.Stmt, error) {
	if st, ok := p.statements.Load(query); ok {
		return st.(*sql.Stmt), nil
	}
	st, err := p.db.Prepare(query)
	if err != nil {
		return nil, err
	}
	if first, ok := p.statements.LoadOrStore(query, st); ok {
		st.Close()
		return first.(*sql.Stmt), nil
	}
	return st, nil
}

func (p *prepared) Exec(query string, args ...any) (sql.Result, error) {
	return p.db.Exec(query, args...)
}

func (p *prepared) Query(query string, args ...any) (*sql.Rows, error) {
	st, err := p.statement(query)
	if err != nil {
		return nil, err
	}
	return st.Query(args...)
}

func (p *prepared) QueryRow(query string, args ...any) *sql.Row {
	st, err := p.statement(query)
	if err != nil {
		return p.db.QueryRow(query, args...) // fails in the same way
	}
	return st.QueryRow(args...)
}

// each calls fn for every row of a query; fn scans it.
func (t *tx) each(fn func(scan func(...any) error) error, query string, args ...any) error {
	rows, err := t.Query(query, args...)
	if err != nil {
		return err
	}
	return eachRow(rows, fn)
}

// eachRow gives the rows to fn, until it fails, and closes them.
func eachRow(rows *sql.Rows, fn func(scan func(...any) error) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// exists tells whether the query has a row.
func (t *tx) exists(query string, args ...any) (bool, error) {
	var one int
	err := t.QueryRow("SELECT 1 WHERE EXISTS("+query+")", args...).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// digests returns the query's only column.
func (t *tx) digests(query string, args ...any) ([]oci.Digest, error) {
	var all []oci.Digest
	err := t.each(func(scan func(...any) error) error {
		var d string
		err := scan(&d)
		if err == nil && checkDigest(oci.Digest(d)) != nil && d != "" {
			err = fmt.Errorf("%w: %q is no digest", errBadRow, d)
		}
		all = append(all, oci.Digest(d))
		return err
	}, query, args...)
	return all, err
}

func sqliteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

func isFull(err error) bool     { return sqliteCode(err) == sqlite3.SQLITE_FULL }
func isReadOnly(err error) bool { return sqliteCode(err) == sqlite3.SQLITE_READONLY }
