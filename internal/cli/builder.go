package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/store"
)

func (a *App) builderCommand() *cobra.Command {
	return a.group("builder", "Manage builds", a.buildCommand("build"), a.builderPruneCommand(), a.builderDuCommand())
}

// buildxCommand is the same under the name of docker's plugin.
func (a *App) buildxCommand() *cobra.Command {
	return a.group("buildx", "Manage builds, by docker buildx's names", a.buildCommand("build"), a.builderDuCommand(), a.builderPruneCommand(), a.imagetoolsCommand())
}

// cacheFilterFlag is --filter of the build cache, some of which are bare words.
type cacheFilterFlag struct{ *filters }

// Set implements pflag.Value.
func (f cacheFilterFlag) Set(s string) error {
	if cacheWords()[s] != nil {
		s += "=true"
	}
	if since, ok := strings.CutPrefix(s, "unused-for="); ok {
		s = "until=" + since
	}
	key, value, ok := strings.Cut(s, "=")
	if ok {
		s = key + "=" + strings.TrimPrefix(value, "=") // key==value
	}
	return f.filters.Set(s)
}

// cacheWords are the filters without a value.
func cacheWords() map[string]func(*build.CacheRecord) bool {
	mutable := func(c *build.CacheRecord) bool { return c.Type == "exec.cachemount" }
	return map[string]func(*build.CacheRecord) bool{
		"inuse":     func(c *build.CacheRecord) bool { return c.InUse },
		"shared":    func(c *build.CacheRecord) bool { return c.Shared },
		"private":   func(c *build.CacheRecord) bool { return !c.Shared },
		"mutable":   mutable,
		"immutable": func(c *build.CacheRecord) bool { return !mutable(c) },
	}
}

// cacheTexts are the filters by a text: key=value, key~=expression, key!=value.
func cacheTexts() map[string]func(*build.CacheRecord) string {
	return map[string]func(*build.CacheRecord) string{
		"id":          func(c *build.CacheRecord) string { return c.ID },
		"type":        func(c *build.CacheRecord) string { return c.Type },
		"description": func(c *build.CacheRecord) string { return c.Description },
	}
}

// cacheTest makes the test that lets a record of the build cache through. As in
// BuildKit an ID is an expression with = too: people give the beginning of it.
func (f filters) cacheTest() (func(*build.CacheRecord) bool, error) {
	words := slices.Sorted(maps.Keys(cacheWords()))
	known := append([]string{"until"}, words...)
	for key := range cacheTexts() {
		known = append(known, key, key+"~", key+"!")
	}
	if err := f.check(known...); err != nil {
		return nil, err
	}
	var tests []func(*build.CacheRecord) bool
	add := func(t func(*build.CacheRecord) bool) { tests = append(tests, t) }
	until, err := f.before()
	if err != nil {
		return nil, err
	}
	if !until.IsZero() {
		add(func(c *build.CacheRecord) bool { return c.Used.Before(until) })
	}
	for key, text := range cacheTexts() {
		expressions := f.values(key + "~")
		if key == "id" {
			expressions = append(expressions, f.values(key)...)
		} else {
			for _, v := range f.values(key) {
				add(func(c *build.CacheRecord) bool { return text(c) == v })
			}
		}
		for _, v := range f.values(key + "!") {
			add(func(c *build.CacheRecord) bool { return text(c) != v })
		}
		for _, v := range expressions {
			re, err := regexp.Compile(v)
			if err != nil {
				return nil, daemonf("invalid filter '%s=%s'", key, v)
			}
			add(func(c *build.CacheRecord) bool { return re.MatchString(text(c)) })
		}
	}
	for _, word := range words {
		if len(f.values(word)) == 0 {
			continue
		}
		want, err := f.boolean(word)
		if err != nil {
			return nil, err
		}
		is := cacheWords()[word]
		add(func(c *build.CacheRecord) bool { return is(c) == want })
	}
	return func(c *build.CacheRecord) bool {
		return !slices.ContainsFunc(tests, func(fits func(*build.CacheRecord) bool) bool { return !fits(c) })
	}, nil
}

// cachePrune is what the build cache's prune takes beside what all take.
type cachePrune struct {
	pruneOptions
	reserved, maxUsed, minFree string
	keepStorage                string
	format                     string
	verbose                    bool
}

// limit is what of the cache stays, from flags like --reserved-space.
func (o *cachePrune) limit() (l build.CacheLimit, err error) {
	if o.keepStorage != "" && o.reserved != "" {
		return l, errors.New("--keep-storage and --reserved-space are one flag: leave out the first, which is its older name")
	}
	for _, f := range []struct {
		name, value string
		into        *int64
	}{
		{"keep-storage", o.keepStorage, &l.Reserved}, {"reserved-space", o.reserved, &l.Reserved},
		{"max-used-space", o.maxUsed, &l.Max}, {"min-free-space", o.minFree, &l.MinFree},
	} {
		if f.value == "" {
			continue
		}
		n, err := units.RAMInBytes(f.value)
		if err != nil || n < 0 {
			return l, fmt.Errorf("invalid argument %q for \"--%s\" flag: invalid size: '%s'", f.value, f.name, f.value)
		}
		*f.into = n
	}
	return l, nil
}

