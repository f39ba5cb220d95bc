// Package rootfs turns a stack of layers into a root that a process can have:
// it has the layers unpacked side by side, works out the directories that must
// be laid over them, and turns what a process left in the upper directory into
// a new layer. The overlay itself is mounted by package sandbox, inside the
// process's own mount namespace, so nothing stays mounted when a process or
// strake dies.
//
// A layer's tree depends on nothing but the layer, so that layers are unpacked
// side by side and shared by every stack. Where that is not enough, this
// package makes up layers of its own, which are layers like any other for the
// store (named by their content, made once, held by the lease, collected when
// nobody uses them):
//   - a fixup layer, laid over the stack, with the directories that a layer
//     has without saying what they are like (tree.Stack.Fixups);
//   - in the place of a misplaced layer, one with its entries where they lie in
//     this stack (tree.Stack.Misplaced);
//   - in the place of the lowest layers, one with all of them, where the stack
//     has more layers than overlayfs takes.
//
// The mount must have redirect_dir, metacopy, index and nfs_export off, or the
// upper directory is no plain difference. Mount points that a sandbox makes
// for itself must not be in the upper directory: what is there is the layer.
package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// Root is an overlay to be mounted.
type Root struct {
	// Lowers are read-only trees, the topmost first.
	Lowers []string
	// Upper and Work take the writes; both empty means read-only.
	Upper, Work string

	scratch string // what Prepare made to put the two in
}

// Prepare returns the root of layers (diffIDs, lowest first), unpacking what
// has no tree yet, all side by side. Upper and Work are fresh directories
// that belong to ctx's lease; Upper has the attributes of the stack's root. No
// layers gives an empty root. No directory is twice in Lowers, which overlayfs
// would refuse, though a layer may be twice in layers.
func Prepare(ctx context.Context, s *store.Store, layers []oci.Digest) (*Root, error) {
	p := &plan{store: s, ids: layers, plain: map[oci.Digest]string{}}
	if err := p.unpack(ctx); err != nil {
		return nil, fmt.Errorf("prepare root: %w", err)
	}
	lowers, err := p.lowers(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare root: %w", err)
	}
	dir, err := s.Scratch(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare root: %w", err)
	}
	r := &Root{Lowers: lowers, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), scratch: dir}
	for _, d := range []string{r.Upper, r.Work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, fmt.Errorf("prepare root: %w", oci.NoSpace(err))
		}
	}
	root, err := p.stack.Lstat(".")
	if err != nil {
		return nil, fmt.Errorf("prepare root: %w", err)
	}
	if err := dress(r.Upper, root); err != nil {
		return nil, fmt.Errorf("prepare root: %w", oci.NoSpace(err))
	}
	return r, nil
}

// dress gives directory dir the attributes that e has, in the order that loses
// none.
func dress(dir string, e *layer.Entry) error {
	if err := os.Lchown(dir, e.UID, e.GID); err != nil {
		return err
	}
	if err := unix.Chmod(dir, e.Mode); err != nil {
		return &os.PathError{Op: "chmod", Path: dir, Err: err}
	}
	for k, v := range e.Xattrs {
		err := unix.Lsetxattr(dir, k, []byte(v), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return &os.PathError{Op: "set xattr " + k, Path: dir, Err: err}
		}
	}
	return os.Chtimes(dir, e.ModTime, e.ModTime)
}

// Commit makes r's upper directory the layer above its lowers and returns its
// TOC, or nil if nothing was changed. r must not be in use any more.
//
// What is in the upper directory is the layer, as with BuildKit and docker: a
// directory that is there only because something below it was written is an
// entry too. Attributes of the root itself are in no layer.
func Commit(ctx context.Context, s *store.Store, r *Root) (*layer.TOC, error) {
	if r.Upper == "" {
		return nil, nil
	}
	names, err := readNames(r.Upper)
	if err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	if len(names) == 0 {
		r.discard()
		return nil, nil
	}
	if err := unmark(ctx, r); err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	toc, err := s.TakeTree(ctx, r.Upper)
	if err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	r.discard()
	return toc, nil
}

// discard removes what a root that is not used any more has on the disk, if
// Prepare made it. What cannot be removed goes with the lease.
func (r *Root) discard() {
	if r.scratch != "" {
		os.RemoveAll(r.scratch)
	}
	r.Upper, r.Work = "", ""
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
