package rootfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
	// plain are files with the plain tars of refused layers.
	plain map[oci.Digest]string
	stack *tree.Stack
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

// open reads a file's content. A layer that cannot be unpacked on its own is
// read from its plain tar, kept aside in the lease for this purpose.
func (p *plan) open(ctx context.Context, i int, e *layer.Entry) (io.ReadCloser, error) {
	if p.refused[i] == nil {
		return p.store.OpenFile(ctx, p.ids[i], e)
	}
	if e.Offset < 0 {
		return nil, fmt.Errorf("sparse file %s: %w", e.Path, p.refused[i])
	}
	path, ok := p.plain[p.ids[i]]
	if !ok {
		var err error
		if path, err = p.spool(ctx, i); err != nil {
			return nil, err
		}
		p.plain[p.ids[i]] = path
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, e.Offset, e.Size), f}, nil
}

func (p *plan) spool(ctx context.Context, i int) (string, error) {
	dir, err := p.store.Scratch(ctx)
	if err != nil {
		return "", err
	}
	toc := p.tocs[i]
	r, err := p.store.Open(ctx, oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: toc.DiffID, Size: toc.Size})
	if err != nil {
		return "", err
	}
	defer r.Close()
	f, err := os.Create(filepath.Join(dir, "layer.tar"))
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, r)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", oci.NoSpace(err)
	}
	return f.Name(), nil
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
		// A few directories: made faster than remembered.
		id, err := p.write(ctx, fixups, nil)
		dir := ""
		if err == nil {
			dir, err = p.store.Tree(ctx, id)
		}
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
	dir, err := p.made(ctx, "place", p.ids[:i+1], func() ([]layer.Entry, tree.View, error) {
		// Whatever layer i has is visible in the stack that ends with it.
		part := tree.New(p.tocs[:i+1], p.open)
		return part.Layer(i), part, nil
	})
	if err != nil {
		return "", fmt.Errorf("unpack layer %s, which writes through layers below it: %w", p.ids[i], err)
	}
	return dir, nil
}

// flatten makes one tree of all layers.
func (p *plan) flatten(ctx context.Context) ([]string, error) {
	dir, err := p.made(ctx, "flatten", p.ids, func() ([]layer.Entry, tree.View, error) {
		entries, err := p.stack.Entries(".")
		return entries, p.stack, err
	})
	if err != nil {
		return nil, fmt.Errorf("merge %d layers, more than overlayfs takes: %w", len(p.ids), err)
	}
	return []string{dir}, nil
}

// bucket is where the layers that this package makes up are remembered: a
// record's key is what it was made of, its value the diffID. A record holds
// nothing: once the layer has been collected it is made again.
const bucket = "rootfs"

// made returns the tree of the layer that fn lists, of which the contents may
// be large, made now if it was not made before for the same layers.
func (p *plan) made(ctx context.Context, kind string, ids []oci.Digest, fn func() ([]layer.Entry, tree.View, error)) (string, error) {
	h := sha256.New()
	for _, id := range ids {
		fmt.Fprintln(h, id)
	}
	key := fmt.Sprintf("%s-%x", kind, h.Sum(nil))
	rec, err := p.store.GetRecord(ctx, bucket, key)
	if err == nil {
		dir, err := p.store.Tree(ctx, oci.Digest(rec.Value))
		if err == nil || !errors.Is(err, oci.ErrNotFound) {
			return dir, err
		}
	} else if !errors.Is(err, oci.ErrNotFound) {
		return "", err
	}
	entries, v, err := fn()
	if err != nil {
		return "", err
	}
	id, err := p.write(ctx, entries, v)
	if err != nil {
		return "", err
	}
	if err := p.store.PutRecord(ctx, store.Record{Bucket: bucket, Key: key, Value: []byte(id)}); err != nil {
		return "", err
	}
	return p.store.Tree(ctx, id)
}

// write stores entries as a layer, with contents from v.
func (p *plan) write(ctx context.Context, entries []layer.Entry, v tree.View) (oci.Digest, error) {
	w, err := p.store.NewLayer(ctx)
	if err != nil {
		return "", err
	}
	defer w.Abort()
	for i := range entries {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if err := tree.WriteEntry(ctx, w.Writer, &entries[i], v); err != nil {
			return "", err
		}
	}
	toc, err := w.Commit(ctx)
	if err != nil {
		return "", err
	}
	return toc.DiffID, nil
}
