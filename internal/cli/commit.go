package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/image"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

type commitOptions struct {
	author, message string
	changes         []string
	noPause, pause  bool
}

func (a *App) commitCommand(use string) *cobra.Command {
	var o commitOptions
	cmd := &cobra.Command{
		Use:     use + " [OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
		Short:   "Make an image of what a container changed",
		Example: `  strake commit -m 'with vim' -c 'CMD ["vim"]' box debian:vim`,
		Args:    rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.commit(cmd.Context(), append(args, "")[:2], &o)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.author, "author", "a", "", "Who made it")
	fs.StringArrayVarP(&o.changes, "change", "c", nil, "Apply a Dockerfile instruction to the image's config")
	fs.StringVarP(&o.message, "message", "m", "", "Comment on the image")
	fs.BoolVar(&o.noPause, "no-pause", false, "Take a running container's files as they are")
	fs.BoolVarP(&o.pause, "pause", "p", true, "")
	fs.Lookup("pause").Hidden = true
	return a.spelled(cmd, "container commit", "commit")
}

func (a *App) commit(ctx context.Context, args []string, o *commitOptions) error {
	var name ref.Ref
	if args[1] != "" {
		var err error
		if name, err = ref.ParseTag(args[1]); err != nil {
			return err
		}
	}
	s, err := a.Store()
	if err != nil {
		return err
	}
	if args[0] == "" {
		return errEmptyName
	}
	set := container.In(s)
	c, err := set.Find(ctx, args[0])
	if err != nil {
		return daemon(err)
	}
	if c.State == container.Running && o.pause && !o.noPause {
		return daemonf("container %s is running and cannot be paused: wait for its end, or take its files as they are with --no-pause", args[0])
	}
	ctx, release, err := s.Lease(ctx)
	if err != nil {
		return daemon(err)
	}
	defer release()
	img, err := s.Find(ctx, string(c.ImageID))
	if err != nil {
		return daemon(err)
	}
	m, err := content.ReadManifest(ctx, s, img.Manifest)
	if err != nil {
		return daemon(err)
	}
	conf, err := content.ReadConfig(ctx, s, m.Config)
	if err != nil {
		return daemon(err)
	}
	conf = c.Configured(conf)
	if err := applyChanges(conf, o.changes); err != nil {
		return daemon(err)
	}
	toc, err := set.Commit(ctx, c)
	if err != nil {
		return daemon(err)
	}
	now := time.Now().UTC()
	conf.Created, conf.Author = &now, o.author
	conf.History = append(conf.History, oci.History{Created: &now, CreatedBy: strings.Join(c.Command, " "), Author: o.author, Comment: o.message, EmptyLayer: toc == nil})
	layers := slices.Clone(m.Layers)
	if toc != nil {
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, toc.DiffID)
		layers = append(layers, oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: toc.DiffID, Size: toc.Size})
	}
	made, err := image.Put(ctx, s, conf, layers)
	if err != nil {
		return daemon(err)
	}
	if args[1] != "" {
		if err := s.Tag(ctx, name, made.Manifest); err != nil {
			return daemon(err)
		}
	}
	fmt.Fprintln(a.Out, made.ID)
	return nil
}

func (a *App) exportCommand(use string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     use + " [OPTIONS] CONTAINER",
		Short:   "Write a container's file system as a tar archive",
		Example: "  strake export -o box.tar box",
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.export(cmd.Context(), args[0], output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return a.spelled(cmd, "container export", "export")
}

func (a *App) export(ctx context.Context, name, output string) error {
	if output == "" && a.Out.IsTerminal() {
		return errors.New("cowardly refusing to save to a terminal. Use the -o flag or redirect")
	}
	if output != "" {
		if err := validOutput(output); err != nil {
			return fmt.Errorf("failed to export container: %w", err)
		}
	}
	s, err := a.Store()
	if err != nil {
		return err
	}
	if name == "" {
		return errEmptyName
	}
	c, err := container.In(s).Find(ctx, name)
	if err != nil {
		return daemon(err)
	}
	write := func(w io.Writer) error { return daemon(container.In(s).Export(ctx, c, w)) }
	if output == "" {
		return a.toStdout(write)
	}
	return writeFile(output, 0o600, write)
}

func (a *App) diffCommand(use string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     use + " CONTAINER",
		Short:   "List what a container changed in its file system",
		Example: "  strake diff box",
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return errors.New("Container name cannot be empty")
			}
			s, err := a.Store()
			if err != nil {
				return err
			}
			c, err := container.In(s).Find(cmd.Context(), args[0])
			if err != nil {
				return daemon(err)
			}
			list, err := container.In(s).Diff(cmd.Context(), c)
			if err != nil {
				return daemon(err)
			}
			for _, d := range list {
				fmt.Fprintf(a.Out, "%c /%s\n", d.Kind, d.Path)
			}
			return nil
		},
	}
	return a.spelled(cmd, "container diff", "diff")
}
