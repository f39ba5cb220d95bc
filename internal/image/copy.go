package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// member is an entry under the name that it gets, and where its content is.
type member struct {
	layer.Entry
	from string
}

// members lists what is at root of v and below, in canonical order, renamed so
// that root is called as.
func members(v tree.View, root, as string) ([]member, error) {
	var all []member
	err := tree.Walk(v, root, func(e *layer.Entry) error {
		m := member{*e, e.Path}
		m.Path = path.Join(as, strings.TrimPrefix(strings.TrimPrefix(e.Path, root), "/"))
		if root == "." {
			m.Path = path.Join(as, e.Path)
		}
		all = append(all, m)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, relink(all)
}

// relink puts all into canonical order, in which the first name of a file is the
// file and the others are hard links to it.
func relink(all []member) error {
	slices.SortFunc(all, func(a, b member) int {
		switch {
		case layer.Less(&a.Entry, &b.Entry):
			return -1
		case layer.Less(&b.Entry, &a.Entry):
			return 1
		}
		return 0
	})
	firsts := tree.FirstNames{}
	for i := range all {
		m := &all[i]
		if m.Type == layer.HardLink {
			return fmt.Errorf("%s: hard link to %s, which no layer has: %w", m.from, m.Link, oci.ErrInvalid)
		}
		firsts.Relink(&m.Entry, m.from)
	}
	return nil
}

// entryWriter is a layer.Writer, or the store's.
type entryWriter interface {
	Write(e layer.Entry, content io.Reader) error
}

// write writes m with its content from v.
func write(ctx context.Context, w entryWriter, v tree.View, m *member) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.Type != layer.Regular {
		return w.Write(m.Entry, nil)
	}
	r, err := v.Open(ctx, m.from)
	if err != nil {
		return err
	}
	defer r.Close()
	return w.Write(m.Entry, r)
}

// WriteTar writes what is at root of v as a tar archive in which it is called
// as, "." for the archive's own root.
func WriteTar(ctx context.Context, w io.Writer, v tree.View, root, as string) error {
	all, err := members(v, root, as)
	if err != nil {
		return err
	}
	tw := layer.NewWriter(w)
	if err := writeAll(ctx, tw, v, all); err != nil {
		return err
	}
	_, err = tw.Close()
	return err
}

// Extract writes what is at root of v to dir, where it is called as, "." to lay
// it over dir itself. Files belong to who runs this and lose setuid and setgid
// bits, unless owners is true. Existing files are replaced, existing directories
// kept. Nothing outside dir is touched, whatever links are there. Devices and
// pipes are left out and returned.
//
// A single file or a new directory appears whole or not at all.
func Extract(ctx context.Context, dir *os.Root, v tree.View, root, as string, owners bool) (skipped []string, err error) {
	top, err := v.Lstat(root)
	if err != nil {
		return nil, err
	}
	to := as
	_, lerr := dir.Lstat(as)
	aside := errors.Is(lerr, fs.ErrNotExist) && top.Type == layer.Dir
	if aside {
		to = path.Join(path.Dir(as), temporary(as))
	}
	all, err := members(v, root, to)
	if err != nil {
		return nil, err
	}
	x := extraction{dir: dir, v: v, owners: owners}
	err = x.all(ctx, all)
	if aside {
		if err == nil {
			err = dir.Rename(to, as)
		}
		if err != nil {
			err = errors.Join(err, dir.RemoveAll(to))
		}
	}
	return x.skipped, err
}

// temporary is a name beside name that nobody else has.
func temporary(name string) string {
	return fmt.Sprintf(".%.100s.strake-%d", path.Base(name), os.Getpid())
}

type extraction struct {
	dir     *os.Root
	v       tree.View
	owners  bool
	made    []*member // directories that are ours
	skipped []string
}

func (x *extraction) all(ctx context.Context, all []member) error {
	for i := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := x.one(ctx, &all[i]); err != nil {
			return fmt.Errorf("%s: %w", all[i].from, err)
		}
	}
	// Children first: writing into a directory changes its time and may need
	// rights that it does not give.
	for _, m := range slices.Backward(x.made) {
		if err := x.attributes(m.Path, m); err != nil {
			return fmt.Errorf("%s: %w", m.from, err)
		}
	}
	return nil
}

func (x *extraction) one(ctx context.Context, m *member) error {
	switch m.Type {
	case layer.Dir:
		fi, err := x.dir.Lstat(m.Path)
		switch {
		case err == nil && fi.IsDir():
			return nil
		case err == nil:
			return fmt.Errorf("%s is there and no directory: %w", m.Path, oci.ErrExists)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		x.made = append(x.made, m)
		return x.dir.Mkdir(m.Path, 0o700)
	case layer.Regular:
		return x.file(ctx, m)
	case layer.HardLink:
		return x.replace(m.Path, func(name string) error { return x.dir.Link(m.Link, name) })
	case layer.Symlink:
		return x.replace(m.Path, func(name string) error {
			if err := x.dir.Symlink(m.Link, name); err != nil || !x.owners {
				return err
			}
			return x.dir.Lchown(name, m.UID, m.GID)
		})
	}
	x.skipped = append(x.skipped, "/"+m.from)
	return nil
}

// file writes a regular file aside and renames it.
func (x *extraction) file(ctx context.Context, m *member) error {
	r, err := x.v.Open(ctx, m.from)
	if err != nil {
		return err
	}
	defer r.Close()
	return x.replace(m.Path, func(name string) error {
		f, err := x.dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, &interruptible{ctx, r})
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		return x.attributes(name, m)
	})
}

// replace makes a node under another name and puts it in path's place.
func (x *extraction) replace(name string, make func(name string) error) error {
	tmp := path.Join(path.Dir(name), temporary(name))
	err := make(tmp)
	if err == nil {
		err = x.dir.Rename(tmp, name)
	}
	// Also after a rename: of two names of one file it does nothing.
	if rerr := x.dir.Remove(tmp); err == nil && rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = rerr
	}
	return err
}

// attributes gives a file or directory owner, mode and time.
func (x *extraction) attributes(name string, m *member) error {
	mode := m.FileMode() & fs.ModePerm
	if x.owners {
		mode = m.FileMode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
		if err := x.dir.Lchown(name, m.UID, m.GID); err != nil {
			return err
		}
	}
	if err := x.dir.Chmod(name, mode); err != nil {
		return err
	}
	return x.dir.Chtimes(name, m.ModTime, m.ModTime)
}

// interruptible is a reader that ends with its context.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}
