package store

import (
	"context"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/strake-project/strake/internal/oci"
)

// Disk is what lies on the disk at one moment, and what keeps what.
type Disk struct {
	// Bytes are the true disk bytes of each blob and of each layer's own
	// directory (its unpacked form and table of contents).
	Bytes map[oci.Digest]int64
	edges map[oci.Digest][]oci.Digest
}

// Disk looks at every blob and layer, as du does.
func (s *Store) Disk(ctx context.Context) (*Disk, error) {
	d := &Disk{Bytes: map[oci.Digest]int64{}, edges: map[oci.Digest][]oci.Digest{}}
	var all []oci.Digest
	err := s.read(ctx, func(t *tx) (err error) {
		if all, err = t.digests("SELECT digest FROM blob UNION SELECT diffid FROM layer"); err != nil {
			return err
		}
		return t.each(func(scan func(...any) error) error {
			var parent, child string
			err := scan(&parent, &child)
			d.edges[oci.Digest(parent)] = append(d.edges[oci.Digest(parent)], oci.Digest(child))
			return err
		}, "SELECT DISTINCT parent, child FROM edge")
	})
	if err != nil {
		return nil, err
	}
	sizes, err := s.sizes(ctx, all)
	if err != nil {
		return nil, err
	}
	for i, a := range all {
		d.Bytes[a] = sizes[i]
	}
	return d, nil
}

// sizes are the true disk bytes of each blob and of each layer's directory.
func (s *Store) sizes(ctx context.Context, all []oci.Digest) ([]int64, error) {
	sizes := make([]int64, len(all))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	const batch = 64
	for i := 0; i < len(all); i += batch {
		g.Go(func() error {
			seen := map[[2]uint64]bool{} // files with several names are within one layer
			for j := i; j < min(i+batch, len(all)); j++ {
				sizes[j] = blocks(s.blobPath(all[j]), seen) + blocks(s.layerPath(all[j]), seen)
			}
			return ctx.Err()
		})
	}
	return sizes, g.Wait()
}

// Reach adds to found what from keeps, from itself included.
func (d *Disk) Reach(found map[oci.Digest]bool, from ...oci.Digest) {
	for len(from) > 0 {
		one := from[len(from)-1]
		from = from[:len(from)-1]
		if !found[one] {
			found[one] = true
			from = append(from, d.edges[one]...)
		}
	}
}

// Sum is the disk bytes of all that is found.
func (d *Disk) Sum(found map[oci.Digest]bool) int64 {
	var n int64
	for one := range found {
		n += d.Bytes[one]
	}
	return n
}

// Usage is the true disk usage of what lies at path, in bytes. A file with
// several names counts once.
func Usage(path string) int64 { return blocks(path, map[[2]uint64]bool{}) }
