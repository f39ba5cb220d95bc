package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

func (a *App) tagCommand(use string) *cobra.Command {
	return a.spelled(&cobra.Command{
		Use:     use + " SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
		Short:   "Give an image another name",
		Example: "  strake tag web:latest registry.example.com/team/web:1.4",
		Args:    exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.tag(cmd.Context(), args[0], args[1])
		},
	}, "image tag", "tag")
}

func badName(name string, err error) error {
	return fmt.Errorf("Error parsing reference: %q is not a valid repository/tag: %w", name, err)
}

func (a *App) tag(ctx context.Context, source, target string) error {
	to, err := ref.ParseTag(target)
	if errors.Is(err, ref.ErrAmbiguousAlgorithm) {
		return daemon(err)
	}
	if err != nil {
		if r, whole := ref.Parse(target); whole == nil && r.Digest != "" {
			return err // docker says of a digest only that
		}
		return badName(target, err)
	}
	if _, err := ref.ParseImage(source); err != nil && oci.Digest("sha256:"+source).Validate() != nil {
		return badName(source, err)
	}
	ctx, s, release, err := a.leased(ctx)
	if err != nil {
		return err
	}
	defer release()
	img, err := findImage(ctx, s, source)
	if err != nil {
		return err
	}
	return daemon(s.Tag(ctx, to, img.Target))
}
