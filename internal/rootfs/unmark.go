package rootfs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The xattrs by which overlayfs marks an opaque directory.
const (
	opaqueTrusted = "trusted.overlay.opaque"
	opaqueUser    = "user.overlay.opaque"
)

// unmark takes the opaque mark off the directories in r's upper directory
// below which there is nothing to hide. The kernel marks every directory that
// a process makes, which spares it look-ups, but in a layer the mark is a
// statement: it would hide, where the layer is used on another stack, what
// that one has (containers/storage#141). BuildKit leaves it out too.
func unmark(ctx context.Context, r *Root) error {
	return unmarkBelow(ctx, r.Upper, &below{dirs: r.Lowers, known: true})
}

func unmarkBelow(ctx context.Context, dir string, b *below) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range list {
		if !d.IsDir() {
			if err := hide(dir, d.Name()); err != nil {
				return err
			}
			continue
		}
		path := filepath.Join(dir, d.Name())
		sub := &below{up: b, name: d.Name()}
		for _, mark := range []string{opaqueTrusted, opaqueUser} {
			if !marked(path, mark) {
				continue
			}
			if err := sub.find(); err != nil {
				return err
			}
			if len(sub.dirs) == 0 {
				if err := unix.Lremovexattr(path, mark); err != nil {
					return &os.PathError{Op: "remove xattr " + mark, Path: path, Err: err}
				}
			}
			sub = &below{known: true} // hidden, and so is what lies deeper
		}
		if err := unmarkBelow(ctx, path, sub); err != nil {
			return err
		}
	}
	return nil
}

// below are the directories that overlayfs merges under one of the upper
// directory, the topmost first. They are looked up only for what is marked,
// or lies above that.
type below struct {
	up    *below
	name  string
	dirs  []string
	known bool
}

func (b *below) find() error {
	if b.known {
		return nil
	}
	if err := b.up.find(); err != nil {
		return err
	}
	b.known = true
	for _, l := range b.up.dirs {
		path := filepath.Join(l, b.name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			break // a file or a whiteout
		}
		b.dirs = append(b.dirs, path)
		if marked(path, opaqueTrusted) || marked(path, opaqueUser) {
			break
		}
	}
	return nil
}

// marked tells whether directory path has the xattr with the value "y"; "x"
// means something else (a directory with whiteouts made of xattrs).
func marked(path, xattr string) bool {
	var b [2]byte
	n, err := unix.Lgetxattr(path, xattr, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}
