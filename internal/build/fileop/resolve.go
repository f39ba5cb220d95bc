package fileop

import (
	"fmt"
	"path"
	"strings"
	"syscall"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// maxLinks bounds the symlinks of one path, as BuildKit does.
const maxLinks = 255

// statter is what resolve needs of a view.
type statter func(p string) *layer.Entry

func statOf(v tree.View) statter {
	if d, ok := v.(*Draft); ok {
		return d.stat
	}
	return func(p string) *layer.Entry {
		e, err := v.Lstat(p)
		if err != nil {
			return nil
		}
		return e
	}
}

// under sees only what lies in the directory root, as a chroot does.
func (s statter) under(root string) statter {
	return func(p string) *layer.Entry { return s(path.Join(root, p)) }
}

// resolve follows the symlinks in p, the last component's too if last is true,
// inside the root. It differs from tree.Resolve in that a path that leads
// through something that is no directory fails, with the error that the
// kernel would give.
func (s statter) resolve(p string, last bool) (string, error) {
	at, links := ".", 0
	for rest := rel(p); rest != "" && rest != "."; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, name)
		e := s(next)
		switch {
		case e == nil || e.Type == layer.Dir:
			at = next
		case e.Type == layer.Symlink && (last || rest != ""):
			if links++; links > maxLinks {
				return "", fmt.Errorf("%s: too many links: %w", slash(p), oci.ErrInvalid)
			}
			if strings.HasPrefix(e.Link, "/") {
				at = "."
			}
			rest = e.Link + "/" + rest
		case strings.Trim(rest, "/") == "":
			return next, nil
		default:
			return "", pathError("lstat", path.Join(next, rest), syscall.ENOTDIR)
		}
	}
	return at, nil
}

// wildcard tells whether name has a meta character that is not escaped.
func wildcard(name string) bool {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// glob lists what the pattern p means in v: itself, if it has no wildcard, or
// the matching paths in order. Only directories whose names can match are
// read. A directory that matches is taken whole.
func glob(v tree.View, p string, follow bool) ([]string, error) {
	parts := strings.Split(rel(p), "/")
	fixed := 0
	for fixed < len(parts) && !wildcard(parts[fixed]) {
		fixed++
	}
	dir := path.Join(parts[:fixed]...)
	if fixed == len(parts) {
		return []string{rel(p)}, nil
	}
	dir, err := statOf(v).resolve(dir, follow)
	if err != nil {
		return nil, err
	}
	e := statOf(v)(dir)
	if e == nil {
		return nil, pathError("lstat", dir, syscall.ENOENT)
	}
	if e.Type != layer.Dir {
		return nil, nil
	}
	var out []string
	err = globIn(v, dir, parts[fixed:], &out)
	return out, err
}

func globIn(v tree.View, dir string, parts []string, out *[]string) error {
	all, err := v.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range all {
		ok, err := path.Match(parts[0], path.Base(e.Path))
		if err != nil || !ok {
			continue // a malformed pattern matches nothing, as in docker
		}
		if len(parts) == 1 {
			*out = append(*out, e.Path)
		} else if e.Type == layer.Dir {
			if err := globIn(v, e.Path, parts[1:], out); err != nil {
				return err
			}
		}
	}
	return nil
}
