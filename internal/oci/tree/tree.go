// Package tree shows a stack of layers as one file system, from their tables
// of contents alone: nothing is unpacked. Whiteouts and opaque directories are
// applied, symlinks are resolved inside the root, directories that a layer
// only implies take their attributes from below.
package tree

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// View is a read-only file system tree. A Stack is one; so are a build context
// on disk and a stack with pending changes.
//
// Paths are slash-separated and clean, relative to the root, "." for the root.
// They are resolved one component after another; Lstat and Open do not follow
// a symlink anywhere: use Resolve first.
type View interface {
	// Lstat returns the entry at path, or fs.ErrNotExist. A hard link comes
	// back as the regular file it is, with Size and Digest, and Link set to
	// the path of its group's first member.
	Lstat(path string) (*layer.Entry, error)
	// ReadDir returns the entries in the directory path, sorted by name.
	ReadDir(path string) ([]*layer.Entry, error)
	// Open reads the content of the regular file at path.
	Open(ctx context.Context, path string) (io.ReadCloser, error)
	// Digest is the content's digest of the regular file at path.
	Digest(ctx context.Context, path string) (oci.Digest, error)
}

// Opener reads the content of entry e of the layer at position i of a stack.
type Opener func(ctx context.Context, i int, e *layer.Entry) (io.ReadCloser, error)

// Stack is the merged view of layers, the first one lowest. Its methods may be
// called from many goroutines. The entries it returns are shared: do not change
// them.
type Stack struct {
	slots []*slot
	open  Opener
	// firsts remembers by *group what shown found.
	firsts sync.Map
}

// New returns the view of layers; open reads contents and may be nil if none
// is read. It costs no more than an index of each TOC, made when a look-up
// first comes to the layer: a path is looked up from the top layer down,
// without merging what nobody asks for.
func New(layers []*layer.TOC, open Opener) *Stack {
	return (&Stack{open: open}).Append(layers...)
}

// Append returns the view of s with further layers above. The two share their
// indexes, so that growing a stack layer by layer indexes each layer once.
func (s *Stack) Append(layers ...*layer.TOC) *Stack {
	slots := slices.Grow(slices.Clone(s.slots), len(layers))
	for _, t := range layers {
		slots = append(slots, &slot{toc: t, below: slots[:len(slots):len(slots)]})
	}
	return &Stack{slots: slots, open: s.open}
}

// Layers is the number of layers.
func (s *Stack) Layers() int { return len(s.slots) }

// Lstat implements View.
func (s *Stack) Lstat(path string) (*layer.Entry, error) {
	pl := lookup(s.slots, clean(path))
	if pl.kind == kindNone {
		return nil, &fs.PathError{Op: "lstat", Path: path, Err: fs.ErrNotExist}
	}
	return s.shown(&pl), nil
}

// ReadDir implements View.
func (s *Stack) ReadDir(path string) ([]*layer.Entry, error) {
	pl := lookup(s.slots, clean(path))
	switch pl.kind {
	case kindNone:
		return nil, &fs.PathError{Op: "readdir", Path: path, Err: fs.ErrNotExist}
	case kindFile:
		return nil, &fs.PathError{Op: "readdir", Path: path, Err: syscall.ENOTDIR}
	}
	places := s.list(&pl)
	out := make([]*layer.Entry, len(places))
	for i := range places {
		out[i] = s.shown(&places[i])
	}
	return out, nil
}

// regular finds the regular file at path.
func (s *Stack) regular(op, path string) (place, error) {
	pl := lookup(s.slots, clean(path))
	switch {
	case pl.kind == kindNone:
		return pl, &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
	case pl.kind == kindDir:
		return pl, &fs.PathError{Op: op, Path: path, Err: syscall.EISDIR}
	}
	switch e := pl.entry(); e.Type {
	case layer.Regular:
		return pl, nil
	case layer.HardLink:
		return pl, &fs.PathError{Op: op, Path: path,
			Err: fmt.Errorf("hard link to %s, which no layer has: %w", e.Link, oci.ErrInvalid)}
	}
	return pl, &fs.PathError{Op: op, Path: path, Err: fmt.Errorf("not a regular file: %w", oci.ErrInvalid)}
}

// Open implements View.
func (s *Stack) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	pl, err := s.regular("open", path)
	if err != nil {
		return nil, err
	}
	o := pl.origin()
	if o.entry.Size == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if s.open == nil {
		return nil, &fs.PathError{Op: "open", Path: path,
			Err: fmt.Errorf("reading the contents of this view: %w", oci.ErrUnsupported)}
	}
	return s.open(ctx, o.pos, o.entry)
}

// Digest implements View.
func (s *Stack) Digest(ctx context.Context, path string) (oci.Digest, error) {
	pl, err := s.regular("digest", path)
	if err != nil {
		return "", err
	}
	if o := pl.origin(); o.entry.Digest != "" {
		return o.entry.Digest, nil
	}
	r, err := s.Open(ctx, path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	return digest.SHA256.FromReader(r)
}

// WriteEntry writes e to w, with its content from v if it is a file.
func WriteEntry(ctx context.Context, w *layer.Writer, e *layer.Entry, v View) error {
	if e.Type != layer.Regular || e.Size == 0 {
		return w.Write(*e, nil)
	}
	r, err := v.Open(ctx, e.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	return w.Write(*e, r)
}
