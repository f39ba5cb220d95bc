package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/platforms"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/archive"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// clientPlatform reads a --platform that docker's client checks itself.
func clientPlatform(s string) (oci.Platform, error) {
	p, err := platforms.Parse(s)
	if err != nil {
		return p, fmt.Errorf("invalid platform: %w", err)
	}
	return platforms.Normalize(p), nil
}

// clientPlatforms reads a --platform that may be given several times.
func clientPlatforms(all []string) ([]oci.Platform, error) {
	var ps []oci.Platform
	for _, s := range all {
		p, err := clientPlatform(s)
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// hasPlatforms refuses an image that lacks one of ps, which name shows it to
// have been asked for.
func hasPlatforms(ctx context.Context, s *store.Store, img *store.Image, name string, ps []oci.Platform) error {
	for _, p := range ps {
		ok, err := content.Provides(ctx, s, img.Target, p)
		if err != nil {
			return daemon(err)
		}
		if !ok {
			return &noPlatform{name: name, wanted: platforms.Format(p), present: presentPlatforms(ctx, s, img)}
		}
	}
	return nil
}

// loadable refuses an archive of which an image lacks one of ps. Docker loads
// it all the same and says so afterwards; here nothing is loaded.
func loadable(ctx context.Context, src *archive.Archive, ps []oci.Platform) error {
	for _, p := range ps {
		var lack []string
		for _, im := range src.Images() {
			ok, err := content.Provides(ctx, src, im.Target, p)
			if err != nil {
				return err
			}
			if ok {
				continue
			}
			name := string(im.Target.Digest)
			if im.Ref.Path != "" {
				name = im.Ref.Familiar()
			}
			lack = append(lack, name)
		}
		switch {
		case len(lack) == 1:
			return fmt.Errorf("image %s doesn't provide the requested platform (%s)", lack[0], platforms.Format(p))
		case len(lack) > 1:
			return fmt.Errorf("images [%s] don't provide the requested platform (%s)", strings.Join(lack, ", "), platforms.Format(p))
		}
	}
	return nil
}
