package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

type imagesOptions struct {
	all, quiet, noTrunc, digests, tree bool
	format                             string
	filters                            filters
	name                               string
	inFull                             bool // more is printed than the tables have
}

func (a *App) imagesCommand(use string) *cobra.Command {
	var o imagesOptions
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS] [REPOSITORY[:TAG]]",
		Short: "List images",
		Example: `  strake images
  strake images --filter dangling=true -q
  strake images --format 'table {{.Repository}}\t{{.Size}}' debian`,
		Args: maxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.name = args[0]
			}
			return a.images(cmd.Context(), &o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "Show all images (strake keeps no intermediate ones)")
	fs.BoolVar(&o.digests, "digests", false, "Show digests")
	fs.VarP(&o.filters, "filter", "f", "Show only what fits (before=, dangling=, label=, pinned=, reference=, since=, until=)")
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "Don't cut IDs short")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Show only image IDs")
	fs.BoolVar(&o.tree, "tree", false, "List multi-platform images as a tree")
	return a.spelled(cmd, "image ls", "image list", "images")
}

const formatHelp = `Print with "table", "table TEMPLATE", "json" or a Go TEMPLATE`

// imageRow is a line of `images`; its fields are the placeholders of --format,
// in the order in which docker's JSON has them.
type imageRow struct {
	Containers   string
	CreatedAt    string
	CreatedSince string
	Digest       string
	ID           string
	Repository   string
	SharedSize   string
	Size         string
	Tag          string
	UniqueSize   string
	VirtualSize  string
}

func imageHeader() term.Header {
	return term.Header{
		"ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED",
		"CreatedAt": "CREATED AT", "Size": "SIZE", "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE",
		"UniqueSize": "UNIQUE SIZE", "VirtualSize": "SIZE",
	}
}

func (a *App) images(ctx context.Context, o *imagesOptions) error {
	s, err := a.Store()
	if err != nil {
		return err
	}
	if o.name != "" {
		o.filters = append(o.filters, filter{"reference", o.name})
	}
	keep, err := imageFilter(ctx, s, o.filters)
	if err != nil {
		return err
	}
	format := a.imagesFormat(o)
	all, err := s.List(ctx, o.selection())
	if err != nil {
		return daemon(err)
	}
	if o.tree {
		var kept []store.Image
		for i := range all {
			if keep(&all[i]) {
				kept = append(kept, all[i])
			}
		}
		return a.imagesTree(ctx, s, kept, o)
	}
	o.inFull = format != imagesIDs && format != imagesTable && format != imagesTableDigests
	withDigests := o.digests || strings.Contains(format, "{{.Digest}}")
	rows := make([]*imageRow, 0, len(all))
	for i := range all {
		if keep(&all[i]) {
			rows = append(rows, imageRows(&all[i], o, withDigests)...)
		}
	}
	return printRows(a, "*formatter.imageContext", format, imageHeader(), rows)
}

// selection is what has to be read for o: with many images in the store, what
// is not shown is most of the work.
func (o *imagesOptions) selection() store.Selection {
	var sel store.Selection
	if o.tree {
		sel.Facts = store.Labels | store.Layers
	}
	if len(o.filters.values("label"))+len(o.filters.values("label!")) > 0 {
		sel.Facts |= store.Labels
	}
	if patterns := o.filters.values("reference"); len(patterns) > 0 {
		sel.Named = func(r ref.Ref) bool {
			return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, r) })
		}
	}
	return sel
}

// Docker's own formats.
const (
	imagesIDs          = "{{.ID}}"
	imagesTable        = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}" + imagesCreated
	imagesTableDigests = "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}" + imagesCreated
	imagesCreated      = "\t{{if .CreatedSince }}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}"
)

