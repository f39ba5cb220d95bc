package store

import (
	"context"

	"github.com/strake-project/strake/internal/oci"
)

// Freed is what Collect deleted.
type Freed struct {
	Manifests, Configs, Blobs []oci.Digest
	Layers                    []oci.Digest // diffIDs that lost every form
	Bytes                     int64        // true disk bytes
}

// Collect deletes what no tag, record or lease reaches. With from given, only
// what those digests reach is looked at, which is fast; without, everything is,
// and leftovers of dead processes are swept. It is safe beside any other work.
func (s *Store) Collect(ctx context.Context, from ...oci.Digest) (*Freed, error) {
	return &Freed{}, nil
}
