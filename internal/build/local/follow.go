package local

import (
	"errors"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// followLinks turns paths, which may hold wildcards, into include patterns:
// every symlink on the way and what it leads to in the end. all is true if
// that is the whole directory.
func (d *Dir) followLinks(paths []string) (targets []string, all bool, err error) {
	r := &follower{d: d, seen: map[string]bool{}}
	for _, p := range paths {
		if err := r.add(p); err != nil {
			return nil, false, err
		}
	}
	for p := range r.seen {
		targets = append(targets, p)
	}
	slices.Sort(targets)
	if slices.Contains(targets, ".") {
		return nil, true, nil
	}
	return dedupe(targets), false, nil
}

// dedupe drops what lies below another of the sorted paths.
func dedupe(paths []string) []string {
	var out []string
	for _, p := range paths {
		if n := len(out); n > 0 && strings.HasPrefix(p, out[n-1]+"/") {
			continue
		}
		out = append(out, p)
	}
	return out
}

type follower struct {
	d    *Dir
	seen map[string]bool
}

func (r *follower) add(p string) error {
	at, rest := ".", path.Join(".", p)
	for {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		at = path.Join(at, name)
		links, err := r.links(at)
		if err != nil {
			return err
		}
		if rest != "" && links == nil {
			continue
		}
		if r.seen[at] {
			return nil // also ends a loop of links
		}
		r.seen[at] = true
		for _, l := range links {
			if err := r.add(path.Join(l, rest)); err != nil {
				return err
			}
		}
		return nil
	}
}

// links are the targets of the symlink at p, or of those that p's last
// component matches; none if there is no symlink.
func (r *follower) links(p string) ([]string, error) {
	if p == "." || p == ".." || strings.HasPrefix(p, "../") {
		return nil, nil // nothing outside is looked at
	}
	dir, name := path.Split(p)
	dir = path.Clean(dir)
	fd, err := r.d.openAt(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		if gone(err) {
			return nil, nil
		}
		return nil, trouble("open", dir, err)
	}
	defer unix.Close(fd)
	names := []string{name}
	if wildcard(name) {
		all, err := readNames(fd)
		if err != nil {
			return nil, trouble("readdir", dir, err)
		}
		names = nil
		for _, n := range all {
			if ok, _ := path.Match(name, n.name); ok && (n.typ == unix.DT_LNK || n.typ == unix.DT_UNKNOWN) {
				names = append(names, n.name)
			}
		}
		slices.Sort(names)
	}
	var out []string
	for _, n := range names {
		link, err := readLink(fd, n, 0)
		switch {
		case gone(err) || errors.Is(err, unix.EINVAL): // nothing, or no link
		case err != nil:
			return nil, trouble("readlink", path.Join(dir, n), err)
		case path.IsAbs(link):
			out = append(out, path.Clean(link))
		default:
			out = append(out, path.Join("/", dir, link))
		}
	}
	return out, nil
}

func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
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
