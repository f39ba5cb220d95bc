package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/containerd/platforms"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// treeRow is an image of `images --tree`, or one of its platforms.
type treeRow struct {
	names    []string // the last stands on the line of the figures
	id       string
	disk     int64 // what it takes, shared or not, packed or unpacked
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
	disk, err := s.Disk(ctx)
	if err != nil {
		return daemon(err)
	}
	var rows []*treeRow
	for i := range images {
		more, err := treeRows(ctx, s, disk, &images[i], used)
		if err != nil {
			return daemon(err)
		}
		rows = append(rows, more...)
	}
	return a.printTree(rows)
}

// treeRows are the trees of one image: one for each thing that its names point
// at, which are several where two indexes have the same image.
func treeRows(ctx context.Context, s *store.Store, disk *store.Disk, img *store.Image, used map[oci.Digest]int) ([]*treeRow, error) {
	targets := []oci.Descriptor{img.Target}
	names := map[oci.Digest][]string{}
	for _, n := range img.Names {
		d, err := s.Resolve(ctx, n)
		if isNotFound(err) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if names[d.Digest] == nil && d.Digest != img.Target.Digest {
			targets = append(targets, d)
		}
		names[d.Digest] = append(names[d.Digest], n.Familiar())
	}
	var rows []*treeRow
	for _, target := range targets {
		if names[target.Digest] == nil && len(img.Names) > 0 {
			continue // a filter left out its names
		}
		one := *img
		one.Target = target
		row, err := treeOf(ctx, s, disk, &one, used)
		if err != nil {
			return nil, err
		}
		if row.names = names[target.Digest]; row.names == nil {
			row.names = []string{"<untagged>"}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// treeOf is what img's Target shows: its platforms' images, of which it is the
// sum.
func treeOf(ctx context.Context, s *store.Store, disk *store.Disk, img *store.Image, used map[oci.Digest]int) (*treeRow, error) {
	top := &treeRow{id: shortID(img.ID, false)}
	parts := []platformImage{{platforms.Format(platforms.Normalize(img.Platform)), img.Manifest, true}}
	if oci.IsIndex(img.Target.MediaType) {
		parts, top.id = platformImages(ctx, s, img), shortID(img.Target.Digest, false)
	}
	for _, p := range parts {
		row := &treeRow{names: []string{p.name}, id: shortID(p.d.Digest, false)}
		top.children = append(top.children, row)
		if !p.there {
			continue
		}
		size, id, err := packedSize(ctx, s, p.d)
		if err != nil && !isNotFound(err) {
			return nil, err
		}
		row.packed, row.used = size, used[id] > 0
		reach := map[oci.Digest]bool{}
		disk.Reach(reach, p.d.Digest)
		row.disk = disk.Sum(reach)
		top.packed, top.used = top.packed+row.packed, top.used || row.used
	}
	reach := map[oci.Digest]bool{}
	disk.Reach(reach, img.Target.Digest)
	top.disk = disk.Sum(reach)
	return top, nil
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
	line := func(branch string, r *treeRow) {
		last := len(r.names) - 1
		for _, name := range r.names[:last] {
			fmt.Fprintf(w, "%s%s\t\t\t\t\n", branch, name)
		}
		use := ""
		if r.used {
			use = "U"
		}
		fmt.Fprintf(w, "%s%s\t%s\t%10s\t%12s\t%s\n", branch, r.names[last], r.id, shortSize(r.disk), shortSize(r.packed), use)
	}
	fmt.Fprintf(w, "IMAGE\tID\t%10s\t%12s\tEXTRA\n", "DISK USAGE", "CONTENT SIZE")
	for i, r := range rows {
		if i > 0 {
			fmt.Fprint(w, "\t\t\t\t\n") // an empty line, but the columns go on
		}
		line("", r)
		for i, c := range r.children {
			branch := "├─ "
			if i == len(r.children)-1 {
				branch = "└─ "
			}
			line(branch, c)
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
