package content

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/platforms"

	"github.com/strake-project/strake/internal/oci"
)

// Host is the platform that this machine runs without emulation.
func Host() oci.Platform { return platforms.Normalize(platforms.DefaultSpec()) }

// Choose picks from an index's children the best image for platform p: docker's
// order, in which arm64 falls back to arm/v7 and so on. Attestations
// (platform unknown/unknown) are never chosen. It fails with oci.ErrNotFound
// and docker's words.
func Choose(children []oci.Descriptor, p oci.Platform) (oci.Descriptor, error) {
	match := platforms.Only(p)
	best := -1
	for i, d := range children {
		if d.Platform == nil || !match.Match(*d.Platform) {
			continue
		}
		if best < 0 || match.Less(*d.Platform, *children[best].Platform) {
			best = i
		}
	}
	if best < 0 && len(children) == 1 && children[0].Platform == nil {
		best = 0 // an index of one image that does not say its platform
	}
	if best < 0 {
		return oci.Descriptor{}, fmt.Errorf("no matching manifest for %s in the manifest list entries: no match for platform in manifest: %w", platforms.Format(p), oci.ErrNotFound)
	}
	return children[best], nil
}

// Manifest reads the manifest that d names in src; where d is an index, the
// one for platform p. It returns the manifest's own descriptor too.
func Manifest(ctx context.Context, src Source, d oci.Descriptor, p oci.Platform) (oci.Descriptor, []byte, error) {
	for range 4 { // an index may name an index; nobody nests them deeper
		body, err := ReadAll(ctx, src, d)
		if err != nil {
			return d, nil, err
		}
		children, err := oci.Children(d.MediaType, body)
		if err != nil {
			return d, nil, err
		}
		if oci.IsManifest(d.MediaType) {
			return d, body, nil
		}
		if !oci.IsIndex(d.MediaType) {
			break
		}
		if d, err = Choose(children, p); err != nil {
			return d, nil, err
		}
	}
	return d, nil, fmt.Errorf("%s has media type %q, which is no image: %w", d.Digest, d.MediaType, oci.ErrUnsupported)
}

// Provides tells whether what d names in src is, or as an index has and holds,
// an image for exactly the platform p. What says of itself no platform is
// for none.
func Provides(ctx context.Context, src Source, d oci.Descriptor, p oci.Platform) (bool, error) {
	_, body, err := Manifest(ctx, src, d, p)
	var conf oci.Image
	if err == nil {
		var m oci.Manifest
		if err = json.Unmarshal(body, &m); err == nil {
			if body, err = ReadAll(ctx, src, m.Config); err == nil {
				_ = json.Unmarshal(body, &conf) // an artifact's config may be anything
			}
		}
	}
	if errors.Is(err, oci.ErrNotFound) {
		return false, nil
	}
	return err == nil && platforms.OnlyStrict(p).Match(conf.Platform), err
}

// ReadAll reads and verifies a manifest, index or config from src.
func ReadAll(ctx context.Context, src Source, d oci.Descriptor) ([]byte, error) {
	r, err := src.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return oci.ReadAll(r, d)
}

// ReadManifest reads the manifest d of one image from src and parses it.
func ReadManifest(ctx context.Context, src Source, d oci.Descriptor) (*oci.Manifest, error) {
	body, err := ReadAll(ctx, src, d)
	if err != nil {
		return nil, err
	}
	return oci.ParseManifest(d, body)
}

// ReadConfig reads the config d of an image from src and parses it.
func ReadConfig(ctx context.Context, src Source, d oci.Descriptor) (*oci.Image, error) {
	body, err := ReadAll(ctx, src, d)
	if err != nil {
		return nil, err
	}
	return oci.ParseConfig(d, body)
}
