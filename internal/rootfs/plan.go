package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// maxLowers is how many lower layers a root may have: overlayfs takes 500, of
// which a sandbox may need some for itself.
const maxLowers = 480

// plan is a stack of layers on its way to a root.
type plan struct {
	store *store.Store
	ids   []oci.Digest
	tocs  []*layer.TOC
	trees []string
	// refused are the errors of layers that could not be unpacked on their own,
	// which is none if the layer turns out to be misplaced.
	refused []error
	stack   *tree.Stack
}

// unpack has every layer's tree and table of contents made, side by side:
// inflating, hashing and writing of one layer fill the waits of another.
func (p *plan) unpack(ctx context.Context) error {
	p.tocs = make([]*layer.TOC, len(p.ids))
	p.trees = make([]string, len(p.ids))
	p.refused = make([]error, len(p.ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(4, 2*runtime.GOMAXPROCS(0)))
	for i, id := range p.ids {
		if slices.Index(p.ids, id) != i {
			continue // twice in the stack, unpacked once
		}
		g.Go(func() error {
			var err error
			if p.trees[i], err = p.store.Tree(gctx, id); err != nil {
				if !errors.Is(err, oci.ErrInvalid) {
					return err
				}
				p.refused[i] = err
			}
			p.tocs[i], err = p.store.TOC(gctx, id)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, id := range p.ids {
		j := slices.Index(p.ids, id)
		p.tocs[i], p.trees[i], p.refused[i] = p.tocs[j], p.trees[j], p.refused[j]
	}
	p.stack = tree.New(p.tocs, p.open)
	return nil
}

func (p *plan) open(ctx context.Context, i int, e *layer.Entry) (io.ReadCloser, error) {
	return p.store.OpenFile(ctx, p.ids[i], e)
}

// lowers lists the trees of the root, the topmost first.
func (p *plan) lowers(ctx context.Context) ([]string, error) {
	base := p.stack.Base()
	up := make([]string, 0, len(p.ids)-base+1) // lowest first
	for i := base; i < len(p.ids); i++ {
		dir := p.trees[i]
		if p.stack.Misplaced(i) {
			var err error
			if dir, err = p.place(ctx, i); err != nil {
				return nil, err
			}
		} else if p.refused[i] != nil {
			return nil, p.refused[i]
		}
		up = append(up, dir)
	}
	fixups, err := p.stack.Fixups()
	if err != nil {
		return nil, err
	}
	// The root alone needs no fixup: the upper directory is dressed as it.
	if len(fixups) > 1 || len(fixups) == 1 && fixups[0].Path != "." {
		dir, err := p.make(ctx, fixups, nil)
		if err != nil {
			return nil, fmt.Errorf("lay directories over the layers: %w", err)
		}
		up = append(up, dir)
	}
	slices.Reverse(up)
	if up = once(up); len(up) > maxLowers {
		return p.flatten(ctx)
	}
	return up, nil
}

// once leaves out what comes again further down. Whatever the same tree says
// below, it says again above: of every path in it the topmost statement
// decides, and what it hides below it hides from above too.
func once(dirs []string) []string {
	seen := make(map[string]bool, len(dirs))
	return slices.DeleteFunc(dirs, func(d string) bool {
		was := seen[d]
		seen[d] = true
		return was
	})
}

// place makes the tree of layer i with its entries where they lie in the stack.
func (p *plan) place(ctx context.Context, i int) (string, error) {
	// Whatever layer i has is visible in the stack that ends with it.
	part := tree.New(p.tocs[:i+1], p.open)
	dir, err := p.make(ctx, part.Layer(i), part)
	if err != nil {
		return "", fmt.Errorf("unpack layer %s, which writes through layers below it: %w", p.ids[i], err)
	}
	return dir, nil
}

// flatten makes one tree of all layers.
func (p *plan) flatten(ctx context.Context) ([]string, error) {
	entries, err := p.stack.Entries(".")
	if err != nil {
		return nil, err
	}
	dir, err := p.make(ctx, entries, p.stack)
	if err != nil {
		return nil, fmt.Errorf("merge %d layers, more than overlayfs takes: %w", len(p.ids), err)
	}
	return []string{dir}, nil
}

// make stores entries as a layer, with contents from v, and returns its tree.
func (p *plan) make(ctx context.Context, entries []layer.Entry, v tree.View) (string, error) {
	w, err := p.store.NewLayer(ctx)
	if err != nil {
		return "", err
	}
	defer w.Abort()
	for i := range entries {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if err := write(ctx, w.Writer, &entries[i], v); err != nil {
			return "", err
		}
	}
	toc, err := w.Commit(ctx)
	if err != nil {
		return "", err
	}
	return p.store.Tree(ctx, toc.DiffID)
}

func write(ctx context.Context, w *layer.Writer, e *layer.Entry, v tree.View) error {
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
