package store

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// operation is one command's work on names, which Undo takes back as a whole.
// It is written down with the first change.
type operation struct {
	command string
	began   time.Time
	id      int64 // 0 until then; guarded by Store.wmu
}

type operationKey struct{}

// WithOperation returns a context whose changes are an operation of their own: for
// a process that does several, as a server does.
func WithOperation(ctx context.Context, command string) context.Context {
	return context.WithValue(ctx, operationKey{}, &operation{command: command, began: time.Now()})
}

func (s *Store) operation(ctx context.Context) *operation {
	if op, ok := ctx.Value(operationKey{}).(*operation); ok {
		return op
	}
	return &s.op
}

// Kinds of change. A digest in column old was there before, one in new after.
const (
	changeTag    = 1
	changeDigest = 2 // a repository's digest
	changeImage  = 3 // a manifest or index was removed, or brought back
	changePin    = 4
	changePart   = 5 // an image went out of, or came back into, the index in old
)

// operationsKept bounds the log of operations.
const operationsKept = 1000

// begun writes the operation down, if that was not done yet.
func (t *tx) begun() (int64, error) {
	if t.op.id != 0 {
		return t.op.id, nil
	}
	res, err := t.Exec("INSERT INTO operation(command, began, at, undone) VALUES(?,?,?,0)",
		t.op.command, t.op.began.UnixNano(), time.Now().UnixNano())
	if err != nil {
		return 0, err
	}
	id, err := res.LastInsertId()
	if err != nil {
		return 0, err
	}
	t.op.id = id
	for _, q := range []string{
		"DELETE FROM change WHERE op <= ?1 AND op NOT IN (SELECT op FROM waiting)",
		"DELETE FROM operation WHERE id <= ?1 AND id NOT IN (SELECT op FROM waiting)",
	} {
		if _, err := t.Exec(q, id-operationsKept); err != nil {
			return 0, err
		}
	}
	return id, nil
}

// change writes down what became of a name or an image.
func (t *tx) change(kind int, repo, tag string, old, now oci.Digest) error {
	op, err := t.begun()
	if err != nil {
		return err
	}
	_, err = t.Exec("INSERT INTO change(op, kind, repo, tag, old, new) VALUES(?,?,?,?,?,?)", op, kind, repo, tag, old, now)
	return err
}

// knowDigest adds a digest to those that repo is known for, or removes it.
func (t *tx) knowDigest(repo string, d oci.Digest, known bool) error {
	query := "DELETE FROM repodigest WHERE repo = ? AND digest = ?"
	old, now := d, oci.Digest("")
	if known {
		query = "INSERT OR IGNORE INTO repodigest(repo, digest) VALUES(?,?)"
		old, now = "", d
	}
	res, err := t.Exec(query, repo, d)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	t.noteDigest(repo, d, known)
	return t.change(changeDigest, repo, "", old, now)
}

// lowSpace tells whether the disk is nearly full: less than a twentieth or two
// gigabytes free, whichever is less.
func (s *Store) lowSpace() bool {
	var st unix.Statfs_t
	if unix.Statfs(s.root, &st) != nil {
		return false
	}
	free := st.Bavail * uint64(st.Bsize)
	return free < min(st.Blocks*uint64(st.Bsize)/20, 2<<30)
}
