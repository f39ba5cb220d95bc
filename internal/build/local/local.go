// Package local shows a build context directory as a tree.View: what docker's
// client would send of it to a BuildKit daemon.
//
// Invariants: the directory is never written to; a symlink in it is never
// followed, so nothing outside of it is ever read; what patterns exclude
// wholly is not even looked at; a digest is only ever given for bytes that
// were read, or that the kernel's times prove to be unchanged since they were;
// a file that changes while it is read makes an error, not an image.
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Options says which part of a directory is shown. The zero value shows all.
type Options struct {
	// Include, Exclude and Follow are a local source's include-patterns,
	// exclude-patterns (.dockerignore) and follow-paths: an entry is shown if
	// it matches Include or Follow, if there are any, and does not match
	// Exclude. Follow are paths whose symlinks are followed, inside the
	// directory: the links and their targets are shown.
	Include, Exclude, Follow []string
	// CacheDir keeps digests from one build to the next, one file for each
	// directory. Nothing is kept if it is empty.
	CacheDir string
}

// Dir is a directory's tree, looked at when it is asked for: each entry once.
// Owners are 0:0, whoever owns the files. Hard links of one file have the same
// Link, which is no path. It is safe for use by several
// goroutines.
type Dir struct {
	path    string
	root    int
	filters filters
	top     *node
	cache   *cache
	loaded  atomic.Int64
}

var _ tree.View = (*Dir)(nil)

// Open opens the directory dir. The caller closes it.
func Open(ctx context.Context, dir string, opt Options) (*Dir, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	root, err := unix.Open(abs, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("build context: %w", &fs.PathError{Op: "open", Path: abs, Err: err})
	}
	d := &Dir{path: abs, root: root}
	if err := d.init(ctx, opt); err != nil {
		unix.Close(root)
		return nil, err
	}
	return d, nil
}

func (d *Dir) init(ctx context.Context, opt Options) error {
	include := opt.Include
	if len(opt.Follow) > 0 {
		targets, all, err := d.followLinks(opt.Follow)
		if err != nil {
			return err
		}
		if !all {
			include = append(slices.Clone(include), targets...)
			if slices.Contains(include, ".") { // the root includes all
				include = nil
			}
			include = dedupe(include)
		}
	}
	f, err := newFilter(include, opt.Exclude)
	if err != nil {
		return err
	}
	d.filters.first = f
	d.filters.put(f)
	if err := d.statTop(); err != nil {
		return err
	}
	if opt.CacheDir != "" {
		d.cache = loadCache(opt.CacheDir, d.path)
	} else {
		d.cache = newCache()
	}
	return ctx.Err()
}

// Close saves the digests that were computed and releases the directory. An
// error is about the cache alone: what was read is right.
func (d *Dir) Close() error {
	err := d.cache.save()
	if d.root >= 0 {
		unix.Close(d.root)
		d.root = -1
	}
	return err
}

// Lstat implements tree.View.
func (d *Dir) Lstat(p string) (*layer.Entry, error) {
	n, err := d.find("lstat", p)
	if err != nil {
		return nil, err
	}
	return &n.entry, nil
}

// ReadDir implements tree.View.
func (d *Dir) ReadDir(p string) ([]*layer.Entry, error) {
	n, err := d.find("readdir", p)
	if err != nil {
		return nil, err
	}
	if n.dir == nil {
		return nil, notThere("readdir", p, syscall.ENOTDIR)
	}
	kids, err := d.load(n)
	if err != nil {
		return nil, err
	}
	out := make([]*layer.Entry, 0, len(kids))
	for _, k := range kids {
		ok, err := d.visible(k)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, &k.entry)
		}
	}
	return out, nil
}

// find returns the visible node at p.
func (d *Dir) find(op, p string) (*node, error) {
	n := d.top
	for rest := p; rest != "" && p != "."; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if n.dir == nil {
			return nil, notThere(op, p, syscall.ENOENT)
		}
		kids, err := d.load(n)
		if err != nil {
			return nil, err
		}
		if n = child(kids, name); n == nil {
			return nil, notThere(op, p, syscall.ENOENT)
		}
	}
	ok, err := d.visible(n)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, notThere(op, p, syscall.ENOENT)
	}
	return n, nil
}

// Open implements tree.View. The reader fails if the file is not, to its end,
// what it was when it was looked at.
func (d *Dir) Open(ctx context.Context, p string) (io.ReadCloser, error) {
	n, err := d.find("open", p)
	if err != nil {
		return nil, err
	}
	if n.entry.Type != layer.Regular {
		return nil, notThere("open", p, syscall.EINVAL)
	}
	return d.reader(n)
}

// Digest implements tree.View.
func (d *Dir) Digest(ctx context.Context, p string) (oci.Digest, error) {
	n, err := d.find("digest", p)
	if err != nil {
		return "", err
	}
	if n.entry.Type != layer.Regular {
		return "", notThere("digest", p, syscall.EINVAL)
	}
	return d.digest(ctx, n)
}

// notThere is an error about path p of the context.
func notThere(op, p string, err error) error {
	return &fs.PathError{Op: op, Path: path.Join("/", p), Err: err}
}

// trouble is an error about a file that is there and cannot be used.
func trouble(op, p string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("build context: %w; allow it to be read, or name it in .dockerignore", &fs.PathError{Op: op, Path: p, Err: err})
	}
	return fmt.Errorf("build context: %w", &fs.PathError{Op: op, Path: p, Err: err})
}

// ChangedError says that a file was written to during the build.
// errors.Is(err, oci.ErrConflict) is true of it.
type ChangedError struct{ Path string }

func (e *ChangedError) Error() string {
	return fmt.Sprintf("build context: %s changed while it was read; build again when nothing writes to it", e.Path)
}

// Is makes a ChangedError an ErrConflict.
func (e *ChangedError) Is(target error) bool { return target == oci.ErrConflict }
