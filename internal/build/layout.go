package build

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// bucketLayout holds what came out of OCI layouts: without a record, an image
// that nobody named would be listed as a dangling one.
const bucketLayout = "build.layout"

// ociLayout makes an image of one of the client's OCI layouts a snapshot.
func (s *step) ociLayout(ctx context.Context, op *pb.SourceOp) (*Snapshot, error) {
	img, err := s.layoutImage(ctx, op, s.platform())
	if err != nil {
		return nil, err
	}
	return img.snapshot(), nil
}

// ResolveLayout returns the digest and config of an image that lies in one of
// the client's OCI layouts, which is in the store afterwards.
func (e *Engine) ResolveLayout(ctx context.Context, op *pb.SourceOp, p oci.Platform, name string) (oci.Digest, []byte, error) {
	var img *pulled
	err := e.Work(name, func(*Work) (err error) {
		img, err = e.layoutImage(ctx, op, p)
		return err
	})
	if err != nil {
		return "", nil, err
	}
	return img.top.Digest, img.config, nil
}

// layoutImage copies an image out of a layout, once for each build.
func (e *Engine) layoutImage(ctx context.Context, op *pb.SourceOp, p oci.Platform) (*pulled, error) {
	r, err := ref.ParseImage(strings.TrimPrefix(op.Identifier, "oci-layout://"))
	if err != nil {
		return nil, err
	}
	if r.Digest == "" {
		return nil, fmt.Errorf("%s: an image of an OCI layout is named by its digest: %w", op.Identifier, oci.ErrInvalid)
	}
	name := op.Attrs[pb.AttrOCILayoutStoreID]
	src := e.opt.Layouts[name]
	if src == nil {
		return nil, fmt.Errorf("no OCI layout named %q: %w", name, oci.ErrNotFound)
	}
	id := fmt.Sprint("oci-layout ", name, " ", r.Digest, " ", platforms.Format(p))
	e.mu.Lock()
	img := e.pulled[id]
	if img == nil {
		img = &pulled{engine: e, ref: r, platform: p}
		e.pulled[id] = img
	}
	e.mu.Unlock()
	img.once.Do(func() {
		from := ref.Ref{Domain: r.Domain, Path: r.Path, Digest: r.Digest}
		img.top, img.err = content.Copy(ctx, unnamed{e.opt.Store}, from, src, from, content.CopyOptions{Platforms: []oci.Platform{p}})
		if img.err != nil {
			return
		}
		img.err = e.opt.Store.PutRecord(ctx, store.Record{
			Bucket: bucketLayout, Key: string(img.top.Digest), Holds: []oci.Digest{img.top.Digest},
		})
		if img.err == nil {
			img.err = e.load(ctx, img, e.opt.Store, r, p)
		}
	})
	return img, img.err
}

// unnamed is the store for what is not to have a name there.
type unnamed struct{ *store.Store }

func (unnamed) Tag(context.Context, ref.Ref, oci.Descriptor) error { return nil }
