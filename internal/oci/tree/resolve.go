package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// Resolve follows every symlink in path, the last component too if last is
// true, inside v's root: absolute targets start at the root, ".." stops at it.
// Missing trailing components are kept as they are (a COPY creates them). It
// fails with oci.ErrInvalid after 255 links, as a loop.
func Resolve(v View, path string, last bool) (string, error) {
	cur, links := ".", 0
	for rest := path; rest != ""; {
		dir, named := cur, false
		if cur, rest, named = descend(cur, rest); !named || rest == "" && !last {
			continue
		}
		e, err := v.Lstat(cur)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if e.Type != layer.Symlink {
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: more than %d symlinks, a loop: %w", path, maxLinks, oci.ErrInvalid)
		}
		cur, rest = through(dir, e.Link, rest)
	}
	return cur, nil
}

// descend takes the first component off rest and goes there from cur. It is
// named unless it is "", "." or "..", which stops at the root.
func descend(cur, rest string) (next, left string, named bool) {
	name := rest
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		name, left = rest[:i], strings.TrimLeft(rest[i:], "/")
	}
	switch name {
	case "", ".":
		return cur, left, false
	case "..":
		if cur != "." {
			cur, _ = split(cur)
		}
		return cur, left, false
	}
	return join(cur, name), left, true
}

// through goes on with rest behind a symlink in dir: from the root where its
// target is absolute.
func through(dir, target, rest string) (cur, left string) {
	if strings.HasPrefix(target, "/") {
		dir = "."
	}
	return dir, target + "/" + rest
}

// Walk calls fn for root and, in order, everything below it. fn may return
// fs.SkipDir, which leaves out what is below a directory or the rest of a
// file's directory, or fs.SkipAll.
func Walk(v View, root string, fn func(e *layer.Entry) error) error {
	e, err := v.Lstat(root)
	if err != nil {
		return err
	}
	if err = walk(v, e, fn); errors.Is(err, fs.SkipDir) || errors.Is(err, fs.SkipAll) {
		return nil
	}
	return err
}

func walk(v View, e *layer.Entry, fn func(e *layer.Entry) error) error {
	if err := fn(e); err != nil || e.Type != layer.Dir {
		if err == fs.SkipDir && e.Type == layer.Dir {
			return nil
		}
		return err
	}
	kids, err := v.ReadDir(e.Path)
	if err != nil {
		return err
	}
	for _, k := range kids {
		if err := walk(v, k, fn); err != nil {
			if err == fs.SkipDir {
				return nil
			}
			return err
		}
	}
	return nil
}
