package remote

import (
	"context"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Head resolves a tag without its manifest, where the registry's answer says
// enough; hosts that count downloads do not count it.
func (r *Repository) Head(ctx context.Context, to ref.Ref) (oci.Descriptor, error) {
	if err := r.check(to); err != nil {
		return oci.Descriptor{}, err
	}
	r.reading.Store(true)
	if d, ok, err := r.head(ctx, to.WithDefaultTag().Tag, ""); ok || err != nil {
		return d, err
	}
	return r.Resolve(ctx, to)
}
