package image

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Find returns the entry of the file that path means, as a user of the image
// would: symlinks are followed inside it, the last one if follow is true. Of an
// image that Fetch opened, the layers come from the top down until what lies
// below cannot matter any more: for a file of the top layer that is one of
// them. A directory's own entry comes the same way; for what is in it, call
// Complete.
func (im *Image) Find(ctx context.Context, path string, follow bool) (*layer.Entry, error) {
	for {
		v := upper{im.Tree, im.unknown > 0}
		at, err := tree.Resolve(v, path, follow)
		if err == nil {
			var e *layer.Entry
			if e, err = v.Lstat(at); err == nil {
				return e, nil
			}
		}
		if !errors.Is(err, errBelow) {
			return nil, err
		}
		if err := im.read(ctx, im.next()); err != nil {
			return nil, err
		}
	}
}

// Complete makes all of the image's layers known.
func (im *Image) Complete(ctx context.Context) error { return im.read(ctx, im.unknown) }

// errBelow says that a layer matters that is not known yet.
var errBelow = errors.New("a lower layer may have it")

// upper is the known layers of an image where some may lie below.
type upper struct {
	*tree.Stack
	below bool
}

func (u upper) Lstat(path string) (*layer.Entry, error) {
	if u.below && !u.Settled(path) {
		return nil, errBelow
	}
	return u.Stack.Lstat(path)
}

// atOnce is how many bytes of packed layers are fetched without asking whether
// the upper ones of them are enough: a request costs as much.
const atOnce = 1 << 20

// next says how many further layers to read at once: as many as are no more
// together than those that were read before, and at least one. So small ones
// come side by side, and never much more comes than must.
func (im *Image) next() int {
	room := int64(atOnce)
	for _, l := range im.Layers[im.unknown:] {
		room += l.Size
	}
	n := 0
	for n < im.unknown {
		if room -= im.Layers[im.unknown-1-n].Size; room < 0 && n > 0 {
			break
		}
		n++
	}
	return n
}

// read makes the topmost n of the unknown layers known.
func (im *Image) read(ctx context.Context, n int) error {
	diffIDs := im.Config.RootFS.DiffIDs
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(6)
	for i := im.unknown - n; i < im.unknown; i++ {
		g.Go(func() (err error) {
			im.tocs[i], err = im.toc(gctx, im.Layers[i], diffIDs[i])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	im.known(im.unknown - n)
	return nil
}

// known sets Tree to the layers from the lowest known one on.
func (im *Image) known(from int) {
	im.unknown = from
	im.Tree = tree.New(im.tocs[from:], func(ctx context.Context, i int, e *layer.Entry) (io.ReadCloser, error) {
		return im.store.PeekFile(ctx, im.Config.RootFS.DiffIDs[from+i], e)
	})
}