// imagesFormat is the template to print with: the flag's, the user's own from
// docker's config.json, or docker's table.
func (a *App) imagesFormat(o *imagesOptions) string {
	format := o.format
	if format == "" && !o.quiet {
		format = a.configured("imagesFormat")
	}
	switch {
	case format == "" && o.quiet, format == "table" && o.quiet:
		return imagesIDs
	case (format == "" || format == "table") && o.digests:
		return imagesTableDigests
	case format == "" || format == "table":
		return imagesTable
	case strings.HasPrefix(format, "table") && o.digests && !strings.Contains(format, "{{.Digest}}"):
		return format + "\t{{.Digest}}"
	}
	return format
}

// imageRows makes a row for each name of an image: one for each tag and, where
// digests are shown, for each digest of the tag's repository; one for each
// repository that knows only its digest; or one without a name.
func imageRows(img *store.Image, o *imagesOptions, withDigests bool) []*imageRow {
	row := func(repository, tag, digest string) *imageRow {
		r := &imageRow{
			Repository: repository, Tag: tag, Digest: digest,
			ID:         shortID(img.ID, o.noTrunc),
			Size:       shortSize(img.Size),
			Containers: "N/A", SharedSize: "N/A", UniqueSize: "N/A",
		}
		if o.inFull {
			r.VirtualSize = humanSize(img.Size)
			r.CreatedAt = img.Created.Local().Truncate(time.Second).String()
		}
		if !img.Created.IsZero() {
			r.CreatedSince = ago(img.Created)
		}
		return r
	}

	var rows []*imageRow
	for _, n := range img.Names {
		count := len(rows)
		if withDigests {
			for _, d := range img.Digests {
				if d.Repository() == n.Repository() {
					rows = append(rows, row(n.FamiliarName(), n.Tag, string(d.Digest)))
				}
			}
		}
		if len(rows) == count {
			rows = append(rows, row(n.FamiliarName(), n.Tag, none))
		}
	}
	last := ""
	for _, d := range img.Digests {
		tagged := slices.ContainsFunc(img.Names, func(n ref.Ref) bool { return n.Domain == d.Domain && n.Path == d.Path })
		if tagged || !withDigests && d.Repository() == last {
			continue
		}
		last = d.Repository()
		digest := string(d.Digest)
		if !withDigests {
			digest = none
		}
		rows = append(rows, row(d.FamiliarName(), none, digest))
	}
	if len(rows) == 0 {
		rows = append(rows, row(none, none, none))
	}
	return rows
}

// none stands for a name, tag or digest that is not there.
const none = "<none>"

// shortID is docker's twelve digits of an ID, or all of it.
func shortID(d oci.Digest, whole bool) string {
	if whole {
		return string(d)
	}
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}

// humanSize is docker's size of four digits, shortSize the one of three that
// images have.
func humanSize(n int64) string { return units.HumanSize(float64(n)) }
func shortSize(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

func ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

// imageFilter makes the filter of `images --filter`. Filters of different keys
// must all fit; of one key's several values any, but all of the labels.
func imageFilter(ctx context.Context, s *store.Store, fs filters) (func(*store.Image) bool, error) {
	if err := fs.check("before", "dangling", "label", "label!", "pinned", "reference", "since", "until"); err != nil {
		return nil, err
	}
	var tests []func(*store.Image) bool
	add := func(t func(*store.Image) bool) { tests = append(tests, t) }
	if v := fs.values("dangling"); len(v) > 0 {
		want, err := fs.boolean("dangling")
		if err != nil {
			return nil, err
		}
		add(func(i *store.Image) bool { return (len(i.Names) == 0 && len(i.Digests) == 0) == want })
	}
	if v := fs.values("pinned"); len(v) > 0 {
		want, err := fs.boolean("pinned")
		if err != nil {
			return nil, err
		}
		add(func(i *store.Image) bool { return keepPinned(i, want) })
	}
	for _, name := range fs.values("before") {
		img, err := findImage(ctx, s, name)
		if err != nil {
			return nil, err
		}
		add(func(i *store.Image) bool { return i.Created.Before(img.Created) })
	}
	for _, name := range fs.values("since") {
		img, err := findImage(ctx, s, name)
		if err != nil {
			return nil, err
		}
		add(func(i *store.Image) bool { return i.Created.After(img.Created) })
	}
	for _, text := range fs.values("until") {
		t, err := timestamp(text, time.Now())
		if err != nil {
			return nil, daemon(err)
		}
		add(func(i *store.Image) bool { return i.Created.Before(t) })
	}
	for _, l := range fs.values("label") {
		add(func(i *store.Image) bool { return hasLabel(i.Labels, l) })
	}
	for _, l := range fs.values("label!") {
		add(func(i *store.Image) bool { return !hasLabel(i.Labels, l) })
	}
	patterns := fs.values("reference")
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return nil, daemonf("%w", err)
		}
	}
	return func(i *store.Image) bool {
		for _, fits := range tests {
			if !fits(i) {
				return false
			}
		}
		return len(patterns) == 0 || keepNames(i, patterns)
	}, nil
}

