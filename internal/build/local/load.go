package local

import (
	"context"

	"github.com/strake-project/strake/internal/oci/layer"
)

// Load looks at all that is shown and computes what digests are not known, as
// copies from the directory would later. It returns the size of all files that
// are shown; Loaded is what was read of them.
func (d *Dir) Load(ctx context.Context) (size int64, err error) {
	if err := d.Prefetch(ctx, "."); err != nil {
		return 0, err
	}
	unknown, err := d.unknown(nil, d.top, &size)
	if err != nil {
		return 0, err
	}
	if len(unknown) > 0 {
		if err := d.Hash(ctx, unknown); err != nil {
			return 0, err
		}
	}
	return size, nil
}

// Loaded are the bytes of files that were read for their digests.
func (d *Dir) Loaded() int64 { return d.loaded.Load() }

// unknown adds the regular files below n that are shown and have no digest, and
// the size of all that are shown.
func (d *Dir) unknown(paths []string, n *node, size *int64) ([]string, error) {
	kids, err := d.load(n)
	if err != nil {
		return nil, err
	}
	for _, k := range kids {
		switch {
		case k.dir != nil:
			if paths, err = d.unknown(paths, k, size); err != nil {
				return nil, err
			}
		case k.keep && k.entry.Type == layer.Regular:
			*size += k.entry.Size
			if k.entry.Digest == "" && k.digest.Load() == nil {
				paths = append(paths, k.path)
			}
		}
	}
	return paths, nil
}