func (a *App) builderPruneCommand() *cobra.Command {
	var o cachePrune
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove build cache",
		Example: `  strake builder prune -f --keep-storage 10GB
  strake builder prune -a --dry-run --filter until=48h`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.builderPrune(cmd.Context(), &o) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "Remove also what images share")
	fs.StringVar(&o.reserved, "reserved-space", "", "Amount of disk space always allowed to keep for cache (e.g. 10GB): what was used last")
	fs.StringVar(&o.keepStorage, "keep-storage", "", "The same as --reserved-space, docker's older name")
	fs.StringVar(&o.maxUsed, "max-used-space", "", "Maximum amount of disk space allowed to keep for cache")
	fs.StringVar(&o.minFree, "min-free-space", "", "Target amount of free disk space after pruning")
	fs.BoolVar(&o.verbose, "verbose", false, "Show all that is known of what goes")
	fs.StringVar(&o.format, "format", "", `With --dry-run: print with "table", "table TEMPLATE", "json" or a Go TEMPLATE`)
	fs.BoolVarP(&o.force, "force", "f", false, "Do not prompt for confirmation")
	fs.BoolVar(&o.dry, "dry-run", false, "Show what would go, with true bytes, and change nothing")
	fs.Var(cacheFilterFlag{&o.filters}, "filter", `Remove only what fits ("until=24h", "unused-for=24h", "id=…", "type=exec.cachemount", "description~=…", "private", "shared")`)
	return cmd
}

func (a *App) builderPrune(ctx context.Context, o *cachePrune) error {
	switch {
	case o.format != "" && !o.dry:
		return errors.New("--format is how --dry-run prints: give it too")
	case o.format != "" && o.verbose:
		return errors.New("--format and --verbose cannot be used together")
	}
	if _, err := o.filters.cacheTest(); err != nil {
		return err
	}
	if _, err := o.limit(); err != nil {
		return err
	}
	what := "all dangling build cache"
	if o.all {
		what = "all build cache"
	}
	if yes, err := a.agreed(ctx, &o.pruneOptions, "WARNING! This will remove "+what+". Are you sure you want to continue? [y/N] "); err != nil || !yes {
		return err
	}
	s, err := a.Store()
	if err != nil {
		return err
	}
	gone, bytes, err := a.selectCache(ctx, s, o)
	if err != nil {
		return err
	}
	if o.format != "" && o.format != "table" {
		return printCacheRows(a, gone, o.format)
	}
	if o.verbose {
		printCacheVerbose(a, gone)
	} else if len(gone) > 0 {
		if err := printCacheTable(a, gone); err != nil {
			return err
		}
	}
	if o.dry {
		a.wouldFree(bytes)
		return nil
	}
	fmt.Fprintf(a.Out, "Total:\t%s\n", humanSize(bytes))
	return nil
}

// pruneCache is the build cache's part of `system prune`.
func (a *App) pruneCache(ctx context.Context, s *store.Store, o *cachePrune) (int64, error) {
	gone, bytes, err := a.selectCache(ctx, s, o)
	printGone(a, "build cache objects", gone, o.dry, cacheID)
	return bytes, err
}

func cacheID(c build.CacheRecord) string { return c.ID }

// selectCache removes what o lets through, unless o is a dry run, and returns
// it with the bytes that are free then.
func (a *App) selectCache(ctx context.Context, s *store.Store, o *cachePrune) ([]build.CacheRecord, int64, error) {
	list, err := a.chooseCache(ctx, s, o)
	if err != nil {
		return nil, 0, err
	}
	gone, bytes, err := build.PruneCache(ctx, s, list, o.dry)
	return gone, bytes, daemon(err)
}

// chooseCache lists what o lets through.
func (a *App) chooseCache(ctx context.Context, s *store.Store, o *cachePrune) ([]build.CacheRecord, error) {
	fits, err := o.filters.cacheTest()
	if err != nil {
		return nil, err
	}
	limit, err := o.limit()
	if err != nil {
		return nil, err
	}
	u, err := a.usage(ctx)
	if err != nil {
		return nil, err
	}
	_, free, err := build.DiskSpace(s)
	if err != nil {
		return nil, err
	}
	may := func(c *build.CacheRecord) bool {
		return (o.all || !c.Shared || len(o.filters.values("shared")) > 0) && fits(c)
	}
	return build.Evict(u.cache, may, func(total int64) int64 { return limit.Keep(total, free) }), nil
}

