package store

import (
	"context"

	"github.com/strake-project/strake/internal/oci"
)

// ClaimLayer notes that somebody says that blob d is the layer diffID, packed,
// as a manifest and its config would. It is believed once the bytes were seen
// to be that: by TOC, which fails where they are not.
func (s *Store) ClaimLayer(ctx context.Context, diffID oci.Digest, d oci.Descriptor) error {
	if err := checkDigest(diffID); err != nil {
		return err
	}
	if err := s.hold(leaseOf(ctx), diffID, d.Digest); err != nil {
		return err
	}
	return s.write(ctx, func(t *tx) error { return t.claimLayer(diffID, d) })
}
