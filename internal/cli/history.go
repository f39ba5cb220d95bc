package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

type historyOptions struct {
	human, noTrunc, quiet bool
	format, platform      string
}

func (a *App) historyCommand(use string) *cobra.Command {
	var o historyOptions
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS] IMAGE",
		Short: "Show how an image was made, step by step",
		Example: `  strake history web:latest
  strake history --no-trunc --format '{{.Size}} {{.CreatedBy}}' web`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.history(cmd.Context(), args[0], &o)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.BoolVarP(&o.human, "human", "H", true, "Print sizes and dates for people")
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "Don't cut anything short")
	fs.StringVar(&o.platform, "platform", "", "Show this platform's image of several (os[/arch[/variant]])")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Show only image IDs")
	return a.spelled(cmd, "image history", "history")
}

// historyRow is a line of `history`; its fields are the placeholders.
type historyRow struct {
	Comment      string
	CreatedAt    string
	CreatedBy    string
	CreatedSince string
	ID           string
	Size         string
}

func (a *App) history(ctx context.Context, name string, o *historyOptions) error {
	if o.platform != "" {
		if _, err := clientPlatform(o.platform); err != nil {
			return err
		}
	}
	ctx, s, release, err := a.leased(ctx)
	if err != nil {
		return err
	}
	defer release()
	img, err := findImage(ctx, s, name)
	if err != nil {
		return err
	}
	if o.platform != "" {
		if named, ok := nameOf(img, name); ok {
			name = named.Familiar()
		}
		if img, err = ofPlatform(ctx, s, img, name, o.platform); err != nil {
			return daemon(err)
		}
	}
	conf, err := imageConfig(ctx, s, img.Manifest)
	if err != nil {
		return daemon(err)
	}
	sizes, err := layerSizes(ctx, s, conf.RootFS.DiffIDs)
	if err != nil {
		return daemon(err)
	}
	header := term.Header{"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT"}
	format := o.format
	if format == "" || format == "table" {
		switch {
		case o.quiet:
			format = "{{.ID}}"
		case o.human:
			format = "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
		default:
			format = "table {{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
		}
	}
	return printRows(a, "*image.historyContext", format, header, historyRows(img.ID, conf.History, sizes, o))
}

// historyRows lists the steps, the last first. Only the last has an ID: the
// images between exist nowhere.
func historyRows(id oci.Digest, steps []oci.History, sizes []int64, o *historyOptions) []*historyRow {
	rows := make([]*historyRow, len(steps))
	layer := 0
	for i, h := range steps {
		size := int64(0)
		if !h.EmptyLayer && layer < len(sizes) {
			size = sizes[layer]
			layer++
		}
		row := &historyRow{ID: "<missing>", Comment: h.Comment, CreatedBy: strings.ReplaceAll(h.CreatedBy, "\t", " ")}
		var created time.Time
		if h.Created != nil {
			created = *h.Created
		}
		row.CreatedAt = created.Local().Format(time.RFC3339)
		row.CreatedSince, row.Size = row.CreatedAt, strconv.FormatInt(size, 10)
		if o.human {
			row.Size = shortSize(size)
			row.CreatedSince = "N/A"
			if created.Year() >= 2000 { // older is not a time but a fixed date for reproducible builds
				row.CreatedSince = ago(created)
			}
		}
		if i == len(steps)-1 {
			row.ID = shortID(id, o.noTrunc)
		}
		if !o.noTrunc {
			row.CreatedBy = ellipsis(row.CreatedBy, 45)
		}
		rows[len(steps)-1-i] = row
	}
	return rows
}

// layerSizes sums each layer's files, all layers side by side: one whose table
// of contents is not known yet costs a decompression.
func layerSizes(ctx context.Context, s *store.Store, layers []oci.Digest) ([]int64, error) {
	sizes := make([]int64, len(layers))
	g, ctx := errgroup.WithContext(ctx)
	for i, d := range layers {
		g.Go(func() error {
			toc, err := s.TOC(ctx, d)
			if err != nil {
				return err
			}
			sizes[i] = toc.FileBytes()
			return nil
		})
	}
	return sizes, g.Wait()
}

// ellipsis cuts s to n characters, the last of which says that it did.
func ellipsis(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
