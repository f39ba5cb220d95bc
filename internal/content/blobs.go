package content

import (
	"context"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// CopyBlobs copies single blobs of from's repository in src to dst, side by
// side, as Copy copies those that a manifest names: what dst has is not
// fetched, and what arrived of an interrupted transfer is used.
func CopyBlobs(ctx context.Context, dst Sink, src Source, from ref.Ref, blobs []oci.Descriptor, opt CopyOptions) error {
	if opt.Parallel <= 0 {
		opt.Parallel = 6
	}
	c := &copier{src: src, dst: dst, to: from, from: from, opt: opt, slots: make(chan struct{}, opt.Parallel), done: map[oci.Digest]*result{}}
	ctx, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	_, err := c.each(ctx, blobs, func(d oci.Descriptor) (oci.Descriptor, error) { return c.blob(ctx, d) })
	return err
}
