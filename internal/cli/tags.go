package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

type tagsOptions struct {
	long, reverse, suffixes bool
	sort, semver, format    string
	limit                   int
	patterns                []string
}

func (a *App) tagsCommand() *cobra.Command {
	var o tagsOptions
	cmd := &cobra.Command{
		Use:   "tags [OPTIONS] REPOSITORY [PATTERN...]",
		Short: "List the tags of a registry's repository",
		Long: `List the tags of a registry's repository that fit one of the PATTERNs (globs,
"*" by default) and the range of --semver. One request tells all names; digest,
age, size and platforms cost up to three requests for each tag, and are asked
for only by -l, --sort created or size, or a --format that prints them. Sizes are those
of the compressed layers, for this machine's platform where there is one.`,
		Example: `  strake tags nginx '1.2*-alpine'
  strake tags --semver '^1.24' --sort semver --reverse --limit 5 -l golang
  strake tags --format '{{.Tag}} {{.Digest}}' ghcr.io/team/web`,
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.patterns = args[1:]
			return a.tags(cmd.Context(), args[0], &o)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.IntVarP(&o.limit, "limit", "n", 0, "Show at most this many, after sorting (0 is all)")
	fs.BoolVarP(&o.long, "long", "l", false, "Show digest, age, size and platforms too")
	fs.BoolVar(&o.suffixes, "pre", false, "Versions with a suffix (1.4-rc1, 1.4-alpine) may fit --semver too; their numbers count")
	fs.BoolVarP(&o.reverse, "reverse", "r", false, "Turn the order around")
	fs.StringVar(&o.semver, "semver", "", `Only versions in this RANGE (">=1.2 <2", "^1.2", "~1.2.3", "1.x", "1.2 || 1.4")`)
	fs.StringVar(&o.sort, "sort", "name", `Sort by "name", "semver", "created" or "size"`)
	return cmd
}

// tagRow is a line of `tags`; its fields are the placeholders. What was not
// asked for is empty.
type tagRow struct {
	Repository   string
	Tag          string
	Digest       string `json:",omitempty"`
	Created      string `json:",omitempty"`
	CreatedSince string `json:",omitempty"`
	Size         string `json:",omitempty"`
	Platforms    string `json:",omitempty"`

	created time.Time
	size    int64
}

func (a *App) tags(ctx context.Context, repository string, o *tagsOptions) error {
	r, err := ref.Parse(repository)
	if err != nil {
		return daemon(err)
	}
	if r.Tag != "" || r.Digest != "" {
		return fmt.Errorf("%q names one image: leave out the tag, or give it as a PATTERN", repository)
	}
	fits, err := o.filter()
	if err != nil {
		return err
	}
	repo := a.Remote().Repository(r)
	all, err := repo.Tags(ctx, r)
	if err != nil {
		return daemon(err)
	}
	var rows []*tagRow
	for _, t := range all {
		if fits(t) {
			rows = append(rows, &tagRow{Repository: r.FamiliarName(), Tag: t})
		}
	}
	o.order(rows) // before the requests, where that makes for fewer of them
	if !o.sortsDetails() {
		rows = o.cut(rows)
	}
	if o.detailed() {
		err = describeTags(ctx, repo, r, rows)
		if ctx.Err() != nil {
			return daemon(err)
		}
	}
	if o.sortsDetails() {
		o.order(rows)
		rows = o.cut(rows)
	}
	header := term.Header{"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "Created": "CREATED AT", "CreatedSince": "CREATED", "Size": "SIZE", "Platforms": "PLATFORMS"}
	format := o.format
	switch {
	case format == "" && !o.long:
		format = "{{.Tag}}"
	case format == "table" && !o.long:
		format = "table {{.Repository}}\t{{.Tag}}"
	case format == "" || format == "table":
		format = "table {{.Tag}}\t{{.Digest}}\t{{.CreatedSince}}\t{{.Size}}\t{{.Platforms}}"
	}
	return errors.Join(term.PrintRows(a.Out, format, header, rows), err)
}

// sortsDetails tells whether the order is of what the list does not say.
func (o *tagsOptions) sortsDetails() bool { return o.sort == "created" || o.sort == "size" }

// detailed tells whether something is asked for that the list does not say.
func (o *tagsOptions) detailed() bool {
	asks := func(field string) bool { return strings.Contains(o.format, "."+field) }
	return o.long || o.sortsDetails() || asks("Digest") || asks("Created") || asks("Size") || asks("Platforms")
}

func (o *tagsOptions) filter() (func(tag string) bool, error) {
	if !slices.Contains([]string{"name", "semver", "created", "size"}, o.sort) {
		return nil, fmt.Errorf(`--sort %q: must be one of "name", "semver", "created", "size"`, o.sort)
	}
	if o.limit < 0 {
		return nil, fmt.Errorf("--limit %d: must not be negative", o.limit)
	}
	for _, p := range o.patterns {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", p, err)
		}
	}
	var versions versionRange
	if o.semver != "" {
		var err error
		if versions, err = parseRange(o.semver); err != nil {
			return nil, err
		}
	}
	return func(tag string) bool {
		if versions != nil {
			v, ok := parseVersion(tag)
			if !ok || v.suffix != "" && !o.suffixes || !versions.has(v) {
				return false
			}
		}
		return len(o.patterns) == 0 || slices.ContainsFunc(o.patterns, func(p string) bool {
			ok, _ := path.Match(p, tag)
			return ok
		})
	}, nil
}

func (o *tagsOptions) order(rows []*tagRow) {
	slices.SortStableFunc(rows, func(x, y *tagRow) int {
		c := 0
		switch o.sort {
		case "semver":
			c = compareTags(x.Tag, y.Tag)
		case "created":
			c = x.created.Compare(y.created)
		case "size":
			c = cmp.Compare(x.size, y.size)
		}
		c = cmp.Or(c, strings.Compare(x.Tag, y.Tag))
		if o.reverse {
			return -c
		}
		return c
	})
}

func (o *tagsOptions) cut(rows []*tagRow) []*tagRow {
	if o.limit > 0 && len(rows) > o.limit {
		return rows[:o.limit]
	}
	return rows
}

// parallelTags bounds the tags asked for at once. Registries count requests,
// and answers come faster than anybody reads with few.
const parallelTags = 8

// describeTags fills in what each tag points at. Tags of one image, such as
// latest and 1.4, cost its requests once. What fails for a tag leaves its row as
// it is; all failures are returned.
func describeTags(ctx context.Context, src content.Source, r ref.Ref, rows []*tagRow) error {
	type fact struct {
		once sync.Once
		row  tagRow
		err  error
	}
	var mu sync.Mutex
	facts := map[oci.Digest]*fact{}
	errs := make([]error, len(rows))
	var g errgroup.Group
	g.SetLimit(parallelTags)
	for i, row := range rows {
		g.Go(func() error {
			if ctx.Err() != nil {
				errs[i] = ctx.Err()
				return nil
			}
			d, err := src.Resolve(ctx, r.WithTag(row.Tag))
			if err != nil {
				errs[i] = daemon(err)
				return nil
			}
			mu.Lock()
			f := facts[d.Digest]
			if f == nil {
				f = &fact{}
				facts[d.Digest] = f
			}
			mu.Unlock()
			f.once.Do(func() { f.err = describeTag(ctx, src, d, &f.row) })
			if f.err != nil {
				errs[i] = daemonf("%s: %w", r.WithTag(row.Tag).Familiar(), f.err)
			}
			about := f.row
			about.Repository, about.Tag, about.Digest = row.Repository, row.Tag, string(d.Digest)
			*row = about
			return nil
		})
	}
	_ = g.Wait() // the goroutines return none
	return errors.Join(errs...)
}

func describeTag(ctx context.Context, src content.Source, d oci.Descriptor, row *tagRow) error {
	var names []string
	if oci.IsIndex(d.MediaType) {
		body, err := content.ReadAll(ctx, src, d)
		if err != nil {
			return err
		}
		children, err := oci.Children(d.MediaType, body)
		if err != nil {
			return err
		}
		var images []oci.Descriptor
		for _, c := range children {
			if c.Platform != nil && c.Platform.OS != "unknown" { // that is an attestation
				images = append(images, c)
				names = append(names, platforms.Format(platforms.Normalize(*c.Platform)))
			}
		}
		row.Platforms = strings.Join(names, ", ")
		if d, err = content.Choose(children, content.Host()); err != nil {
			if len(images) == 0 {
				return nil // an index of other things
			}
			d = images[0]
		}
	}
	if !oci.IsManifest(d.MediaType) {
		return nil
	}
	m, err := content.ReadManifest(ctx, src, d)
	if err != nil {
		return err
	}
	size := int64(0)
	for _, l := range m.Layers {
		size += l.Size
	}
	row.size, row.Size = size, shortSize(size)
	conf, err := content.ReadConfig(ctx, src, m.Config)
	if errors.Is(err, oci.ErrInvalid) || err == nil && conf.OS == "" {
		return nil // an artifact
	}
	if err != nil {
		return err
	}
	if names == nil {
		row.Platforms = platforms.Format(platforms.Normalize(conf.Platform))
	}
	if conf.Created != nil {
		row.created = *conf.Created
		row.Created, row.CreatedSince = row.created.UTC().Format(time.RFC3339), ago(row.created)
	}
	return nil
}
