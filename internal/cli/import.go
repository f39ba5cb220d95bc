package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/image"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
)

type importOptions struct {
	source, name      string
	changes           []string
	message, platform string
}

func (a *App) importCommand(use string) *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
		Short: "Make an image of a root file system's tar archive",
		Example: `  strake import rootfs.tar.gz base:1
  mmdebstrap --variant=minbase bookworm - | strake import -c 'CMD ["bash"]' - debian:12`,
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.source = args[0]
			if len(args) > 1 {
				o.name = args[1]
			}
			return a.importImage(cmd.Context(), &o)
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&o.changes, "change", "c", nil, "Apply a Dockerfile instruction to the image's config")
	fs.StringVarP(&o.message, "message", "m", "", "Comment on the image")
	fs.StringVar(&o.platform, "platform", "", "The image is for this platform (os[/arch[/variant]])")
	return a.spelled(cmd, "image import", "import")
}

func (a *App) importImage(ctx context.Context, o *importOptions) error {
	conf, err := importConfig(o)
	if err != nil {
		return err
	}
	var name ref.Ref
	if o.name != "" {
		if name, err = ref.Parse(o.name); err == nil && name.Digest != "" {
			return daemonf("cannot import digest reference")
		}
		if name, err = ref.ParseTag(o.name); err != nil {
			return err
		}
	}
	in, err := a.openImport(ctx, o.source)
	if err != nil {
		return err
	}
	defer in.Close()
	plain, _, err := layer.Decompress(in)
	if err != nil {
		return badTar(err)
	}
	defer plain.Close()
	ctx, s, release, err := a.leased(ctx)
	if err != nil {
		return err
	}
	defer release()
	toc, err := s.TakeTar(ctx, plain)
	if err != nil {
		return badTar(err)
	}
	conf.RootFS.Type, conf.RootFS.DiffIDs = "layers", []oci.Digest{toc.DiffID}
	made, err := image.Put(ctx, s, conf, []oci.Descriptor{{MediaType: oci.MediaTypeLayer, Digest: toc.DiffID, Size: toc.Size}})
	if err != nil {
		return daemon(err)
	}
	if o.name != "" {
		if err := s.Tag(ctx, name, made.Manifest); err != nil {
			return daemon(err)
		}
	}
	fmt.Fprintln(a.Out, made.ID)
	return nil
}

// badTar is docker's error for an archive that is none; any other stays.
func badTar(err error) error {
	if errors.Is(err, oci.ErrInvalid) || errors.Is(err, io.ErrUnexpectedEOF) {
		// Docker says no more of what is no tar at all.
		text := strings.TrimPrefix(err.Error(), "layer tar after 0 entries: ")
		return daemonf("Error processing tar file(exit status 1): %w", &renamed{err, text})
	}
	return daemon(err)
}

// importConfig is the config of an image of one layer that was imported now.
func importConfig(o *importOptions) (*oci.Image, error) {
	now := time.Now().UTC()
	conf := &oci.Image{}
	conf.Created = &now
	conf.Platform = content.Host()
	if o.platform != "" {
		p, err := parsePlatform(o.platform)
		if err != nil {
			return nil, err
		}
		conf.Platform = p
	}
	if err := applyChanges(conf, o.changes); err != nil {
		return nil, daemon(err)
	}
	comment := o.message
	if comment == "" {
		comment = "Imported from " + withoutPassword(o.source) // an image travels
		if !isURL(o.source) {
			comment = "Imported from -"
		}
	}
	conf.History = []oci.History{{Created: &now, Comment: comment}}
	return conf, nil
}

func isURL(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// openImport opens what is to be imported: stdin, a URL or a file.
func (a *App) openImport(ctx context.Context, source string) (io.ReadCloser, error) {
	switch {
	case source == "-":
		return io.NopCloser(a.stdin(ctx)), nil
	case !isURL(source):
		return os.Open(source)
	}
	resp, err := a.Remote().Fetch(ctx, source)
	if err != nil {
		return nil, daemon(err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // as far as it comes
		return nil, daemonf("failed to GET %s with status %s: %s", withoutPassword(source), resp.Status, printable(string(said)))
	}
	return resp.Body, nil
}
