package cli

import (
	"context"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/remote"
)

type searchOptions struct {
	limit   int
	noTrunc bool
	format  string
	filters filters
}

func (a *App) searchCommand() *cobra.Command {
	var o searchOptions
	cmd := &cobra.Command{
		Use:   "search [OPTIONS] TERM",
		Short: "Search Docker Hub for images",
		Long: `Search Docker Hub for images or, with HOST/TERM, another registry: by the same
API where it has that, else by the names in its catalog.`,
		Example: `  strake search --filter is-official=true nginx
  strake search registry.example.com/team`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.search(cmd.Context(), args[0], &o) },
	}
	fs := cmd.Flags()
	fs.VarP(&o.filters, "filter", "f", "Show only what fits (is-automated=, is-official=, stars=)")
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.IntVar(&o.limit, "limit", 0, "Max number of search results (1 to 100; 25 if not given)")
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "Don't truncate output")
	return cmd
}

// searchRow is a line of `search`; its fields are the placeholders, in the
// order in which docker's JSON has them.
type searchRow struct {
	Description string
	IsOfficial  string
	Name        string
	StarCount   string

	automated string
}

// IsAutomated is no longer in docker's JSON, but in people's templates.
func (r *searchRow) IsAutomated() string { return r.automated }

func (a *App) search(ctx context.Context, what string, o *searchOptions) error {
	fits, err := o.fits()
	if err != nil {
		return err
	}
	limit := o.limit
	if limit == 0 {
		limit = 25
	}
	if limit < 1 || limit > 100 {
		return daemonf("limit %d is outside the range of [1, 100]", limit)
	}
	if strings.HasPrefix(what, "http://") || strings.HasPrefix(what, "https://") {
		return daemonf("invalid repository name: repository name (%s) should not have a scheme", what)
	}
	domain, text := splitSearch(what)
	found, err := a.Remote().Search(ctx, domain, text, limit)
	if err != nil {
		return daemon(err)
	}
	format := o.format
	table := format == "" || format == "table"
	if table {
		format = "table {{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}"
	}
	var rows []*searchRow
	for _, f := range found {
		if !fits(&f) {
			continue
		}
		name := f.Name
		if a.name != "docker" && domain != "docker.io" && !strings.HasPrefix(name, domain+"/") {
			name = domain + "/" + name // as it can be pulled
		}
		rows = append(rows, o.row(name, &f, format))
	}
	header := term.Header{"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL", "IsAutomated": "AUTOMATED"}
	return printRows(a, "*registry.searchContext", format, header, rows)
}

func (o *searchOptions) row(name string, f *remote.Found, format string) *searchRow {
	// What comes from elsewhere does not steer the terminal.
	description := printable(f.Description)
	if !o.noTrunc {
		description = ellipsis(description, 45)
	}
	r := &searchRow{Name: oneWord(name), Description: description, StarCount: strconv.Itoa(f.Stars)}
	if format == "json" {
		r.IsOfficial, r.automated = strconv.FormatBool(f.Official), strconv.FormatBool(f.Automated)
		return r
	}
	if f.Official {
		r.IsOfficial = "[OK]"
	}
	if f.Automated {
		r.automated = "[OK]"
	}
	return r
}

// printable is s without what would steer a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

func oneWord(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.IsSpace(r) {
			return -1
		}
		return r
	}, s)
}

func (o *searchOptions) fits() (func(*remote.Found) bool, error) {
	if err := o.filters.check("is-automated", "is-official", "stars"); err != nil {
		return nil, err
	}
	stars := 0
	for _, v := range o.filters.values("stars") {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, daemonf("invalid filter 'stars=%s': %w", v, err)
		}
		stars = max(stars, n)
	}
	type test struct{ given, want bool }
	tests := map[string]test{}
	for _, key := range []string{"is-automated", "is-official"} {
		if len(o.filters.values(key)) > 0 {
			want, err := o.filters.boolean(key)
			if err != nil {
				return nil, err
			}
			tests[key] = test{true, want}
		}
	}
	return func(f *remote.Found) bool {
		for key, is := range map[string]bool{"is-automated": f.Automated, "is-official": f.Official} {
			if t := tests[key]; t.given && t.want != is {
				return false
			}
		}
		return f.Stars >= stars
	}, nil
}

// splitSearch parts HOST/TERM; without a host it is Docker Hub's.
func splitSearch(s string) (domain, text string) {
	host, rest, ok := strings.Cut(s, "/")
	if ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		if host == "docker.io" || host == "index.docker.io" {
			return "docker.io", strings.TrimPrefix(rest, "library/")
		}
		return host, rest
	}
	return "docker.io", strings.TrimPrefix(s, "library/")
}
