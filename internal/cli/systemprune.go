package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content/store"
)

func (a *App) containerPruneCommand() *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:     "prune [OPTIONS]",
		Short:   "Remove all stopped containers",
		Example: "  strake container prune -f --filter until=24h",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.filters.check("label", "label!", "until"); err != nil {
				return err
			}
			if yes, err := a.agreed(cmd.Context(), &o, "WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] "); err != nil || !yes {
				return err
			}
			s, err := a.Store()
			if err != nil {
				return err
			}
			bytes, _, err := a.pruneContainers(cmd.Context(), s, &o)
			if err != nil {
				return err
			}
			a.pruned(&o, bytes)
			return nil
		},
	}
	o.pruneFlags(cmd, "label=, label!=, until=")
	return cmd
}

// agreed asks, unless -f or a dry run makes that needless.
func (a *App) agreed(ctx context.Context, o *pruneOptions, question string) (bool, error) {
	if o.force || o.dry {
		return true, nil
	}
	yes, err := a.confirm(ctx, question)
	if yes {
		a.busy.Start()
	}
	return yes, err
}

func (a *App) pruned(o *pruneOptions, bytes int64) {
	if o.dry {
		a.wouldFree(bytes)
		return
	}
	a.reclaimed(bytes)
}

func (a *App) pruneContainers(ctx context.Context, s *store.Store, o *pruneOptions) (int64, []*container.Container, error) {
	until, err := o.filters.before()
	if err != nil {
		return 0, nil, err
	}
	keep := func(c *container.Container) bool {
		if !until.IsZero() && !c.Created.Before(until) {
			return true
		}
		for _, l := range o.filters.values("label") {
			if !hasLabel(c.Labels, l) {
				return true
			}
		}
		return slices.ContainsFunc(o.filters.values("label!"), func(l string) bool { return hasLabel(c.Labels, l) })
	}
	gone, bytes, err := container.In(s).Prune(ctx, keep, o.dry)
	printGone(a, "Containers", gone, o.dry, func(c *container.Container) string { return c.ID })
	return bytes, gone, daemon(err)
}

// printGone lists the IDs of what a prune deleted, or with dry would.
func printGone[T any](a *App, what string, gone []T, dry bool, id func(T) string) {
	if len(gone) == 0 {
		return
	}
	done := "Deleted"
	if dry {
		done = "Would delete"
	}
	fmt.Fprintf(a.Out, "%s %s:\n", done, what)
	for _, one := range gone {
		fmt.Fprintln(a.Out, id(one))
	}
	fmt.Fprintln(a.Out)
}

func (a *App) systemPruneCommand() *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove unused data",
		Example: `  strake system prune -f
  strake system prune -a --dry-run
  strake system prune -a -f --filter until=240h`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.systemPrune(cmd.Context(), &o) },
	}
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "Remove all unused images, not just dangling ones, and all of the build cache")
	cmd.Flags().BoolVar(&o.volumes, "volumes", false, "Remove anonymous volumes (they go with their containers)")
	cmd.Flags().BoolVar(&o.now, "now", false, nowHelp)
	o.pruneFlags(cmd, "label=, label!=, until=")
	return cmd
}

// systemPrune removes containers first, then the images that nobody uses any
// more, then the build cache.
func (a *App) systemPrune(ctx context.Context, o *pruneOptions) error {
	if err := o.filters.check("label", "label!", "until"); err != nil {
		return err
	}
	until, err := o.filters.before()
	if err != nil {
		return err
	}
	if o.volumes && !until.IsZero() {
		return errors.New(`ERROR: The "until" filter is not supported with "--volumes"`)
	}
	if yes, err := a.agreed(ctx, o, o.systemWarning()); err != nil || !yes {
		return err
	}
	s, err := a.Store()
	if err != nil {
		return err
	}
	if o.dry {
		return a.planSystem(ctx, s, o)
	}
	total, _, err := a.pruneContainers(ctx, s, o)
	if err != nil {
		return err
	}
	images, err := unusedImages(ctx, s, o.all, o.dry, o.filters)
	if err != nil {
		return err
	}
	cache := cachePrune{pruneOptions: *o}
	if o.prunesCache() {
		n, err := a.pruneCache(ctx, s, &cache)
		total += n
		if err != nil {
			return err
		}
	}
	p := store.Prune{Images: images, All: len(o.filters) == 0, Now: a.pruneNow(o)}
	done, err := s.Prune(ctx, p)
	if err != nil {
		return daemon(err)
	}
	printDeleted(a.Out, images, done)
	a.reclaimed(total + done.Bytes)
	a.waits(done.Waiting)
	return nil
}

// prunesCache tells whether the build cache is meant too. It knows no labels: who
// asks for one means none of it.
func (o *pruneOptions) prunesCache() bool {
	return o.filters.values("label") == nil && o.filters.values("label!") == nil
}

// planSystem prints what systemPrune would delete. Containers, build cache and
// images share layers: what goes when all of them go is one question.
func (a *App) planSystem(ctx context.Context, s *store.Store, o *pruneOptions) error {
	bytes, gone, err := a.pruneContainers(ctx, s, o)
	if err != nil {
		return err
	}
	p := store.Prune{All: len(o.filters) == 0, Dry: true, Now: a.pruneNow(o)}
	if p.Images, err = unusedImages(ctx, s, o.all, true, o.filters, gone...); err != nil {
		return err
	}
	if p.Records, err = container.In(s).Records(ctx, gone); err != nil {
		return daemon(err)
	}
	if o.prunesCache() {
		list, err := a.chooseCache(ctx, s, &cachePrune{pruneOptions: *o})
		if err != nil {
			return err
		}
		printGone(a, "build cache objects", list, o.dry, cacheID)
		records, mounts, err := build.PlanCache(ctx, s, list)
		if err != nil {
			return daemon(err)
		}
		bytes += mounts
		p.Records = append(p.Records, records...)
	}
	done, err := s.Prune(ctx, p)
	if err != nil {
		return daemon(err)
	}
	if err := a.printPlan(p.Images, done); err != nil {
		return err
	}
	a.wouldFree(done.Bytes + done.Waiting + bytes)
	return nil
}

func (o *pruneOptions) systemWarning() string {
	items := []string{"all stopped containers", "all networks not used by at least one container"}
	if o.volumes {
		items = append(items, "all anonymous volumes not used by at least one container")
	}
	if o.all {
		items = append(items, "all images without at least one container associated to them", "all build cache")
	} else {
		items = append(items, "all dangling images", "unused build cache")
	}
	text := "WARNING! This will remove:\n  - " + strings.Join(items, "\n  - ") + "\n\n"
	if len(o.filters) > 0 {
		var given []string
		for _, f := range o.filters {
			given = append(given, f.key+"="+f.value)
		}
		slices.Sort(given)
		text += "  Items to be pruned will be filtered with:\n  - " + strings.Join(given, "\n  - ") + "\n\n"
	}
	return text + "Are you sure you want to continue? [y/N] "
}
