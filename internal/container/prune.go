package container

import (
	"context"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/strake-project/strake/internal/content/store"
)

// Usage is the true disk bytes of what a container wrote, and of each of its
// anonymous volumes.
func (c *Set) Usage(one *Container) (written int64, volumes []int64) {
	written = store.Usage(c.dir(one.ID))
	paths, _ := filepath.Glob(filepath.Join(c.dir(one.ID), "volumes", "*")) // the pattern is sound
	for _, p := range paths {
		n := store.Usage(p)
		volumes = append(volumes, n)
		written -= n
	}
	return written, volumes
}

// Written sums the sizes of the files that the container wrote, as docker
// counts them: not the blocks that they take.
func (c *Set) Written(one *Container) (n int64) {
	// What vanishes meanwhile is not counted.
	_ = filepath.WalkDir(c.upper(one), func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil
		}
		if fi, err := e.Info(); err == nil && fi.Mode()&fs.ModeDevice == 0 {
			n += fi.Size()
		}
		return nil
	})
	return n
}

// Prune removes the containers that do not run and are not about to, as far as
// keep does not want them, and returns them with the bytes they took. A dry run
// only tells.
func (c *Set) Prune(ctx context.Context, keep func(*Container) bool, dry bool) (gone []*Container, bytes int64, err error) {
	list, err := c.List(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, one := range list {
		if one.State == Running || one.State != Exited && c.held(one.ID) || keep(one) {
			continue
		}
		n := store.Usage(c.dir(one.ID))
		if !dry {
			if err := c.discard(ctx, one.ID); err != nil {
				return gone, bytes, err
			}
		}
		gone = append(gone, one)
		bytes += n
	}
	return gone, bytes, nil
}

// Records are the store's records of these containers: what Prune lets go.
func (c *Set) Records(ctx context.Context, of []*Container) ([]store.Record, error) {
	all, err := c.store.Records(ctx, bucket)
	return slices.DeleteFunc(all, func(r store.Record) bool {
		return !slices.ContainsFunc(of, func(one *Container) bool { return one.ID == r.Key })
	}), err
}
