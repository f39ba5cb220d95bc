package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"

	"github.com/strake-project/strake/internal/oci"
)

// row is one row of a query, as the driver gives it. What has another type than
// it should, which a damaged database may have, is its zero value.
type row []driver.Value

func (r row) text(i int) string {
	s, _ := r[i].(string)
	return s
}

func (r row) digest(i int) oci.Digest { return oci.Digest(r.text(i)) }

func (r row) int(i int) int64 {
	n, _ := r[i].(int64)
	return n
}

func (r row) bool(i int) bool { return r.int(i) != 0 }

// rows calls fn with every row of a query; the row is valid until fn returns.
// It goes past database/sql, whose Scan takes as long as SQLite does: for lists
// of everything.
func (t *tx) rows(fn func(row) error, query string, args ...any) error {
	return t.conn.Raw(func(c any) error {
		named := make([]driver.NamedValue, len(args))
		for i, a := range args {
			named[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
		}
		rows, err := c.(driver.QueryerContext).QueryContext(context.Background(), query, named)
		if err != nil {
			return err
		}
		defer rows.Close()
		r := make(row, len(rows.Columns()))
		for {
			switch err := rows.Next(r); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			}
			if err := fn(r); err != nil {
				return err
			}
		}
	})
}
