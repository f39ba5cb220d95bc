package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/image"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
)

// lookOptions say which image a name means to the commands that look into it.
type lookOptions struct {
	platform string
	remote   bool
}

func (o *lookOptions) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&o.platform, "platform", "", "Look at this platform's image (os[/arch[/variant]])")
	fs.BoolVar(&o.remote, "remote", false, "Look at the registry's image, also where there is a local one")
}

// lookLong is what the help of those commands says of images elsewhere.
const lookLong = `

An image that is not local is read from its registry, and no local image is
made of it. For a file only the layers from the top down to where it lies are
fetched, for a directory or a comparison all layers of the platform. They stay
in the store until the next collection of garbage.`

// look finds the image that name means, local or not. Called under a lease.
func (a *App) look(ctx context.Context, s *store.Store, name string, o *lookOptions) (*image.Image, error) {
	if !o.remote {
		img, err := findImage(ctx, s, name)
		if err == nil {
			if o.platform != "" {
				if img, err = ofPlatform(ctx, s, img, name, o.platform); err != nil {
					return nil, daemon(err)
				}
			}
			found, err := image.Load(ctx, s, img.Manifest)
			return found, daemon(err)
		}
		if !isNotFound(err) {
			return nil, err
		}
		if _, perr := ref.ParseImage(name); perr != nil {
			return nil, err // an ID, or nothing at all: no registry knows it
		}
	}
	r, err := ref.ParseImage(name)
	if err != nil {
		return nil, daemon(err)
	}
	p := content.Host()
	if o.platform != "" {
		if p, err = parsePlatform(o.platform); err != nil {
			return nil, err
		}
	}
	found, err := image.Fetch(ctx, s, counted{a.Remote().Repository(r), a.busy}, r, p)
	if err != nil && !o.remote {
		err = fmt.Errorf("%s is not a local image, and not to be had: %w", r.Familiar(), err)
	}
	return found, daemon(err)
}

// looking opens the store and a lease for fn.
func (a *App) looking(ctx context.Context, fn func(ctx context.Context, s *store.Store) error) error {
	ctx, s, release, err := a.leased(ctx)
	if err != nil {
		return err
	}
	defer release()
	return fn(ctx, s)
}

// inImage finds the file that path means in im, as a user of the image would:
// symlinks are followed inside it, the last one if follow is true. What is in a
// directory is there too.
func inImage(ctx context.Context, im *image.Image, name, p string, follow bool) (*layer.Entry, error) {
	e, err := im.Find(ctx, p, follow)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, daemonf("%s: %s: no such file or directory in the image%w", name, p, oci.Unsaid(oci.ErrNotFound))
	case err != nil:
		return nil, daemonf("%s: %w", name, err)
	case e.Type == layer.Dir:
		return e, daemon(im.Complete(ctx))
	}
	return e, nil
}

func (a *App) imageCatCommand() *cobra.Command {
	var o lookOptions
	cmd := &cobra.Command{
		Use:   "cat [OPTIONS] IMAGE PATH [PATH...]",
		Short: "Print files of an image",
		Long: `Print files of an image. Symlinks are followed inside the image. Nothing is
unpacked: a layer is decompressed up to the file.` + lookLong,
		Example: `  strake image cat debian:12 /etc/os-release
  strake image cat ghcr.io/team/web:2 /etc/passwd /etc/group`,
		Args: minArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.looking(cmd.Context(), func(ctx context.Context, s *store.Store) error {
				im, err := a.look(ctx, s, args[0], &o)
				if err != nil {
					return err
				}
				var errs []error
				for _, p := range args[1:] {
					errs = append(errs, a.catFile(ctx, im, args[0], p))
				}
				return errors.Join(errs...)
			})
		},
	}
	o.register(cmd)
	return cmd
}

func (a *App) catFile(ctx context.Context, im *image.Image, name, p string) error {
	e, err := inImage(ctx, im, name, p, true)
	if err != nil {
		return err
	}
	switch e.Type {
	case layer.Regular:
	case layer.Dir:
		return daemonf("%s: %s is a directory", name, p)
	default:
		return daemonf("%s: %s is not a regular file", name, p)
	}
	r, err := im.Tree.Open(ctx, e.Path)
	if err != nil {
		return daemon(err)
	}
	defer r.Close()
	if _, err = io.Copy(a.Out, r); err != nil {
		return daemonf("%s: %s: %w", name, p, err)
	}
	return nil
}

// splitImagePath parts IMAGE:PATH. The path is absolute: a name may hold colons,
// but none before a slash.
func splitImagePath(s string) (name, p string, err error) {
	name, p, ok := strings.Cut(s, ":/")
	if !ok || name == "" {
		return "", "", fmt.Errorf("%q is not IMAGE:/PATH: the image, a colon and an absolute path in it", s)
	}
	return name, "/" + p, nil
}

// baseOf is the name that a copy of p gets: "." for the root and for a
// directory whose content alone is meant.
func baseOf(p string) string {
	if strings.HasSuffix(p, "/.") || path.Clean(p) == "/" {
		return "."
	}
	return path.Base(path.Clean(p))
}
