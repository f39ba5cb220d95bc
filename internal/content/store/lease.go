package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// lease is made real, by its file, with the first thing it holds: a command
// that only looks around pays nothing for having one.
//
// What it holds are lines of that file and no rows: a command that finds
// everything as it was writes nothing to the database, and so has no log to
// sync into it when it ends. A digest is written down before it is looked up,
// or before the transaction that puts it; Collect reads the files before it
// decides. Between the look-up and the answer nothing may be decided, see
// leasing.
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
	s.worked.Store(true)
	return nil
}

// leasing takes digests into ctx's lease and runs fn, which looks for them (by
// ask: without a snapshot of the database). It holds the gate meanwhile: what fn finds was
// not decided to be dead by a Collect that had not seen the lease.
func (s *Store) leasing(ctx context.Context, fn func(*tx) error, digests ...oci.Digest) error {
	l := leaseOf(ctx)
	if l == nil || s.readOnly != "" {
		return s.ask(ctx, fn)
	}
	gate, err := s.gate(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer gate.Close()
	if err := s.hold(l, digests...); err != nil {
		return err
	}
	return s.ask(ctx, fn)
}

// gate is a lock between those who find something and hold it (shared) and
// those who decide what is dead (exclusive). Closing the file opens it.
func (s *Store) gate(how int) (*os.File, error) {
	f, err := os.Open(s.path("leases"))
	if err != nil {
		return nil, s.failed(s.path("leases"), err)
	}
	if err := flock(f, how); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// hold takes digests into l, whether they are there or not. Who then finds
// them does so behind the gate; who puts them, in a transaction that follows.
func (s *Store) hold(l *lease, digests ...oci.Digest) error {
	if l == nil || s.readOnly != "" || len(digests) == 0 {
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
	var lines []byte
	for _, d := range digests {
		if _, ok := l.held[d]; !ok {
			lines = append(append(lines, d...), '\n')
		}
	}
	if len(lines) == 0 {
		return nil
	}
	if _, err := l.file.Write(lines); err != nil {
		return s.failed(l.file.Name(), err)
	}
	for _, d := range digests {
		l.held[d] = struct{}{}
	}
	return nil
}

// leased returns everything that leases hold. The caller has swept the dead or
// does not mind theirs.
func (s *Store) leased() (map[oci.Digest]bool, error) {
	held := map[oci.Digest]bool{}
	dir := s.path("leases")
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, s.failed(dir, err)
	}
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(dir, n.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, s.failed(dir, err)
		}
		for line := range strings.Lines(string(b)) {
			held[oci.Digest(strings.TrimSuffix(line, "\n"))] = true
		}
	}
	return held, nil
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
	err := removeAll(s.path("work", id))
	if err == nil {
		err = os.Remove(s.path("leases", id))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the unlocked file stays; the next sweep tries again
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

// sweepLeases removes what dead processes held, where they worked and what
// they were putting.
//
// An ID without a file is dead if it was seen in work before: an owner locks
// its file before it works, and only its burial removes the file. Of IDs seen
// as a file only, that must be locked.
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
	if names, err = os.ReadDir(s.path("leases")); err != nil {
		return s.failed(s.path("leases"), err)
	}
	for _, n := range names {
		if !worked[n.Name()] {
			worked[n.Name()] = false
		}
	}
	died := false
	for id, surely := range worked {
		live, f := s.alive(id)
		if !live && (surely || f != nil) {
			s.bury(id)
			died = true
		}
		if f != nil {
			f.Close()
		}
	}
	if died {
		return s.sweepPartials(false, new(int64), map[[2]uint64]bool{})
	}
	return nil
}

// removeAll is os.RemoveAll that also enters directories which their owner, if
// it is us, may not enter.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	for range 100 { // another process may be moving its own rubbish into a trash that is being swept
		if !errors.Is(err, unix.ENOTEMPTY) {
			break
		}
		err = os.RemoveAll(path)
	}
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

// Leased returns what running processes hold: a cache's records that name such
// content are in use.
func (s *Store) Leased() (map[oci.Digest]bool, error) {
	if s.readOnly == "" {
		if err := s.sweepLeases(); err != nil {
			return nil, err
		}
	}
	return s.leased()
}

// Hold takes digests, which something else keeps at this moment, into ctx's
// lease.
func (s *Store) Hold(ctx context.Context, digests ...oci.Digest) error {
	return s.hold(leaseOf(ctx), digests...)
}
