package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

func (a *App) systemCommand() *cobra.Command {
	return a.group("system", "Manage the store", a.systemDfCommand(), a.infoCommand(), a.systemPruneCommand(), a.systemReclaimCommand())
}

func (a *App) systemDfCommand() *cobra.Command {
	var verbose bool
	var format string
	cmd := &cobra.Command{
		Use:   "df [OPTIONS]",
		Short: "Show disk usage: true bytes, what is shared counted once",
		Example: `  strake system df
  strake system df -v`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := a.usage(cmd.Context())
			switch {
			case err != nil:
				return err
			case verbose && format != "" && format != "table":
				return a.formatUsage(u, format)
			case verbose:
				return a.printUsage(u)
			}
			return a.printSummary(u, format)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", formatHelp)
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show each image, container and cache record")
	return cmd
}

// diskUsage is what the store holds, with true disk bytes.
type diskUsage struct {
	disk       *store.Disk
	images     []store.Image
	containers []*container.Container
	cache      []build.CacheRecord
	users      map[oci.Digest]int // containers, by image
	reach      []map[oci.Digest]bool
	all        map[oci.Digest]bool // what images reach
	set        *container.Set
	removed    []store.Operation // since which something waits to be reclaimed
}

// waiting is the bytes of what was removed and waits to be reclaimed.
func (u *diskUsage) waiting() (n int64) {
	for _, o := range u.removed {
		n += o.Bytes
	}
	return n
}

func (a *App) usage(ctx context.Context) (*diskUsage, error) {
	s, err := a.Store()
	if err != nil {
		return nil, err
	}
	u := &diskUsage{set: container.In(s), users: map[oci.Digest]int{}, all: map[oci.Digest]bool{}}
	if u.containers, err = u.set.List(ctx); err != nil {
		return nil, daemon(err)
	}
	for _, c := range u.containers {
		u.users[c.ImageID]++
	}
	if u.images, err = s.Images(ctx); err != nil {
		return nil, daemon(err)
	}
	if u.disk, err = s.Disk(ctx); err != nil {
		return nil, daemon(err)
	}
	ops, err := s.Operations(ctx, 0)
	if err != nil {
		return nil, daemon(err)
	}
	for _, o := range ops {
		if o.Bytes > 0 {
			u.removed = append(u.removed, o)
		}
	}
	u.reach = make([]map[oci.Digest]bool, len(u.images))
	for i, img := range u.images {
		u.reach[i] = map[oci.Digest]bool{}
		u.disk.Reach(u.reach[i], img.Target.Digest, img.Manifest.Digest)
		for d := range u.reach[i] {
			u.all[d] = true
		}
	}
	if u.cache, err = build.Cache(ctx, s, u.disk, u.all); err != nil {
		return nil, daemon(err)
	}
	return u, nil
}

// summaryRow is a line of `system df`; its fields are the placeholders.
type summaryRow struct{ Active, Reclaimable, Size, TotalCount, Type string }

func newSummaryRow(kind string, total, active int, size, free int64, share bool) *summaryRow {
	r := &summaryRow{Type: kind, TotalCount: strconv.Itoa(total), Active: strconv.Itoa(active),
		Size: humanSize(size), Reclaimable: humanSize(free)}
	if share && size > 0 {
		r.Reclaimable += fmt.Sprintf(" (%d%%)", free*100/size)
	}
	return r
}

func (a *App) printSummary(u *diskUsage, format string) error {
	if format == "" || format == "table" {
		format = "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}"
	}
	header := term.Header{"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
	asDocker := a.name == "docker"
	rows := []*summaryRow{u.imagesRow(asDocker)}
	written, volumes := u.containerRows()
	rows = append(rows, written, volumes)
	var size, free int64
	used := 0
	for _, c := range u.cache {
		size += c.Size
		if c.InUse {
			used++
		} else {
			free += c.Size
		}
	}
	rows = append(rows, newSummaryRow("Build Cache", len(u.cache), used, size, free, false))
	if n := u.waiting(); n > 0 && !asDocker {
		rows = append(rows, newSummaryRow("Removed Images", len(u.removed), 0, n, n, true))
	}
	return printRows(a, "*formatter.diskUsageImagesContext", format, header, rows)
}

// imagesRow: what images of containers keep would stay. Docker's table has no
// line for what waits to be reclaimed: there its bytes count as images' own,
// all of them reclaimable, which prune makes true.
func (u *diskUsage) imagesRow(withRemoved bool) *summaryRow {
	kept := map[oci.Digest]bool{}
	active := 0
	for i, img := range u.images {
		if u.users[img.ID] > 0 {
			active++
			for d := range u.reach[i] {
				kept[d] = true
			}
		}
	}
	size := u.disk.Sum(u.all)
	free := size - u.disk.Sum(kept)
	if withRemoved {
		size, free = size+u.waiting(), free+u.waiting()
	}
	return newSummaryRow("Images", len(u.images), active, size, free, true)
}

func (u *diskUsage) containerRows() (written, volumes *summaryRow) {
	var size, free, inVolumes int64
	running, n := 0, 0
	for _, c := range u.containers {
		own, vols := u.set.Usage(c)
		size += own
		if c.State == container.Running {
			running++
		} else {
			free += own
		}
		for _, v := range vols {
			n++
			inVolumes += v
		}
	}
	return newSummaryRow("Containers", len(u.containers), running, size, free, true),
		newSummaryRow("Local Volumes", n, n, inVolumes, 0, true)
}

func (a *App) printUsage(u *diskUsage) error {
	owners := u.owners()
	w := term.NewTable(a.Out)
	fmt.Fprint(w, "Images space usage:\n\nREPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE\tSHARED SIZE\tUNIQUE SIZE\tCONTAINERS\n")
	for i := range u.images {
		img := &u.images[i]
		size, unique := u.shareOf(i, owners)
		for _, r := range imageRows(img, &imagesOptions{}, false) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\n", r.Repository, r.Tag, r.ID, r.CreatedSince,
				humanSize(size), humanSize(size-unique), humanSize(unique), u.users[img.ID])
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprint(w, "\nContainers space usage:\n\nCONTAINER ID\tIMAGE\tCOMMAND\tLOCAL VOLUMES\tSIZE\tCREATED\tSTATUS\tNAMES\n")
	var volumes strings.Builder
	for _, c := range u.containers {
		own, vols := u.set.Usage(c)
		r := newPsRow(c, false)
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", r.ID, r.Image, r.Command, len(vols), humanSize(own), r.RunningFor, r.Status, r.Names)
		for i, v := range vols {
			fmt.Fprintf(&volumes, "%s/%d\t1\t%s\n", r.ID, i, humanSize(v))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nLocal Volumes space usage:\n\nVOLUME NAME\tLINKS\tSIZE\n%s", volumes.String())
	if err := w.Flush(); err != nil {
		return err
	}
	var total int64
	for _, c := range u.cache {
		total += c.Size
	}
	fmt.Fprintf(w, "\nBuild cache usage: %s\n\nCACHE ID\tCACHE TYPE\tSIZE\tCREATED\tLAST USED\tUSAGE\tSHARED\n", humanSize(total))
	for _, c := range u.cache {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\tN/A\t%t\n", c.ID[:12], c.Type, humanSize(c.Size), ago(c.Created), ago(c.Used), c.Shared)
	}
	if len(u.removed) == 0 || a.name == "docker" {
		return w.Flush()
	}
	fmt.Fprintf(w, "\nRemoved images, waiting to be reclaimed: %s\n\nOPERATION\tCOMMAND\tIMAGES\tREMOVED\tSIZE\tUNTIL\n", humanSize(u.waiting()))
	for i := range u.removed {
		r := newOperationRow(&u.removed[i], false)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Command, r.Images, r.Since, r.Bytes, r.Until)
	}
	return w.Flush()
}
