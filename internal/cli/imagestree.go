package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// treeRow is a line of `images --tree`: an image, or one of its platforms.
type treeRow struct {
	name, id string
	unpacked int64 // sum of the files' sizes
	packed   int64 // what its blobs take
	used     bool
	children []*treeRow
}

// imagesTree prints docker's tree: each image with the images of its index
// below it. What is not here has no size.
func (a *App) imagesTree(ctx context.Context, s *store.Store, images []store.Image, o *imagesOptions) error {
	for _, f := range []struct {
		flag  string
		given bool
	}{{"--quiet", o.quiet}, {"--no-trunc", o.noTrunc}, {"--show-digest", o.digests}, {"--format", o.format != ""}} {
		if f.given {
			return errors.New(f.flag + " is not yet supported with --tree")
		}
	}
	ctx, release, err := s.Lease(ctx)
	if err != nil {
		return daemon(err)
	}
	defer release()
	used, err := usedImages(ctx, s)
	if err != nil {
		return err
	}
	var rows []*treeRow
	for i := range images {
		more, err := treeRows(ctx, s, &images[i], used)
		if err != nil {
			return daemon(err)
		}
		rows = append(rows, more...)
	}
	return a.printTree(rows)
}

// treeRows are the lines of one image: one for each of its names, the platforms
// below the last.
func treeRows(ctx context.Context, s *store.Store, img *store.Image, used map[oci.Digest]int) ([]*treeRow, error) {
	top := &treeRow{id: shortID(img.ID, false), used: used[img.ID] > 0}
	parts := platformImages(ctx, s, img)
	if parts == nil {
		size, _, err := packedSize(ctx, s, img.Manifest)
		if err != nil && !isNotFound(err) {
			return nil, err
		}
		top.packed, top.unpacked = size, img.Size
	} else {
		top.id = shortID(img.Target.Digest, false)
	}
	for _, p := range parts {
		row := &treeRow{name: p.name, id: shortID(p.d.Digest, false)}
		top.children = append(top.children, row)
		if !p.there {
			continue
		}
		size, id, err := packedSize(ctx, s, p.d)
		if err != nil && !isNotFound(err) {
			return nil, err
		}
		row.packed, row.used = size, used[id] > 0
		if one, err := s.Find(ctx, string(id)); err == nil {
			row.unpacked = one.Size
		}
		top.packed, top.unpacked, top.used = top.packed+row.packed, top.unpacked+row.unpacked, top.used || row.used
	}
	names := make([]string, 0, len(img.Names))
	for _, n := range img.Names {
		names = append(names, n.Familiar())
	}
	if len(names) == 0 {
		names = []string{"<untagged>"}
	}
	var rows []*treeRow
	for i, name := range names {
		row := *top
		row.name = name
		if i < len(names)-1 {
			row.children = nil
		}
		rows = append(rows, &row)
	}
	return rows, nil
}

// packedSize is the length of a manifest's blobs, and its image's ID.
func packedSize(ctx context.Context, s *store.Store, d oci.Descriptor) (int64, oci.Digest, error) {
	m, err := content.ReadManifest(ctx, s, d)
	if err != nil {
		return 0, "", err
	}
	size := d.Size + m.Config.Size
	for _, l := range m.Layers {
		size += l.Size
	}
	return size, m.Config.Digest, nil
}

func (a *App) printTree(rows []*treeRow) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 1, 3, ' ', 0)
	line := func(name string, r *treeRow) {
		use := ""
		if r.used {
			use = "U"
		}
		fmt.Fprintf(w, "%s\t%s\t%10s\t%12s\t%s\n", name, r.id, treeSize(r.packed+r.unpacked), treeSize(r.packed), use)
	}
	fmt.Fprintf(w, "IMAGE\tID\t%10s\t%12s\tEXTRA\n", "DISK USAGE", "CONTENT SIZE")
	for _, r := range rows {
		line(r.name, r)
		for i, c := range r.children {
			branch := "├─ "
			if i == len(r.children)-1 {
				branch = "└─ "
			}
			line(branch+c.name, c)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for l := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(a.Out, strings.TrimRight(l, " \n")); err != nil {
			return err
		}
	}
	return nil
}

func treeSize(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }
