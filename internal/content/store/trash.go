package store

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// trashPrefix is of names below work/ that nothing refers to. What may be
// large is renamed there, under whatever lock that takes, and deleted without
// any. Where its process dies, Collect deletes it.
const trashPrefix = "trash-"

// toTrash moves path out of the way and returns where it went, or "" if it was
// not there.
func (s *Store) toTrash(path string) (string, error) {
	trash := s.path("work", trashPrefix+newName())
	err := os.Rename(path, trash)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return trash, err
}

// empty deletes what toTrash moved. It may be there still if that fails; it is
// in nobody's way.
func (s *Store) empty(trash string) {
	if trash == "" {
		return
	}
	if err := removeAll(trash); err != nil {
		s.log.Warn("store: delete leftovers", "path", trash, "err", err)
	}
}

// blocks is the true disk usage of what lies at path, in bytes. A file with
// several names counts once.
func blocks(path string, seen map[[2]uint64]bool) int64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if seen[key] {
			return 0
		}
		seen[key] = true
	}
	n := st.Blocks * 512
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		entries, _ := namesIn(path)
		for _, e := range entries {
			n += blocks(path+"/"+e, seen)
		}
	}
	return n
}

// ownBlocks is the disk usage of the directory itself.
func ownBlocks(path string) int64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}
