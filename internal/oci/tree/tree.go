// Package tree shows a stack of layers as one file system, from their tables
// of contents alone: nothing is unpacked. Whiteouts and opaque directories are
// applied, symlinks are resolved inside the root, directories that a layer
// only implies take their attributes from below.
package tree

import (
	"context"
	"io"

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

// Stack is the merged view of layers, the first one lowest.
type Stack struct{ stack }

// New returns the view of layers; open reads contents and may be nil if none
// is read. It costs no more than an index of each TOC: a path is looked up
// from the top layer down, without merging what nobody asks for.
func New(layers []*layer.TOC, open Opener) *Stack { panic("unwritten") }

// Lstat implements View.
func (s *Stack) Lstat(path string) (*layer.Entry, error) { panic("unwritten") }

// ReadDir implements View.
func (s *Stack) ReadDir(path string) ([]*layer.Entry, error) { panic("unwritten") }

// Open implements View.
func (s *Stack) Open(ctx context.Context, path string) (io.ReadCloser, error) { panic("unwritten") }

// Digest implements View.
func (s *Stack) Digest(ctx context.Context, path string) (oci.Digest, error) { panic("unwritten") }

// Resolve follows every symlink in path, the last component too if last is
// true, inside v's root: absolute targets start at the root, ".." stops at it.
// Missing trailing components are kept as they are (a COPY creates them). It
// fails with oci.ErrInvalid after 255 links, as a loop.
func Resolve(v View, path string, last bool) (string, error) { panic("unwritten") }

// Walk calls fn for root and, in order, everything below it. fn may return
// fs.SkipDir.
func Walk(v View, root string, fn func(e *layer.Entry) error) error { panic("unwritten") }

// FS gives v as an io/fs.FS (with ReadDirFS, StatFS and ReadLinkFS), symlinks
// followed inside the root.
func FS(ctx context.Context, v View) FileSystem { panic("unwritten") }

// Change is one difference between two views.
type Change struct {
	Path string
	Kind byte // 'A' added, 'C' changed, 'D' deleted, as docker diff prints them
	Old  *layer.Entry
	New  *layer.Entry
}

// Diff lists what has to change to make a into b, in path order. Contents are
// compared by digest; times count for files, not for directories.
func Diff(a, b View) ([]Change, error) { panic("unwritten") }

// Fixups lists the directories that have to be laid over a stack of
// independently unpacked trees to make overlayfs show what the stack means:
// those that some layer only implies, with the attributes they have below.
func (s *Stack) Fixups() ([]layer.Entry, error) { panic("unwritten") }

// Misplaced tells whether layer i writes through a symlink of a layer below
// it (its tar names lib/x, while lib is a symlink to usr/lib there). Such a
// layer has no tree of its own: it must be unpacked for this stack, with
// paths mapped by Relocate.
func (s *Stack) Misplaced(i int) bool { panic("unwritten") }

// Relocate maps a path as layer i's tar names it to where it lies in the stack.
func (s *Stack) Relocate(i int, path string) string { panic("unwritten") }

type stack struct{}
