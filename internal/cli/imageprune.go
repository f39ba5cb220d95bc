package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// pruneOptions are the flags of the prune commands.
type pruneOptions struct {
	all, force, dry, volumes, now bool
	filters                       filters
}

// pruneFlags declares those that all of them have.
func (o *pruneOptions) pruneFlags(cmd *cobra.Command, filters string) {
	fs := cmd.Flags()
	fs.BoolVarP(&o.force, "force", "f", false, "Don't ask")
	fs.BoolVar(&o.dry, "dry-run", false, "Show what would go, with true bytes, and change nothing")
	fs.Var(&o.filters, "filter", "Remove only what fits ("+filters+")")
}

// imagePruneOptions are those of image prune.
type imagePruneOptions struct {
	pruneOptions
	prunePolicy
	plan, apply, format string
}

func (a *App) imagePruneCommand() *cobra.Command {
	var o imagePruneOptions
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS] [PATTERN...]",
		Short: "Remove unused images",
		Example: `  strake image prune --dry-run
  strake image prune -a -f --filter until=240h
  strake image prune --keep 5 'ci/*:pr-*'
  strake image prune -a --plan plan.json && strake image prune -f --apply plan.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				if !isGlob(arg) {
					return argsError(cmd, "accepts no arguments but patterns such as 'ci/*:pr-*'")
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.patterns = args
			return a.imagePrune(cmd.Context(), &o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "Remove also images with a name that no container uses")
	fs.BoolVar(&o.now, "now", false, nowHelp)
	fs.StringVar(&o.plan, "plan", "", "Write what would go to this file, as JSON, and change nothing")
	fs.StringVar(&o.apply, "apply", "", "Remove exactly what this file of --plan says, but nothing that came into use since")
	fs.StringVar(&o.format, "format", "", `With --dry-run: print with "table", "table TEMPLATE", "json" or a Go TEMPLATE`)
	o.addFlags(fs)
	o.pruneFlags(cmd, "dangling=, label=, label!=, until=")
	return cmd
}

const nowHelp = "Free the space at once, and that of all that was removed before: no undo"

func (a *App) imagePrune(ctx context.Context, o *imagePruneOptions) error {
	all, err := o.allImages()
	if err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	if o.format != "" && !o.dry {
		return errors.New("--format is how --dry-run prints: give it too")
	}
	if o.apply != "" {
		if o.all || len(o.filters) > 0 || o.any() || o.plan != "" {
			return errors.New("--apply removes what its plan says: no other choice goes with it")
		}
		return a.applyPlan(ctx, o)
	}
	if o.plan != "" {
		if err := validOutput(o.plan); err != nil {
			return fmt.Errorf("--plan: %w", err)
		}
	}
	warning := "WARNING! This will remove all dangling images."
	switch {
	case o.any():
		warning = o.sentence()
	case o.all:
		warning = "WARNING! This will remove all images without at least one container associated to them."
	}
	if !o.dry && o.plan == "" {
		if yes, err := a.agreed(ctx, &o.pruneOptions, warning+"\nAre you sure you want to continue? [y/N] "); err != nil || !yes {
			return err
		}
	}
	s, err := a.Store()
	if err != nil {
		return err
	}
	images, err := selectImages(ctx, s, o, all)
	if err != nil {
		return err
	}
	p := store.Prune{Images: images, All: len(o.filters) == 0 && !o.any(), Dry: o.dry, Now: a.pruneNow(&o.pruneOptions)}
	if o.plan != "" {
		if err := a.writePlan(ctx, s, o.plan, p); err != nil {
			return err
		}
		return a.planImages(ctx, s, p, o.format)
	}
	return a.pruneImages(ctx, s, p, o.format)
}

// pruneImages does p and prints what went, or with Dry what would.
func (a *App) pruneImages(ctx context.Context, s *store.Store, p store.Prune, format string) error {
	if p.Dry {
		return a.planImages(ctx, s, p, format)
	}
	done, err := s.Prune(ctx, p)
	if err != nil {
		return daemon(err)
	}
	printDeleted(a.Out, p.Images, done)
	a.reclaimed(done.Bytes)
	a.waits(done.Waiting)
	a.kept(done.Held)
	return nil
}

func (a *App) applyPlan(ctx context.Context, o *imagePruneOptions) error {
	plan, err := readPlan(o.apply)
	if err != nil {
		return err
	}
	question := fmt.Sprintf("WARNING! This will remove the %d images of %s.\nAre you sure you want to continue? [y/N] ", len(plan.Images), o.apply)
	if yes, err := a.agreed(ctx, &o.pruneOptions, question); err != nil || !yes {
		return err
	}
	s, err := a.Store()
	if err != nil {
		return err
	}
	images, err := a.choosePlanned(ctx, s, plan)
	if err != nil {
		return err
	}
	err = a.pruneImages(ctx, s, store.Prune{Images: images, Content: plan.Content, Dry: o.dry, Now: a.pruneNow(&o.pruneOptions)}, o.format)
	if err != nil || o.dry {
		return err
	}
	return a.stillThere(ctx, s, images)
}

// allImages tells whether images with names go too: -a, which is short for the
// filter dangling=false.
func (o *pruneOptions) allImages() (bool, error) {
	if err := o.filters.check("dangling", "label", "label!", "until"); err != nil {
		return false, err
	}
	all := o.all
	if len(o.filters.values("dangling")) > 0 {
		dangling, err := o.filters.boolean("dangling")
		if err != nil {
			return false, err
		}
		all = !dangling
	}
	o.filters = slices.DeleteFunc(o.filters, func(f filter) bool { return f.key == "dangling" })
	return all, nil
}

// unusedImages lists what no container uses and the filters let through, only
// what has no name unless all.
func unusedImages(ctx context.Context, s *store.Store, all, dry bool, fs filters, without ...*container.Container) ([]store.Image, error) {
	var facts store.Facts // 10,000 images' are megabytes
	if !dry {
		facts |= store.Layers // to say which went
	}
	if len(fs.values("label"))+len(fs.values("label!")) > 0 {
		facts |= store.Labels
	}
	if _, err := fs.before(); err != nil { // prune takes one; a list, several
		return nil, err
	}
	keep, err := imageFilter(ctx, s, fs)
	if err != nil {
		return nil, err
	}
	used, err := usedImages(ctx, s)
	if err != nil {
		return nil, err
	}
	for _, c := range without {
		used[c.ImageID]--
	}
	images, err := s.List(ctx, store.Selection{Facts: facts})
	if err != nil {
		return nil, daemon(err)
	}
	return slices.DeleteFunc(images, func(i store.Image) bool {
		return used[i.ID] > 0 || i.Pinned || len(i.PinnedNames) > 0 || !all && len(i.Names)+len(i.Digests) > 0 || !keep(&i)
	}), nil
}

// usedImages counts the containers of each image.
func usedImages(ctx context.Context, s *store.Store) (map[oci.Digest]int, error) {
	list, err := container.In(s).List(ctx)
	if err != nil {
		return nil, daemon(err)
	}
	used := map[oci.Digest]int{}
	for _, c := range list {
		used[c.ImageID]++
	}
	return used, nil
}

// printDeleted prints what went of the images, as docker does: names, IDs, and
// the layers from the top down.
func printDeleted(w io.Writer, images []store.Image, done *store.Pruned) {
	gone := goneDigests(&done.Freed)
	var lines []string
	deleted := func(d oci.Digest) {
		if gone[d] {
			delete(gone, d) // it is said once
			lines = append(lines, "deleted: "+string(d))
		}
	}
	for i := range images {
		img := &images[i]
		for _, n := range done.Untagged[img.ID] {
			lines = append(lines, "untagged: "+n.Familiar())
		}
		deleted(img.ID)
		for _, l := range slices.Backward(img.Layers) {
			deleted(l)
		}
	}
	if len(lines) > 0 {
		fmt.Fprintf(w, "Deleted Images:\n%s\n\n", strings.Join(lines, "\n"))
	}
}

// goneDigests are the IDs and layers that docker tells of.
func goneDigests(f *store.Freed) map[oci.Digest]bool {
	gone := map[oci.Digest]bool{}
	for _, d := range slices.Concat(f.Configs, f.Layers, f.Blobs) {
		gone[d] = true
	}
	return gone
}

// pruneNow tells whether the space is freed at once. Called as docker it is:
// who knows docker knows that prune is for good, and its total must be true.
func (a *App) pruneNow(o *pruneOptions) bool { return o.now || a.name == "docker" }

// waits says what became of the bytes that are not in the total.
func (a *App) waits(bytes int64) {
	if bytes > 0 {
		fmt.Fprintf(a.Out, "Waiting to be reclaimed: %s (%[2]s undo takes this back, %[2]s system reclaim frees it now)\n", humanSize(bytes), a.name)
	}
}

// kept says what prune could not free, where people look for it.
func (a *App) kept(bytes int64) {
	if bytes > 0 && a.name != "docker" {
		fmt.Fprintf(a.Out, "Kept by build cache and containers: %s (%s system prune -a --dry-run shows it)\n", humanSize(bytes), a.name)
	}
}

func (a *App) reclaimed(bytes int64) {
	fmt.Fprintln(a.Out, "Total reclaimed space:", humanSize(bytes))
}

// planImages prints what p would delete.
func (a *App) planImages(ctx context.Context, s *store.Store, p store.Prune, format string) error {
	p.Dry = true
	done, err := s.Prune(ctx, p)
	if err != nil {
		return daemon(err)
	}
	if format != "" && format != "table" {
		return a.formatPlan(p.Images, done, format)
	}
	if err := a.printPlan(p.Images, done); err != nil {
		return err
	}
	a.wouldFree(done.Bytes + done.Waiting)
	a.kept(done.Held)
	return nil
}

// planRow is an image of a dry run; its fields are the placeholders. Where Bytes
// are of what no image needs, there is no ID.
type planRow struct {
	Bytes int64
	ID    string
	Names []string
	Size  string
}

func (a *App) formatPlan(images []store.Image, done *store.Pruned, format string) error {
	var rows []*planRow
	rest := done.Bytes + done.Waiting
	for i := range images {
		row := &planRow{Bytes: done.Shares[i], ID: string(images[i].ID), Names: []string{}}
		for _, n := range done.Untagged[images[i].ID] {
			row.Names = append(row.Names, n.Familiar())
		}
		rest -= row.Bytes
		rows = append(rows, row)
	}
	if rest > 0 {
		rows = append(rows, &planRow{Bytes: rest, Names: []string{}})
	}
	for _, row := range rows {
		row.Size = humanSize(row.Bytes)
	}
	return term.PrintRows(a.Out, format, term.Header{"ID": "IMAGE ID", "Names": "NAMES", "Size": "WOULD FREE", "Bytes": "BYTES"}, rows)
}

// printPlan prints each image with the bytes that go with it, those that several
// share at the first.
func (a *App) printPlan(images []store.Image, done *store.Pruned) error {
	rest := done.Bytes + done.Waiting
	w := term.NewTable(a.Out)
	fmt.Fprintln(w, "IMAGE ID\tNAME\tWOULD FREE")
	for i := range images {
		img := &images[i]
		n := done.Shares[i]
		rest -= n
		name := "<none>"
		if names := done.Untagged[img.ID]; len(names) > 0 {
			name = names[0].Familiar()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", shortID(img.ID, false), name, humanSize(n))
		for i, n := range done.Untagged[img.ID] {
			if i > 0 {
				fmt.Fprintf(w, "\t%s\t\n", n.Familiar())
			}
		}
	}
	if rest > 0 {
		fmt.Fprintf(w, "<none>\twhat no image needs\t%s\n", humanSize(rest))
	}
	return w.Flush()
}

func (a *App) wouldFree(bytes int64) {
	fmt.Fprintf(a.Out, "\nWould reclaim: %s (%d bytes)\n", humanSize(bytes), bytes)
}

// confirm asks; anything but y is no. An ending stdin is no too.
func (a *App) confirm(ctx context.Context, question string) (bool, error) {
	fmt.Fprint(a.Out, question)
	line, err := bufio.NewReader(a.stdin(ctx)).ReadString('\n')
	if err != nil && err != io.EOF {
		return false, err
	}
	return strings.EqualFold(strings.TrimSpace(line), "y"), nil
}