// keepPinned leaves an image only the names that are pinned or not, as wanted,
// and tells whether there is anything left to show.
func keepPinned(i *store.Image, want bool) bool {
	if i.Pinned || len(i.PinnedNames) == 0 {
		return i.Pinned == want
	}
	i.Names = slices.DeleteFunc(slices.Clone(i.Names), func(r ref.Ref) bool { return slices.Contains(i.PinnedNames, r) != want })
	i.Digests = nil // of the repository, not of the name
	return len(i.Names) > 0
}

// keepNames leaves an image only the names that fit a pattern, and tells
// whether any does.
func keepNames(i *store.Image, patterns []string) bool {
	misses := func(r ref.Ref) bool {
		return !slices.ContainsFunc(patterns, func(p string) bool { return matches(p, r) })
	}
	i.Names = slices.DeleteFunc(slices.Clone(i.Names), misses)
	i.Digests = slices.DeleteFunc(slices.Clone(i.Digests), misses)
	return len(i.Names)+len(i.Digests) > 0
}

// matches is docker's match of a name: the pattern fits the whole short name,
// or that without its tag; where the pattern says so, the canonical one.
func matches(pattern string, r ref.Ref) bool {
	names := []string{r.Familiar(), r.FamiliarName()}
	if strings.HasPrefix(pattern, "docker.io/") {
		names = append(names, r.String(), r.Repository())
	}
	for _, name := range names {
		if ok, _ := path.Match(pattern, name); ok {
			return true
		}
	}
	return false
}

func hasLabel(labels map[string]string, want string) bool {
	key, value, valued := strings.Cut(want, "=")
	got, ok := labels[key]
	return ok && (!valued || got == value)
}

// findImage is s.Find with docker's words where there is none.
func findImage(ctx context.Context, s *store.Store, name string) (*store.Image, error) {
	img, err := s.Find(ctx, name)
	if err != nil {
		return nil, notFound(name, err)
	}
	return img, nil
}

// notFound says docker's "No such image: NAME:TAG" where err is about an image
// that is not there.
func notFound(name string, err error) error {
	if !isNotFound(err) {
		return daemon(err)
	}
	shown := name
	if oci.Digest("sha256:"+name).Validate() == nil {
		shown = "sha256:" + name
	} else if r, err := ref.ParseImage(name); err == nil {
		shown = r.Familiar()
	}
	return &Failure{Daemon: true, Err: fmt.Errorf("No such image: %s%w", shown, oci.Unsaid(oci.ErrNotFound))}
}

// configured is a string of docker's config.json, "" where it has none.
func (a *App) configured(key string) string {
	var all map[string]json.RawMessage
	var value string
	if json.Unmarshal(a.configFile(), &all) == nil {
		_ = json.Unmarshal(all[key], &value)
	}
	return value
}