func (a *App) builderDuCommand() *cobra.Command {
	var filters filters
	var verbose bool
	var format string
	cmd := &cobra.Command{
		Use:   "du [OPTIONS]",
		Short: "Show the build cache's disk usage: true bytes, what is shared counted once",
		Example: `  strake builder du
  strake builder du --verbose --filter type=exec.cachemount`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.builderDu(cmd.Context(), filters, verbose, format)
		},
	}
	fs := cmd.Flags()
	fs.Var(cacheFilterFlag{&filters}, "filter", `Show only what fits ("until=24h", "id=…", "type=regular", "description~=…", "inuse", "private", "shared")`)
	fs.BoolVar(&verbose, "verbose", false, "Show all that is known of each record")
	fs.StringVar(&format, "format", "", formatHelp)
	return cmd
}

func (a *App) builderDu(ctx context.Context, filters filters, verbose bool, format string) error {
	if verbose && format != "" && format != "pretty" {
		return fmt.Errorf("--format and --verbose cannot be used together")
	}
	fits, err := filters.cacheTest()
	if err != nil {
		return err
	}
	u, err := a.usage(ctx)
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(u.cache, func(c build.CacheRecord) bool { return !fits(&c) })
	slices.Reverse(list) // what was used last first
	switch {
	case verbose || format == "pretty":
		printCacheVerbose(a, list)
	case format != "" && format != "table":
		return printCacheRows(a, list, format)
	default:
		if err := printCacheTable(a, list); err != nil {
			return err
		}
	}
	var total, free, shared int64
	for i := range list {
		c := &list[i]
		total += c.Size
		if !c.InUse {
			free += c.Size
		}
		if c.Shared {
			shared += c.Size
		}
	}
	w := term.NewTable(a.Out)
	if shared > 0 {
		fmt.Fprintf(w, "Shared:\t%s\nPrivate:\t%s\n", humanSize(shared), humanSize(total-shared))
	}
	fmt.Fprintf(w, "Reclaimable:\t%s\nTotal:\t%s\n", humanSize(free), humanSize(total))
	return w.Flush()
}

func printCacheRows(a *App, list []build.CacheRecord, format string) error {
	rows := make([]*cacheRow, len(list))
	for i := range list {
		rows[i] = newCacheRow(&list[i])
	}
	return term.PrintRows(a.Out, format, term.Header{"ID": "ID", "Reclaimable": "RECLAIMABLE", "Size": "SIZE", "LastUsedAt": "LAST ACCESSED",
		"Type": "TYPE", "Description": "DESCRIPTION", "CreatedAt": "CREATED", "Mutable": "MUTABLE", "Shared": "SHARED"}, rows)
}

// cacheRow is a line of `builder du`; its fields are the placeholders.
type cacheRow struct {
	CreatedAt, Description, ID, LastUsedAt string
	Mutable, Reclaimable, Shared           bool
	Size, Type                             string
}

func newCacheRow(c *build.CacheRecord) *cacheRow {
	return &cacheRow{ID: shortCacheID(c), Type: c.Type, Description: c.Description, Mutable: c.Type == "exec.cachemount",
		Reclaimable: !c.InUse, Shared: c.Shared, Size: humanSize(c.Size),
		CreatedAt: c.Created.UTC().String(), LastUsedAt: ago(c.Used)}
}

// shortCacheID is as long as BuildKit's.
func shortCacheID(c *build.CacheRecord) string { return c.ID[:25] }

func printCacheTable(a *App, list []build.CacheRecord) error {
	w := term.NewTable(a.Out)
	fmt.Fprintln(w, "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED")
	for i := range list {
		r := newCacheRow(&list[i])
		if r.Mutable {
			r.ID += "*"
		}
		fmt.Fprintf(w, "%s\t%t\t%s\t%s\n", r.ID, r.Reclaimable, r.Size, r.LastUsedAt)
	}
	return w.Flush()
}

func printCacheVerbose(a *App, list []build.CacheRecord) {
	w := term.NewTable(a.Out)
	for i := range list {
		c, r := &list[i], newCacheRow(&list[i])
		fmt.Fprintf(w, "ID:\t%s\nCreated at:\t%s\nMutable:\t%t\nReclaimable:\t%t\nShared:\t%t\nSize:\t%s\n",
			r.ID, c.Created.UTC(), r.Mutable, r.Reclaimable, r.Shared, r.Size)
		if c.Description != "" {
			fmt.Fprintf(w, "Description:\t%s\n", c.Description)
		}
		fmt.Fprintf(w, "Last used:\t%s\nType:\t%s\n\n", r.LastUsedAt, c.Type)
	}
	w.Flush()
}
