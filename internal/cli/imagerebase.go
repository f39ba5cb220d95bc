package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/image"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

func (a *App) imageRebaseCommand() *cobra.Command {
	var o makeOptions
	var onto, from string
	cmd := &cobra.Command{
		Use:   "rebase [OPTIONS] IMAGE --onto NEWBASE -t NEW",
		Short: "Put an image's own layers on top of a newer base, without a build",
		Long: `Make an image that has IMAGE's own layers on top of NEWBASE instead of its old
base. What NEWBASE's config changed against the old base's, the new image has
too, unless IMAGE changed it itself. The old base is what --from names, else
what IMAGE's annotation ` + image.AnnotationBaseName + ` or
.digest names, else the local image of NEWBASE's repository on which it lies.
All of them are local images. It is refused where IMAGE does not lie on the old
base, and where one of its directories is none in NEWBASE.`,
		Example: `  strake image rebase web:1 --onto debian:12 -t web:1
  strake image rebase web:1 --from debian:12.1 --onto debian:12.2 -t web:1-rebased`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if onto == "" {
				return errors.New("name the new base with --onto")
			}
			return a.makeImage(cmd.Context(), args[0], &o, image.Load, func(ctx context.Context, s *store.Store, im *image.Image) (*image.Made, error) {
				return rebase(ctx, s, im, from, onto)
			})
		},
	}
	cmd.Flags().StringVar(&onto, "onto", "", "The new base")
	cmd.Flags().StringVar(&from, "from", "", "The old base")
	o.register(cmd.Flags())
	return cmd
}

func rebase(ctx context.Context, s *store.Store, im *image.Image, from, onto string) (*image.Made, error) {
	newImage, err := findImage(ctx, s, onto)
	if err != nil {
		return nil, err
	}
	platform := platforms.Format(im.Config.Platform)
	if newImage.Target.Digest != newImage.Manifest.Digest {
		if newImage, err = ofPlatform(ctx, s, newImage, onto, platform); err != nil {
			return nil, err
		}
	}
	oldImage, err := oldBase(ctx, s, im, from, onto, newImage)
	if err != nil {
		return nil, err
	}
	old, err := image.Load(ctx, s, oldImage.Manifest)
	if err != nil {
		return nil, err
	}
	base, err := image.Load(ctx, s, newImage.Manifest)
	if err != nil {
		return nil, err
	}
	name := onto
	if r, err := ref.ParseImage(onto); err == nil {
		name = r.String()
	}
	return image.Rebase(ctx, s, im, old, base, name)
}

// oldBase finds what im lies on.
func oldBase(ctx context.Context, s *store.Store, im *image.Image, from, onto string, newImage *store.Image) (*store.Image, error) {
	lies := func(img *store.Image) bool {
		n := len(img.Layers)
		ids := im.Config.RootFS.DiffIDs
		return n > 0 && n <= len(ids) && slices.Equal(img.Layers, ids[:n])
	}
	if from != "" {
		img, err := findImage(ctx, s, from)
		if err == nil && !lies(img) {
			err = fmt.Errorf("--from %s: the image does not lie on top of it: %w", from, oci.ErrInvalid)
		}
		return img, err
	}
	notes := im.Annotations()
	for _, name := range []string{notes[image.AnnotationBaseDigest], notes[image.AnnotationBaseName]} {
		if img, err := s.Find(ctx, name); name != "" && err == nil && lies(img) {
			return img, nil
		}
	}
	all, err := s.Images(ctx)
	if err != nil {
		return nil, err
	}
	want, _ := ref.ParseImage(onto) // an ID has no repository
	var best *store.Image
	for i := range all {
		img := &all[i]
		inRepo := func(r ref.Ref) bool { return r.Repository() == want.Repository() }
		named := slices.ContainsFunc(img.Names, inRepo) || slices.ContainsFunc(img.Digests, inRepo) || len(img.Names)+len(img.Digests) == 0
		if named && lies(img) && img.Manifest.Digest != im.Manifest.Digest && (best == nil || len(img.Layers) > len(best.Layers)) {
			best = img
		}
	}
	if best == nil {
		return nil, fmt.Errorf("on which base the image lies is not known here: name it with --from%w", oci.Unsaid(oci.ErrNotFound))
	}
	return best, nil
}
