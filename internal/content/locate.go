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

// Found is an image that Locate found.
type Found struct {
	oci.Descriptor // what the name points at: an index or a manifest
	// Source has the image: the local place where Local is set, else its
	// registry.
	Source Source
	Local  bool
	// Fetch makes the image whole in the local place, under its name; progress
	// may be nil. Of one that is there it moves the name at most.
	Fetch func(ctx context.Context, progress func(Event)) error
}

// Locate finds out what r names and whether its image for platform p is whole
// in local, and fetches nothing. With PullMissing the registry, opened by
// remote, is asked only if the image or its platform is not there; with
// PullAlways first, every time. Fetch then makes it local.
func Locate(ctx context.Context, local Local, remote func(ref.Ref) Source, r ref.Ref, p oci.Platform, policy PullPolicy) (*Found, error) {
	r = r.WithDefaultTag()
	if policy != PullAlways {
		d, err := present(ctx, local, r, p)
		if err == nil {
			return &Found{d, local, true, func(context.Context, func(Event)) error { return nil }}, nil
		}
		if policy == PullNever || !errors.Is(err, oci.ErrNotFound) {
			return nil, err
		}
	}
	src := remote(r)
	d, err := src.Resolve(ctx, r)
	if err != nil {
		return nil, sourceErr(err)
	}
	f := &Found{Descriptor: d, Source: src}
	f.Fetch = func(ctx context.Context, progress func(Event)) error {
		_, err := Copy(ctx, local, r, src, r, CopyOptions{Platforms: []oci.Platform{p}, Usable: true, Progress: progress, Resolved: &d})
		return err
	}
	if _, err := present(ctx, local, r.WithDigest(d.Digest), p); err == nil {
		f.Source, f.Local = local, true
	}
	return f, nil
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
