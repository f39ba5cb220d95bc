package cache

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// maxManifests bounds the images of an index whose configs are looked into.
const maxManifests = 32

// Part is one document of an import: a cache has one, an index of images with
// an inline cache one for each platform.
type Part struct {
	*Document
	// Blobs are the layers that Document's indexes mean.
	Blobs []oci.Descriptor
}

// Import reads the cache that r names in src: the records only, no layer. It
// returns the media type of what it found too. An image without a cache in it
// has no parts. What is no cache, or not a sound one, is an error.
func Import(ctx context.Context, src content.Source, r ref.Ref) ([]Part, string, error) {
	top, err := src.Resolve(ctx, r)
	if err != nil {
		return nil, "", err
	}
	body, err := content.ReadAll(ctx, src, top)
	if err != nil {
		return nil, "", err
	}
	children, err := oci.Children(top.MediaType, body)
	if err != nil {
		return nil, "", err
	}
	if !oci.IsIndex(top.MediaType) {
		p, err := readPart(ctx, src, body)
		if p == nil || err != nil {
			return nil, top.MediaType, err
		}
		return []Part{*p}, top.MediaType, nil
	}
	if len(children) > maxManifests {
		children = children[:maxManifests]
	}
	var parts []Part
	for _, c := range children {
		if !oci.IsManifest(c.MediaType) {
			if len(children) < maxManifests && c.MediaType == buildkitConfig {
				return nil, "", errBuildKit
			}
			continue
		}
		if c.Platform != nil && c.Platform.OS == "unknown" {
			continue // an attestation
		}
		body, err := content.ReadAll(ctx, src, c)
		if err != nil {
			return nil, "", err
		}
		p, err := readPart(ctx, src, body)
		if err != nil {
			return nil, "", err
		}
		if p != nil {
			parts = append(parts, *p)
		}
	}
	return parts, top.MediaType, nil
}

// buildkitConfig is the document of BuildKit's cache, whose keys say nothing to
// this engine.
const buildkitConfig = "application/vnd.buildkit.cacheconfig.v0"

var errBuildKit = fmt.Errorf("this is BuildKit's own cache, whose keys strake cannot use: %w; write one with --cache-to", oci.ErrUnsupported)

// readPart reads the document of one manifest, or nil if it has none.
func readPart(ctx context.Context, src content.Source, manifest []byte) (*Part, error) {
	var m oci.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("cache manifest: %v: %w", err, oci.ErrInvalid)
	}
	switch m.Config.MediaType {
	case MediaType, oci.MediaTypeConfig, oci.MediaTypeDockerConfig:
	case buildkitConfig:
		return nil, errBuildKit
	default:
		return nil, fmt.Errorf("config of media type %q is no build cache: %w", m.Config.MediaType, oci.ErrUnsupported)
	}
	config, err := content.ReadAll(ctx, src, m.Config)
	if err != nil {
		return nil, err
	}
	if m.Config.MediaType == MediaType {
		d, err := decode(config, m.Layers)
		if err != nil {
			return nil, err
		}
		return &Part{d, m.Layers}, nil
	}
	return readInline(config, m.Layers)
}

// readInline reads the document in an image's config. Its layers are the
// image's, in their order.
func readInline(config []byte, blobs []oci.Descriptor) (*Part, error) {
	var image struct {
		Cache  *Document `json:"strake.buildcache.v1"` // InlineField
		RootFS struct {
			DiffIDs []oci.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &image); err != nil {
		return nil, fmt.Errorf("image config: %v: %w", err, oci.ErrInvalid)
	}
	d := image.Cache
	if d == nil {
		return nil, nil
	}
	ids := image.RootFS.DiffIDs
	if d.Version != version || len(d.Layers) != len(ids) || len(ids) != len(blobs) {
		return nil, fmt.Errorf("inline build cache of version %d with %d layers of %d: %w", d.Version, len(d.Layers), len(ids), oci.ErrInvalid)
	}
	for i := range d.Layers {
		l := &d.Layers[i]
		l.DiffID, l.Blob = ids[i], i
		if l.Size == 0 {
			l.Base = &blobs[i]
		}
	}
	d.Mounts = nil // an image has none
	return &Part{d, blobs}, d.check(blobs)
}
