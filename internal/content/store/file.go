package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/bulk"
	"github.com/strake-project/strake/internal/oci/layer"
)

// aside is a file being written, outside of where anything would find it. It
// is locked while its process lives, so that a sweep can tell a leftover.
type aside struct {
	s       *Store
	f       *os.File
	path    string
	n       int64 // bytes written
	flushed int64
	err     error
	gone    bool // renamed to its place
	// lazy leaves it to the kernel when the bytes reach the disk. The blob's row
	// carries this boot, so that after a power cut it is verified before its
	// first use, as trees are.
	lazy bool
	// toc is what the bytes are known to be, where they were written with one:
	// nobody has to read them again to learn what they hold.
	toc *layer.TOC
	// direct writes the file past the page cache; nil where writing goes on in
	// the middle of a file, and before the first Write.
	direct *bulk.Writer
}

func newName() string {
	var b [10]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (s *Store) newAside() (*aside, error) {
	if s.readOnly != "" {
		return nil, s.cannotWrite(s.readOnly)
	}
	s.makeRoom()
	path := s.path("partial", "put-"+newName())
	f, err := lockedFile(path, true)
	if err != nil {
		return nil, s.failed(path, err)
	}
	return &aside{s: s, f: f, path: path}, nil
}

// roomStep is how often a long write looks whether the disk is getting full.
const roomStep = 256 << 20

// makeRoom reclaims what waits where the disk is nearly full.
func (s *Store) makeRoom() {
	if s.lowSpace() {
		if err := s.relieve(context.Background(), false); err != nil {
			s.log.Warn("store: reclaim", "err", err)
		}
	}
}

// writeback is how much may be dirty before the disk is told to begin.
const writeback = 8 << 20

// Write writes, and has the disk begin early on what goes through the page
// cache: by the time of the sync most of it is down, while the hashing went on
// beside.
func (a *aside) Write(p []byte) (int, error) {
	if a.err != nil {
		return 0, a.err
	}
	if a.n == 0 && a.direct == nil {
		a.direct = bulk.New(a.f)
	}
	w := io.Writer(a.f)
	if a.direct != nil {
		w = a.direct
	}
	if a.n/roomStep != (a.n+int64(len(p)))/roomStep {
		a.s.makeRoom()
	}
	n, err := w.Write(p)
	a.n += int64(n)
	if err != nil {
		err = a.s.failed(a.path, err) // here, for the writers on top of this one
		a.err = err
	}
	if a.direct == nil && a.n-a.flushed >= writeback {
		// An optimization only: its failures show up at the sync.
		_ = unix.SyncFileRange(int(a.f.Fd()), a.flushed, a.n-a.flushed, unix.SYNC_FILE_RANGE_WRITE)
		a.flushed = a.n
	}
	return n, err
}

// finish waits for what is still being written; the file is whole after it,
// and nothing is written to it any more.
func (a *aside) finish() error {
	if a.direct == nil {
		return a.err
	}
	err := a.direct.Finish()
	a.direct = nil
	if err != nil {
		err = a.s.failed(a.path, err)
	}
	if a.err == nil {
		a.err = err
	}
	return a.err
}

// discard removes the file unless it was renamed to its place.
func (a *aside) discard() {
	a.finish() // of a file that nobody wants, only its end matters
	if !a.gone {
		os.Remove(a.path)
	}
	a.f.Close()
}

// place renames the file to path. The caller holds the database's write lock.
func (a *aside) place(path string) error {
	if err := os.Rename(a.path, path); err != nil {
		return err
	}
	a.gone = true
	return nil
}

// sync makes file and name survive a power cut. On ext4 and xfs the sync of
// the renamed file commits the rename with it, and that of the directory then
// costs little.
func (a *aside) sync(path string) error {
	if err := a.f.Sync(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// makeShard makes one of the directories that blobs are spread over.
func makeShard(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) { // another algorithm's first
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

// lockedFile opens or makes the file at path and locks it. Without wait,
// unix.EWOULDBLOCK says that another process, or another part of this one, has
// it; wait is for names that are ours alone, where only a sweep can have it, for
// a moment. A file that was unlinked or renamed between the two steps does not
// count.
func lockedFile(path string, wait bool) (*os.File, error) {
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f, how); err != nil {
			f.Close()
			return nil, err
		}
		if still, err := isAt(f, path); err != nil || still {
			return f, err
		}
		f.Close()
	}
}

// isAt tells whether f is what path names now.
func isAt(f *os.File, path string) (bool, error) {
	have, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(have, named), err
}

// tryLock opens path, which may be a directory, and locks it without waiting.
// It returns nil where somebody else has it or nothing is there.
func tryLock(path string) *os.File {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil
	}
	if still, err := isAt(f, path); err != nil || !still {
		f.Close()
		return nil
	}
	return f
}

// writeSmall writes a file aside, without a sync, and renames it to its place.
func writeSmall(path string, b []byte) error {
	tmp := path + "." + newName()
	err := os.WriteFile(tmp, b, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

// buffer for copying a stream of about size bytes.
func buffer(size int64) []byte {
	const most = 512 << 10
	if size < 0 || size >= most {
		return make([]byte, most)
	}
	return make([]byte, size+1)
}

// onlyWriter hides everything but Write.
type onlyWriter struct{ io.Writer }
