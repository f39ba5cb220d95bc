package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

type outdatedOptions struct {
	dockerfiles      []string
	all, semver      bool
	quiet, checkOnly bool
	format           string
}

func (a *App) outdatedCommand() *cobra.Command {
	var o outdatedOptions
	cmd := &cobra.Command{
		Use:   "outdated [OPTIONS] [IMAGE...]",
		Short: "List images whose tag has moved in its registry",
		Long: `Ask the registries where the tags of local images point now, and list those
that have moved: of the images named, or of all that came from a registry. With
-f the images of a Dockerfile's FROM lines are asked for instead: those pinned
by digest are compared with what the tag beside the digest points at, others
with the local image. No content is fetched: a HEAD request for each tag.`,
		Example: `  strake outdated
  strake outdated --exit-code debian:12 golang:1.24
  strake outdated -f Dockerfile -f web/Dockerfile --semver`,
		Args: minArgs(0),
		RunE: func(cmd *cobra.Command, args []string) error { return a.outdated(cmd.Context(), args, &o) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "List also what is up to date")
	fs.BoolVar(&o.checkOnly, "exit-code", false, "Exit with 2 if something is outdated")
	fs.StringArrayVarP(&o.dockerfiles, "file", "f", nil, "Look at the FROM lines of this Dockerfile")
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Print only the names")
	fs.BoolVar(&o.semver, "semver", false, "Look also for tags with a newer version")
	return cmd
}

// outdatedRow is a line of `outdated`; its fields are the placeholders.
type outdatedRow struct {
	Image      string
	Where      string `json:",omitempty"` // FILE:LINE of a Dockerfile
	Current    string // digest; "" where there is none
	Newest     string // digest in the registry
	Age        string // since the local tag was set
	Status     string // "outdated", "up to date", "not local", "error"
	NewestTags string `json:",omitempty"`

	ref ref.Ref
	err error
}

func (a *App) outdated(ctx context.Context, args []string, o *outdatedOptions) error {
	if len(args) > 0 && len(o.dockerfiles) > 0 {
		return errors.New("name images or Dockerfiles (-f), not both")
	}
	s, err := a.Store()
	if err != nil {
		return err
	}
	var rows []*outdatedRow
	if len(o.dockerfiles) > 0 {
		for _, f := range o.dockerfiles {
			more, err := fromLines(f)
			if err != nil {
				return err
			}
			rows = append(rows, more...)
		}
	} else if rows, err = localTags(ctx, s, args); err != nil {
		return err
	}
	if err := a.askRegistries(ctx, s, rows, o); err != nil {
		return daemon(err)
	}
	return a.printOutdated(rows, o)
}

// localTags are the images named, or all that a registry is known to have.
func localTags(ctx context.Context, s *store.Store, args []string) ([]*outdatedRow, error) {
	var rows []*outdatedRow
	for _, arg := range args {
		r, err := ref.ParseImage(arg)
		if err != nil {
			return nil, daemon(err)
		}
		if _, err := findImage(ctx, s, arg); err != nil {
			return nil, err
		}
		rows = append(rows, &outdatedRow{ref: r})
	}
	if len(args) > 0 {
		return rows, nil
	}
	all, err := s.Images(ctx)
	if err != nil {
		return nil, daemon(err)
	}
	for _, img := range all {
		for _, n := range img.Names {
			if slices.ContainsFunc(img.Digests, func(d ref.Ref) bool { return d.Repository() == n.Repository() }) {
				rows = append(rows, &outdatedRow{ref: n})
			}
		}
	}
	return rows, nil
}

// fromLines are the images of a Dockerfile's FROM lines, as its ARGs' defaults
// name them; stages and scratch are none.
func fromLines(file string) ([]*outdatedRow, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	ast, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	stages, args, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	lex := shell.NewLex(ast.EscapeToken)
	var env []string
	for _, cmd := range args {
		for _, kv := range cmd.Args {
			if kv.Value != nil {
				v, _, err := lex.ProcessWord(*kv.Value, shell.EnvsFromSlice(env))
				if err != nil {
					return nil, fmt.Errorf("%s: %w", file, err)
				}
				env = append(env, kv.Key+"="+v)
			}
		}
	}
	var rows []*outdatedRow
	known := map[string]bool{"scratch": true}
	for _, st := range stages {
		name, _, err := lex.ProcessWord(st.BaseName, shell.EnvsFromSlice(env))
		where := fmt.Sprintf("%s:%d", file, st.Location[0].Start.Line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		if !known[strings.ToLower(name)] {
			row := &outdatedRow{Where: where}
			if row.ref, err = ref.ParseImage(name); err != nil {
				row.Image, row.Status, row.err = name, "error", fmt.Errorf("%s: FROM %s: %w", where, name, err)
			}
			rows = append(rows, row)
		}
		known[strings.ToLower(st.Name)] = true
	}
	return rows, nil
}

// askRegistries fills in the rows, several at a time.
func (a *App) askRegistries(ctx context.Context, s *store.Store, rows []*outdatedRow, o *outdatedOptions) error {
	client := a.Remote()
	var g errgroup.Group
	g.SetLimit(parallelTags)
	for _, row := range rows {
		if row.err != nil {
			continue
		}
		g.Go(func() error {
			row.Image = row.ref.Familiar()
			current, at := pointsAt(ctx, s, row.ref)
			if row.ref.Digest != "" {
				current, row.Image = []oci.Digest{row.ref.Digest}, row.ref.WithTag(row.ref.Tag).Familiar()
				if row.ref.Tag == "" {
					row.Image, row.Status = row.ref.Familiar(), "up to date" // nothing to follow
					row.Current = string(row.ref.Digest)
					return nil
				}
			}
			if len(current) > 0 {
				row.Current = string(current[0])
			}
			if !at.IsZero() {
				row.Age = ago(at)
			}
			repo := client.Repository(row.ref)
			d, err := repo.Head(ctx, row.ref.WithTag(row.ref.Tag))
			if err != nil {
				row.Status, row.err = "error", daemonf("%s: %w", row.Image, err)
				return ctx.Err()
			}
			row.Newest = string(d.Digest)
			switch {
			case len(current) == 0:
				row.Status = "not local"
			case slices.Contains(current, d.Digest):
				row.Status, row.Current = "up to date", row.Newest
			default:
				row.Status = "outdated"
			}
			if o.semver {
				row.NewestTags, row.err = newerTags(ctx, repo, row.ref)
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// pointsAt is what the local tag r points at, in the words of its registry: the
// manifest itself, or those that the repository is known to have for it.
func pointsAt(ctx context.Context, s *store.Store, r ref.Ref) (ds []oci.Digest, at time.Time) {
	img, err := s.Find(ctx, r.WithTag(r.Tag).String())
	if err != nil {
		return nil, at
	}
	for _, d := range img.Digests {
		if d.Repository() == r.Repository() {
			ds = append(ds, d.Digest)
		}
	}
	return append(ds, img.Target.Digest), img.Tagged
}

// newerTags are tags of the same form as r's with a higher version: the highest
// of each major version, three at most.
func newerTags(ctx context.Context, repo interface {
	Tags(context.Context, ref.Ref) ([]string, error)
}, r ref.Ref) (string, error) {
	mine, ok := parseVersion(r.Tag)
	if !ok {
		return "", nil
	}
	all, err := repo.Tags(ctx, r)
	if err != nil {
		return "", daemon(err)
	}
	var newer []string
	for _, t := range all {
		v, ok := parseVersion(t)
		if ok && v.suffix == mine.suffix && strings.Count(t, ".") == strings.Count(r.Tag, ".") && compareTags(t, r.Tag) > 0 {
			newer = append(newer, t)
		}
	}
	slices.SortFunc(newer, func(x, y string) int { return compareTags(y, x) })
	return strings.Join(newer[:min(3, len(newer))], ", "), nil
}

func (a *App) printOutdated(rows []*outdatedRow, o *outdatedOptions) error {
	var errs []error
	moved := false
	var shown []*outdatedRow
	for _, r := range rows {
		if r.err != nil {
			errs = append(errs, r.err)
		}
		moved = moved || r.Status == "outdated" || r.NewestTags != ""
		if o.all || r.Status == "outdated" || r.Status == "not local" && len(o.dockerfiles) > 0 || r.NewestTags != "" {
			shown = append(shown, r)
		}
	}
	format := o.format
	switch {
	case format != "" && format != "table":
	case o.quiet:
		format = "{{.Image}}"
	default:
		if format = "table {{.Image}}\t{{.ShortCurrent}}\t{{.ShortNewest}}\t{{.Age}}\t{{.Status}}"; len(o.dockerfiles) > 0 {
			format = "table {{.Where}}\t" + strings.TrimPrefix(format, "table ")
		}
		if o.semver {
			format += "\t{{.NewestTags}}"
		}
	}
	header := term.Header{"Image": "IMAGE", "Where": "WHERE", "Current": "CURRENT", "Newest": "NEWEST", "ShortCurrent": "CURRENT", "ShortNewest": "NEWEST",
		"Age": "PULLED", "Status": "STATUS", "NewestTags": "NEWER TAGS"}
	err := term.PrintRows(a.Out, format, header, shown)
	if err = errors.Join(append([]error{err}, errs...)...); err == nil && moved && o.checkOnly {
		return exit(2)
	}
	return err
}

// ShortCurrent is Current's twelve digits.
func (r *outdatedRow) ShortCurrent() string { return shortDigest(r.Current) }

// ShortNewest is Newest's twelve digits.
func (r *outdatedRow) ShortNewest() string { return shortDigest(r.Newest) }

func shortDigest(s string) string { return shortName(strings.TrimPrefix(s, "sha256:")) }
