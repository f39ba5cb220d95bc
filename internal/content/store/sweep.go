package store

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strake-project/strake/internal/oci"
)

// keepPartial is how long an unfinished download is kept for resuming.
const keepPartial = 24 * time.Hour

// findLeftovers looks for files that no row speaks for. Those that nothing
// else can be about to use are deleted at once, unless dry, and counted.
func (s *Store) findLeftovers(ctx context.Context, dry bool, bytes *int64, seen map[[2]uint64]bool) (left leftovers, err error) {
	if err := s.sweepPartials(dry, bytes, seen); err != nil {
		return left, err
	}
	trash, err := filepath.Glob(s.path("work", trashPrefix+"*"))
	if err != nil {
		return left, err
	}
	for _, t := range trash {
		*bytes += blocks(t, seen)
		if dry {
			continue
		}
		if err := removeAll(t); err != nil {
			return left, s.failed(t, err)
		}
	}
	// First the files, then the rows: what came in between has a row.
	blobs, err := s.listBlobs()
	if err != nil {
		return left, err
	}
	layers, err := s.listLayers()
	if err != nil {
		return left, err
	}
	known := map[oci.Digest]int{} // of layers: 1 + column tree
	err = s.read(ctx, func(t *tx) error {
		rows, err := t.digests("SELECT digest FROM blob")
		if err != nil {
			return err
		}
		for _, d := range rows {
			delete(blobs, d)
		}
		return t.each(func(scan func(...any) error) error {
			var d string
			var tree int
			err := scan(&d, &tree)
			known[oci.Digest(d)] = 1 + tree
			return err
		}, "SELECT diffid, tree FROM layer")
	})
	if err != nil {
		return left, err
	}
	for d := range blobs {
		left.blobs = append(left.blobs, d)
	}
	for d, names := range layers {
		if known[d] == 0 {
			left.layers = append(left.layers, d)
			continue
		}
		for _, n := range names {
			if n == "toc" || n == "tree" && known[d] > 1 {
				continue
			}
			// A tree without a row may just be getting it: its maker has the
			// layer locked until then.
			left.paths = append(left.paths, filepath.Join(s.layerPath(d), n))
		}
	}
	return left, nil
}

// tidy is for the end of a process that worked: what others left that died is
// gone by then, without anybody asking for it, and what has waited long enough.
// After a full disk so is everything that waits, what was put for something
// that did not come about, and every unfinished download: the next command
// needs the space more.
func (s *Store) tidy(ctx context.Context) error {
	full := s.full.Load() // perhaps before anything was worked on
	if !s.worked.Load() && !s.changed.Load() && !full || s.readOnly != "" {
		return nil
	}
	if full {
		// First, because it needs no space: what follows writes to the database.
		if err := s.sweepPartials(false, new(int64), map[[2]uint64]bool{}); err != nil {
			return err
		}
	}
	if err := s.relieve(ctx, full); err != nil {
		return err
	}
	if names, err := os.ReadDir(s.path("leases")); err != nil || len(names) == 0 && !full {
		return err
	}
	if err := s.sweepLeases(); err != nil || !full {
		return err
	}
	// The sweep is for files that came to their places in a transaction which
	// the full disk then refused.
	_, err := s.collect(ctx, question{all: true, loose: true, waiting: true}, true)
	return err
}

// sweepPartials deletes what dead writers left, and old downloads.
func (s *Store) sweepPartials(dry bool, bytes *int64, seen map[[2]uint64]bool) error {
	dir := s.path("partial")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return s.failed(dir, err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), "put-") && time.Since(fi.ModTime()) < keepPartial && !s.full.Load() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		lock := tryLock(path)
		if lock == nil {
			continue
		}
		*bytes += blocks(path, seen)
		if !dry {
			err = os.Remove(path)
		}
		lock.Close()
		if err != nil {
			return s.failed(path, err)
		}
	}
	return nil
}

// listBlobs lists the files below blobs by what they are named.
func (s *Store) listBlobs() (map[oci.Digest]bool, error) {
	found := map[oci.Digest]bool{}
	var mu sync.Mutex
	algorithms, err := os.ReadDir(s.path("blobs"))
	if err != nil {
		return nil, s.failed(s.path("blobs"), err)
	}
	for _, alg := range algorithms {
		err := s.shards(s.path("blobs", alg.Name()), func(_, name string) error {
			if d := oci.Digest(alg.Name() + ":" + name); checkDigest(d) == nil {
				mu.Lock()
				found[d] = true
				mu.Unlock()
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// listLayers lists the directories of layers with the names in each.
func (s *Store) listLayers() (map[oci.Digest][]string, error) {
	found := map[oci.Digest][]string{}
	var mu sync.Mutex
	err := s.shards(s.path("layers"), func(path, name string) error {
		alg, hex, ok := strings.Cut(name, "-")
		if !ok {
			alg, hex = "sha256", name
		}
		d := oci.Digest(alg + ":" + hex)
		if checkDigest(d) != nil {
			return nil
		}
		names, err := namesIn(path)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		mu.Lock()
		found[d] = names
		mu.Unlock()
		return nil
	})
	return found, err
}

// shards calls fn for each entry of each directory in dir, for those of several
// directories at once: tens of thousands are seconds otherwise.
func (s *Store) shards(dir string, fn func(path, name string) error) error {
	shards, err := namesIn(dir)
	if err != nil {
		return s.failed(dir, err)
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, sh := range shards {
		g.Go(func() error {
			shard := dir + "/" + sh
			names, err := namesIn(shard)
			if err != nil {
				return s.failed(shard, err)
			}
			for _, n := range names {
				if err := fn(shard+"/"+n, n); err != nil {
					return s.failed(shard, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// namesIn lists a directory, in no order.
func namesIn(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
