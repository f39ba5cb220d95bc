package store

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// lease is made real, by its locked file, with the first thing it holds: a
// command that only looks around pays nothing for having one.
type lease struct {
	id string

	mu       sync.Mutex
	file     *os.File
	held     map[oci.Digest]struct{}
	released bool
}

type leaseKey struct{}

func leaseOf(ctx context.Context) *lease {
	l, _ := ctx.Value(leaseKey{}).(*lease)
	return l
}

// Lease returns a context under which everything put, opened as a tree or
// resolved stays, whatever Collect is asked to do, until release is called or
// the process dies. Every operation that stores something and names it later
// runs under one. Where ctx has a lease already, that one goes on holding what
// it holds, and the new one takes what comes.
func (s *Store) Lease(ctx context.Context) (leased context.Context, release func(), err error) {
	l := &lease{id: newName(), held: map[oci.Digest]struct{}{}}
	s.mu.Lock()
	s.leases[l] = struct{}{}
	s.mu.Unlock()
	return context.WithValue(ctx, leaseKey{}, l), sync.OnceFunc(func() { s.release(l) }), nil
}

// start makes the lease's file and locks it, before anything refers to it.
func (s *Store) start(l *lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil || l.released {
		return nil
	}
	path := s.path("leases", l.id)
	f, err := lockedFile(path, true)
	if err != nil {
		return s.failed(path, err)
	}
	l.file = f
	return nil
}

func (l *lease) has(d oci.Digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.held[d]
	return ok
}

// leasing runs fn, which looks for d, and takes d into ctx's lease in the same
// transaction if fn found it. Without a lease, or where it holds d already,
// only reading is needed.
func (s *Store) leasing(ctx context.Context, d oci.Digest, fn func(*tx) (found bool, err error)) error {
	l := leaseOf(ctx)
	if l == nil || s.readOnly != "" || d != "" && l.has(d) {
		return s.read(ctx, func(t *tx) error {
			_, err := fn(t)
			return err
		})
	}
	if err := s.start(l); err != nil {
		return err
	}
	held := false
	err := s.write(ctx, func(t *tx) error {
		found, err := fn(t)
		if err == nil && found {
			held, err = true, s.hold(t, l, d)
		}
		return err
	})
	if err == nil && held {
		l.remember(d)
	}
	return err
}

// remember notes what l holds, after the transaction that wrote it.
func (l *lease) remember(digests ...oci.Digest) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range digests {
		l.held[d] = struct{}{}
	}
}

// hold takes digests into l; t is a write transaction unless l is nil or the
// store is read-only. After the transaction comes l.remember.
func (s *Store) hold(t *tx, l *lease, digests ...oci.Digest) error {
	if l == nil || s.readOnly != "" {
		return nil
	}
	if err := s.start(l); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return nil
	}
	for _, d := range digests {
		if _, err := t.Exec("INSERT OR IGNORE INTO lease_hold(digest, lease) VALUES(?,?)", d, l.id); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) release(l *lease) {
	s.mu.Lock()
	delete(s.leases, l)
	s.mu.Unlock()
	l.mu.Lock()
	file := l.file
	if l.released {
		file = nil
	}
	l.released = true
	l.mu.Unlock() // before the transaction: a holder locks the other way round
	if file != nil {
		s.bury(l.id)
		file.Close()
	}
}

// bury removes all that lease id had. The caller has its file locked.
func (s *Store) bury(id string) {
	err := s.write(context.Background(), func(t *tx) error {
		_, err := t.Exec("DELETE FROM lease_hold WHERE lease = ?", id)
		return err
	})
	if err == nil {
		err = removeAll(s.path("work", id))
	}
	if err == nil {
		err = os.Remove(s.path("leases", id))
	}
	if err != nil { // the unlocked file stays; the next sweep tries again
		s.log.Warn("store: release lease", "lease", id, "err", err)
	}
}

// Scratch makes an empty directory on the store's file system that belongs to
// ctx's lease and vanishes with it.
func (s *Store) Scratch(ctx context.Context) (string, error) {
	if s.readOnly != "" {
		return "", s.cannotWrite(s.readOnly)
	}
	l := leaseOf(ctx)
	if l == nil {
		return "", errors.New("store: a scratch directory needs a lease")
	}
	if err := s.start(l); err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return "", errors.New("store: the lease was released")
	}
	dir := s.path("work", l.id, newName()[:8])
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", s.failed(dir, err)
	}
	return dir, nil
}

// alive tells whether the lease's process lives, by its lock. Of a dead one it
// returns the file, now locked by us, or nil if there is none. A file without
// lock can also belong to a lease that is just beginning, and holds nothing
// yet, or that was released this moment.
func (s *Store) alive(id string) (bool, *os.File) {
	f, err := os.OpenFile(s.path("leases", id), os.O_RDWR, 0)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist), nil
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return true, nil
	}
	if still, err := isAt(f, f.Name()); err != nil || !still {
		f.Close()
		return true, nil // whoever unlinked it looks after the rest
	}
	return false, f
}

// sweepLeases removes what dead processes held and where they worked.
//
// An ID without a file is dead if it was seen in work or in the database
// before: an owner locks its file before it puts anything there, and only its
// burial removes the file. Of IDs seen as a file only, that must be locked.
func (s *Store) sweepLeases() error {
	worked := map[string]bool{}
	names, err := os.ReadDir(s.path("work"))
	if err != nil {
		return s.failed(s.path("work"), err)
	}
	for _, n := range names {
		if !strings.HasPrefix(n.Name(), trashPrefix) {
			worked[n.Name()] = true
		}
	}
	err = s.read(context.Background(), func(t *tx) error {
		ids, err := t.holders()
		for _, id := range ids {
			worked[id] = true
		}
		return err
	})
	if err != nil {
		return err
	}
	if names, err = os.ReadDir(s.path("leases")); err != nil {
		return s.failed(s.path("leases"), err)
	}
	for _, n := range names {
		if !worked[n.Name()] {
			worked[n.Name()] = false
		}
	}
	for id, surely := range worked {
		live, f := s.alive(id)
		if !live && (surely || f != nil) {
			s.bury(id)
		}
		if f != nil {
			f.Close()
		}
	}
	return nil
}

// holders lists the leases that hold something, by skipping from one to the
// next: each may hold thousands of digests.
func (t *tx) holders() (ids []string, err error) {
	id := ""
	for {
		err := t.QueryRow("SELECT lease FROM lease_hold WHERE lease > ? ORDER BY lease LIMIT 1", id).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return ids, nil
		}
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
}

// removeAll is os.RemoveAll that also enters directories which their owner, if
// it is us, may not enter.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
