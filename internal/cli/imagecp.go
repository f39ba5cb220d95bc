package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/image"
	"github.com/strake-project/strake/internal/oci/layer"
)

type imageCopyOptions struct {
	lookOptions
	follow, archive bool
}

func (a *App) imageCopyCommand() *cobra.Command {
	var o imageCopyOptions
	cmd := &cobra.Command{
		Use:   "cp [OPTIONS] IMAGE:/PATH DEST|-",
		Short: "Copy files out of an image",
		Long: `Copy a file or a directory out of an image, to DEST as "docker cp" does, or to
stdout as a tar archive. The files belong to you and lose setuid bits, unless
-a is given. Devices and pipes are left out. Links never lead outside DEST.` + lookLong,
		Example: `  strake image cp nginx:/etc/nginx ./conf
  strake image cp registry.example.com/team/web:1.4:/app/dist/. ./dist
  strake image cp debian:12:/ - | tar -t`,
		Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.imageCopy(cmd.Context(), args[0], args[1], &o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.archive, "archive", "a", false, "Keep owners and setuid bits")
	fs.BoolVarP(&o.follow, "follow-link", "L", false, "Follow a symlink that PATH itself is")
	o.register(cmd)
	return cmd
}

func (a *App) imageCopy(ctx context.Context, source, dest string, o *imageCopyOptions) error {
	name, p, err := splitImagePath(source)
	if err != nil {
		return err
	}
	if dest == "-" && a.Out.IsTerminal() {
		return errors.New("cowardly refusing to write a tar archive to a terminal. Name a DEST or redirect")
	}
	return a.looking(ctx, func(ctx context.Context, s *store.Store) error {
		im, err := a.look(ctx, s, name, &o.lookOptions)
		if err != nil {
			return err
		}
		// A slash at the end means the directory, so what it links to.
		e, err := inImage(ctx, im, name, p, o.follow || strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/."))
		if err != nil {
			return err
		}
		if e.Type != layer.Dir && baseOf(p) == "." || e.Type != layer.Dir && strings.HasSuffix(p, "/") {
			return daemonf("%s: %s is not a directory", name, p)
		}
		view := im.Tree
		if e.Type == layer.Dir {
			view = im.Many()
		}
		if dest == "-" {
			return daemon(image.WriteTar(ctx, a.Out, view, e.Path, baseOf(p)))
		}
		dir, as, err := destination(dest, baseOf(p), e.Type == layer.Dir)
		if err != nil {
			return err
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		skipped, err := image.Extract(ctx, root, view, e.Path, as, o.archive)
		if err != nil {
			return daemonf("%s: %w", name, err)
		}
		for _, f := range skipped {
			fmt.Fprintf(a.Err, "%s: left out %s, which is no file, directory or link\n", a.name, safeName(f))
		}
		return nil
	})
}

// destination says where a copy goes: the directory, and its name in it, "."
// for the directory itself.
func destination(dest, base string, isDir bool) (dir, as string, err error) {
	fi, err := os.Stat(dest)
	switch {
	case err == nil && fi.IsDir():
		return dest, base, nil
	case err == nil && isDir:
		return "", "", fmt.Errorf("cannot copy a directory to the file %s", dest)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return "", "", err
	case err != nil && strings.HasSuffix(dest, "/") && !isDir:
		return "", "", fmt.Errorf("%s: destination directory must exist", dest)
	}
	clean := filepath.Clean(dest)
	return filepath.Dir(clean), filepath.Base(clean), nil
}
