package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/archive"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

type loadOptions struct {
	input     string
	quiet     bool
	platforms []string
}

func (a *App) loadCommand(use string) *cobra.Command {
	var o loadOptions
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS]",
		Short: "Read images from a tar archive or an OCI layout (stdin, unless -i says where)",
		Example: `  strake load -i web.tar
  zstdcat all.tar.zst | strake load`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.load(cmd.Context(), &o)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.input, "input", "i", "", "Read this file or directory")
	fs.StringSliceVar(&o.platforms, "platform", nil, "Read only these platforms' images of several (os[/arch[/variant]])")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Print no progress")
	return a.spelled(cmd, "image load", "load")
}

func (a *App) load(ctx context.Context, o *loadOptions) error {
	ps, err := clientPlatforms(o.platforms)
	if err != nil {
		return err
	}
	opt := content.CopyOptions{Platforms: ps, Usable: true}
	if o.input == "" && a.In.IsTerminal() {
		return errors.New("requested load from stdin, but stdin is empty")
	}
	ctx, s, release, err := a.leased(ctx)
	if err != nil {
		return err
	}
	defer release()
	scratch, err := s.Scratch(ctx)
	if err != nil {
		return daemon(err)
	}
	// Docker's words of a bad archive come through its progress and have no
	// "Error response from daemon".
	var src *archive.Archive
	if o.input != "" {
		src, err = archive.Open(ctx, o.input, scratch)
	} else {
		src, err = archive.Read(ctx, a.stdin(ctx), scratch)
	}
	if err != nil {
		return err
	}
	defer src.Close()
	if err := loadable(ctx, src, ps); err != nil {
		return err
	}
	for _, im := range src.Images() {
		// What is printed below the bars of one image is not theirs to redraw.
		printer := term.NewTransferPrinter(a.Err, term.Load)
		if !o.quiet && a.Err.Draws() {
			opt.Progress = printer.Event
		}
		line, err := loadOne(ctx, s, src, im, opt)
		printer.Close()
		if err != nil {
			return err
		}
		fmt.Fprintln(a.Out, line)
	}
	return nil
}

// loadOne loads one image of an archive and returns docker's line about it.
func loadOne(ctx context.Context, s *store.Store, src *archive.Archive, im archive.Image, opt content.CopyOptions) (string, error) {
	if im.Ref != (ref.Ref{}) {
		if _, err := content.Copy(ctx, s, im.Ref, src, im.Ref, opt); err != nil {
			return "", err
		}
		return "Loaded image: " + im.Ref.Familiar(), nil
	}
	// Without a name it is found by its ID. The repository matters nowhere.
	nameless := ref.Ref{Domain: "docker.io", Path: "library/image", Digest: im.Target.Digest}
	got, err := content.Copy(ctx, untagged{s}, nameless, src, nameless, opt)
	if err != nil {
		return "", err
	}
	m, err := manifestOf(ctx, s, got)
	if err != nil {
		return "", err
	}
	return "Loaded image ID: " + string(m.Config.Digest), nil
}

// untagged is the store as a sink for an image without a name.
type untagged struct{ *store.Store }

func (untagged) Tag(context.Context, ref.Ref, oci.Descriptor) error { return nil }
