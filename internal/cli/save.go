package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/archive"
	"github.com/strake-project/strake/internal/content/bulk"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

type saveOptions struct {
	output    string
	platforms []string
}

func (a *App) saveCommand(use string) *cobra.Command {
	var o saveOptions
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS] IMAGE [IMAGE...]",
		Short: "Write one or more images to a tar archive (stdout, unless -o says where)",
		Example: `  strake save -o web.tar web:latest
  strake save web:latest db:latest | zstd > all.tar.zst`,
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.save(cmd.Context(), args, &o)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.output, "output", "o", "", "Write to this file")
	fs.StringSliceVar(&o.platforms, "platform", nil, "Write only these platforms' images of several (os[/arch[/variant]])")
	return a.spelled(cmd, "image save", "save")
}

func (a *App) save(ctx context.Context, names []string, o *saveOptions) error {
	ps, err := clientPlatforms(o.platforms)
	if err != nil {
		return err
	}
	opt := content.CopyOptions{Platforms: ps}
	if o.output == "" && a.Out.IsTerminal() {
		return errors.New("cowardly refusing to save to a terminal. Use the -o flag or redirect")
	}
	if o.output != "" {
		if err := validOutput(o.output); err != nil {
			return fmt.Errorf("failed to save image: %w", err)
		}
	}
	ctx, s, release, err := a.leased(ctx)
	if err != nil {
		return err
	}
	defer release()
	todo, err := savings(ctx, s, names, ps)
	if err != nil {
		return err
	}
	write := func(w io.Writer) error {
		aw := archive.NewWriter(w)
		for _, im := range todo {
			if _, err := content.Copy(ctx, aw, im.to, s, im.from, opt); err != nil {
				return daemon(err)
			}
		}
		return daemon(aw.Close())
	}
	if o.output == "" {
		return a.toStdout(write)
	}
	return writeFile(o.output, 0o600, write)
}

// saving is one name in the archive.
type saving struct {
	from ref.Ref // by digest: a tag that moves meanwhile does not matter
	to   ref.Ref
}

// savings finds what names name: an image by its tag keeps that tag, a
// repository without a tag is latest, an ID is saved without a name. Each must
// have all of ps.
func savings(ctx context.Context, s *store.Store, names []string, ps []oci.Platform) ([]saving, error) {
	var all []saving
	for _, name := range names {
		img, err := findImage(ctx, s, name)
		if err != nil {
			return nil, err
		}
		// Any repository does: the digest decides.
		im := saving{from: ref.Ref{Domain: "docker.io", Path: "library/image", Digest: img.Target.Digest}}
		if named, ok := nameOf(img, name); ok {
			im.to = named
			im.from = named.WithDigest(img.Target.Digest)
			name = named.Familiar()
		}
		if err := hasPlatforms(ctx, s, img, name, ps); err != nil {
			return nil, daemonf("no suitable export target found: %w", err)
		}
		all = append(all, im)
	}
	return all, nil
}

// validOutput refuses, before any work, what cannot be a file to write.
func validOutput(path string) error {
	dir := filepath.Dir(filepath.Clean(path))
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("invalid output path: %w", err)
	}
	fi, err := os.Stat(path)
	switch {
	case os.IsNotExist(err):
		return nil
	case err != nil:
		return err
	case fi.IsDir():
		return errors.New("cannot write to a directory")
	case fi.Mode()&os.ModeDevice != 0 && fi.Mode()&os.ModeCharDevice == 0:
		return fmt.Errorf("invalid output path: %q must be a regular file", path)
	}
	return nil
}

// toStdout writes to standard output through write, in large pieces.
func (a *App) toStdout(write func(io.Writer) error) error {
	w := bufio.NewWriterSize(a.Out, 1<<20)
	if err := write(w); err != nil {
		return err
	}
	return w.Flush()
}

// writeFile writes path through write: a regular file appears whole or not at
// all, a new one with perm less the umask; a device or a pipe is written to as
// it is.
func writeFile(path string, perm os.FileMode, write func(io.Writer) error) error {
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if err := write(f); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	}
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(perm), renameio.WithExistingPermissions())
	if err != nil {
		return err
	}
	defer f.Cleanup()
	w := bulk.New(f.File)
	err = write(w)
	// Also where write failed: Finish waits for what is still being written.
	if last := w.Finish(); err == nil {
		err = last
	}
	if err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

// manifestOf reads the manifest of d, or of an index's image for this machine
// or, where it has none, of any.
func manifestOf(ctx context.Context, s *store.Store, d oci.Descriptor) (*oci.Manifest, error) {
	d, body, err := content.Manifest(ctx, s, d, content.Host())
	if err != nil {
		return nil, err
	}
	return oci.ParseManifest(d, body)
}
