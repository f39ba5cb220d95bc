package content

import (
	"context"
	"errors"
	"fmt"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// PullPolicy says when an image is asked for at its registry.
type PullPolicy string

// docker's --pull values.
const (
	PullAlways  PullPolicy = "always"
	PullMissing PullPolicy = "missing"
	PullNever   PullPolicy = "never"
)

// Local is a place that images are pulled into: the store.
type Local interface {
	Source
	Sink
}

// Ensure makes the image that r names, for platform p, whole in local and
// returns what the name points at, an index or a manifest. With PullMissing
// the registry, opened by remote, is asked only if the image or its platform
// is not there; with PullAlways first, every time. progress may be nil.
func Ensure(ctx context.Context, local Local, remote func(ref.Ref) Source, r ref.Ref, p oci.Platform, policy PullPolicy, progress func(Event)) (oci.Descriptor, error) {
	r = r.WithDefaultTag()
	if policy != PullAlways {
		d, err := present(ctx, local, r, p)
		if err == nil || policy == PullNever || !errors.Is(err, oci.ErrNotFound) {
			return d, err
		}
	}
	return Copy(ctx, local, r, remote(r), r, CopyOptions{Platforms: []oci.Platform{p}, Usable: true, Progress: progress})
}

// present finds r in local, with the manifest for p and all that it names.
func present(ctx context.Context, local Local, r ref.Ref, p oci.Platform) (oci.Descriptor, error) {
	top, err := local.Resolve(ctx, r)
	if err != nil {
		return top, err
	}
	d, body, err := Manifest(ctx, local, top, p)
	if err != nil {
		return top, err
	}
	children, err := oci.Children(d.MediaType, body)
	if err != nil {
		return top, err
	}
	for _, c := range children {
		ok, err := local.Has(ctx, c)
		if err != nil {
			return top, err
		}
		if !ok {
			return top, fmt.Errorf("%s: %s: %w", r.Familiar(), c.Digest, oci.ErrNotFound)
		}
	}
	return top, nil
}
