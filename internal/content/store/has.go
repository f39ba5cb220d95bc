package store

import (
	"context"
	"errors"

	"github.com/strake-project/strake/internal/oci"
)

// Has implements content.Sink: the blob is there, or, for a plain layer, some
// form from which Open can make it.
func (s *Store) Has(ctx context.Context, d oci.Descriptor) (bool, error) {
	if err := checkDigest(d.Digest); err != nil {
		return false, err
	}
	f, err := s.lookup(ctx, d.Digest)
	if err != nil {
		return false, err
	}
	return s.is(ctx, f, d)
}

// is tells whether the form that was found is what d names.
func (s *Store) is(ctx context.Context, f form, d oci.Descriptor) (ok bool, err error) {
	if f.kind == formNone {
		return false, nil
	}
	if f.kind == formPacked && (!f.verified || f.size < 0) {
		// A manifest claims that these packed bytes are this layer. One pass
		// over them tells, cheaper than fetching it again.
		f.size, _, err = s.verifyPacked(ctx, d.Digest, f.packed)
		if errors.Is(err, oci.ErrCorrupt) || errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrInvalid) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	// Content of another length is not what d names. A bare digest, which is
	// not a descriptor from anywhere, says nothing of the length.
	return f.size == d.Size || d.Size == 0 && d.MediaType == "", nil
}

// HasAll is Has for many, in a tenth of the time.
func (s *Store) HasAll(ctx context.Context, all []oci.Descriptor) ([]bool, error) {
	digests := make([]oci.Digest, len(all))
	for i, d := range all {
		if err := checkDigest(d.Digest); err != nil {
			return nil, err
		}
		digests[i] = d.Digest
	}
	forms := make([]form, len(all))
	err := s.leasing(ctx, func(t *tx) (err error) {
		for i := range all {
			if forms[i], err = s.find(t, digests[i]); err != nil {
				return err
			}
		}
		return nil
	}, digests...)
	if err != nil {
		return nil, err
	}
	has := make([]bool, len(all))
	for i, f := range forms {
		again := false
		if f.kind != formNone {
			again, err = s.settle(ctx, digests[i], f)
		}
		if again && err == nil {
			f, err = s.lookup(ctx, digests[i])
		}
		if err == nil {
			has[i], err = s.is(ctx, f, all[i])
		}
		if err != nil {
			return nil, err
		}
	}
	return has, nil
}
