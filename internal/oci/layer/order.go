package layer

import (
	"slices"
	"strings"
)

// Less is the canonical order of entries: parents before children, siblings
// by the bytes of their names, an Opaque directly after its directory.
func Less(a, b *Entry) bool {
	if c := ComparePaths(a.Path, b.Path); c != 0 {
		return c < 0
	}
	return a.Type != Opaque && b.Type == Opaque
}

// ComparePaths orders clean paths as if "/" were smaller than every other
// byte, which keeps a directory and everything below it together.
func ComparePaths(a, b string) int {
	if a == b {
		return 0
	}
	if a == "." {
		return -1
	}
	if b == "." {
		return 1
	}
	n := min(len(a), len(b))
	for i := 0; i < n; i++ {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x == '/' {
			return -1
		}
		if y == '/' || x > y {
			return 1
		}
		return -1
	}
	return len(a) - len(b)
}

// parentOf is the directory of a clean path; the root is its own parent.
func parentOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return "."
}

// splitPath cuts a clean path into directory and name.
func splitPath(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return ".", p
}

// Implied returns, sorted, the directories that the layer has only because
// something lies in them (the root "." too, where the tar does not name it).
// When layers are stacked, such a directory has the owner, mode and time of
// the same path below; it is not a statement of this layer.
func (t *TOC) Implied() []string {
	named := make(map[string]bool, 64) // true: a directory of its own; false: implied
	for i := range t.Entries {
		if e := &t.Entries[i]; e.Type == Dir {
			named[e.Path] = true
		}
	}
	var implied []string
	add := func(dir string) {
		for {
			if _, seen := named[dir]; seen {
				return
			}
			named[dir] = false
			implied = append(implied, dir)
			if dir == "." {
				return
			}
			dir = parentOf(dir)
		}
	}
	add(".")
	last := "."
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Type == Opaque {
			add(e.Path)
			continue
		}
		if dir := parentOf(e.Path); dir != last {
			add(dir)
			last = dir
		}
	}
	slices.SortFunc(implied, ComparePaths)
	return implied
}

// FileBytes is the sum of the sizes of the layer's regular files and of the
// lengths of its symbolic links: what docker shows as a layer's SIZE.
func (t *TOC) FileBytes() int64 {
	var n int64
	for i := range t.Entries {
		switch e := &t.Entries[i]; e.Type {
		case Regular:
			n += e.Size
		case Symlink:
			n += int64(len(e.Link))
		}
	}
	return n
}
