package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/platforms"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// rmiPlatforms reads rmi's --platform. Docker's client does, so that what does
// not parse is not its daemon's error.
func rmiPlatforms(given []string) ([]oci.Platform, error) {
	var all []oci.Platform
	for _, s := range given {
		p, err := platforms.Parse(s)
		if err != nil {
			return nil, err
		}
		all = append(all, platforms.Normalize(p))
	}
	return all, nil
}

// removePlatforms takes the images of some platforms out of an index. Where
// nothing would be left of it, as of an image that is for one platform, it
// does nothing and returns true: the whole image is to go.
func (r *remover) removePlatforms(ctx context.Context, img *store.Image, name string) (whole bool, err error) {
	var parts []oci.Digest
	for _, p := range r.platforms {
		d, err := partOf(ctx, r.s, img, name, p)
		if err != nil {
			return false, daemon(fmt.Errorf("failed to delete platform %s for image %s: %w", platforms.Format(p), img.ID, err))
		}
		if !slices.Contains(parts, d) {
			parts = append(parts, d)
		}
	}
	left := slices.ContainsFunc(platformImages(ctx, r.s, img), func(p platformImage) bool {
		return p.there && !slices.Contains(parts, p.d.Digest)
	})
	if !left {
		return true, nil
	}
	if !r.force {
		return false, daemonf("Content will be removed from all images referencing this variant. Use --force to force delete.")
	}
	freed, err := r.s.Remove(ctx, store.Removal{Parts: parts, Now: r.now})
	if err != nil {
		return false, daemon(err)
	}
	for _, d := range slices.Concat(parts, freed.Layers) {
		r.lines = append(r.lines, "Deleted: "+string(d))
	}
	return false, nil
}

// partOf is the manifest of img for platform p.
func partOf(ctx context.Context, s *store.Store, img *store.Image, name string, p oci.Platform) (oci.Digest, error) {
	one, err := ofPlatform(ctx, s, img, name, platforms.Format(p))
	if err != nil {
		return "", innerFailure(err)
	}
	return one.Manifest.Digest, nil
}
