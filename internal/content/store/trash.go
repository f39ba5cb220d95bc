package store

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// trashPrefix is of names below work/ that nothing refers to. What is large is
// renamed there, under whatever lock it takes, and deleted without any.
const trashPrefix = "trash-"

// toTrash moves path, if it is there, out of the way. It is deleted now: in the
// background of the same call where it is small, by Collect where we die.
func (s *Store) toTrash(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	trash := s.path("work", trashPrefix+newName())
	if err := os.Rename(path, trash); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return removeAll(trash)
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
		entries, _ := os.ReadDir(path)
		for _, e := range entries {
			n += blocks(path+"/"+e.Name(), seen)
		}
	}
	return n
}
