package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

type doctorOptions struct {
	fix, quick bool
	format     string
}

func (a *App) doctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor [OPTIONS]",
		Short: "Find what is damaged in the store, say what is lost, and mend it",
		Long: `Find what is damaged in the store and say which images it concerns. All
content is read and its digest checked, and every unpacked layer is compared
with what it was made from; --quick compares only names and lengths.

With --fix, what can be mended is: a damaged or missing database is made again
from the blobs, the old database and the journal of names; damaged blobs are
fetched again by digest from the registries that have them; damaged trees are
unpacked again, or made again from the layer's table of contents. What cannot be
had again is named.

The exit code is 1 if something is wrong, or still wrong after --fix.`,
		Example: `  strake doctor
  strake doctor --quick
  strake doctor --fix`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context(), &o) },
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.fix, "fix", false, "Mend what can be mended")
	fs.BoolVar(&o.quick, "quick", false, "Read no content: compare the database with the names and lengths of files")
	fs.StringVar(&o.format, "format", "", formatHelp)
	return cmd
}

// finding is a line of what doctor found; its fields are the placeholders.
type finding struct {
	Digest string
	Images string // names, or IDs of images without one
	Lost   bool   // nothing can mend it here
	Mended bool
	Text   string

	problem store.Problem
	needed  *store.Needed
}

func (a *App) doctor(ctx context.Context, o *doctorOptions) error {
	if o.format == "table" {
		o.format = ""
	}
	s, found, err := a.openDamaged(ctx, o)
	if err != nil {
		return err
	}
	if s != nil {
		problems, err := a.examine(ctx, s, o)
		if err != nil {
			return daemon(err)
		}
		if s, problems, err = a.rebuildIf(ctx, s, problems, o, &found); err != nil {
			return err
		}
		more, err := a.diagnose(ctx, s, problems)
		if err != nil {
			return daemon(err)
		}
		if o.fix {
			if more, err = a.mend(ctx, s, more); err != nil {
				return daemon(err)
			}
		}
		found = append(found, more...)
	}
	return a.printFindings(found, o)
}

// openDamaged opens the store. Where its database does not let it, that is the
// first finding; it is made again if that is asked for, else there is no store.
func (a *App) openDamaged(ctx context.Context, o *doctorOptions) (*store.Store, []*finding, error) {
	s, err := a.Store()
	var damaged *store.DamagedError
	if !errors.As(err, &damaged) {
		return s, nil, err
	}
	f := &finding{Text: "the database strake.db " + damaged.What, Images: "all images"}
	if !o.fix {
		return nil, []*finding{f}, nil
	}
	s, err = a.rebuild(ctx, f)
	return s, []*finding{f}, err
}

func (a *App) rebuild(ctx context.Context, f *finding) (*store.Store, error) {
	root, err := a.Root()
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(a.Err, "Making the database again from the blobs")
	done, err := store.Rebuild(ctx, root, store.Options{Log: a.log})
	if err != nil {
		return nil, daemon(err)
	}
	f.Mended = true
	f.Text += fmt.Sprintf("; made again: %d blobs, %d manifests, %d unpacked layers, %d names, %d records", done.Blobs, done.Manifests, done.Layers, done.Names, done.Records)
	if done.Kept != "" {
		f.Text += "; the old one is kept as " + done.Kept
	}
	if !done.Salvaged {
		f.Text += "; what only it knew is lost: parts of the build cache and of the list of containers"
	}
	return a.Store()
}

// rebuildIf makes the database again where problems say that its rows
// contradict each other, and returns what is wrong then.
func (a *App) rebuildIf(ctx context.Context, s *store.Store, problems []store.Problem, o *doctorOptions, found *[]*finding) (*store.Store, []store.Problem, error) {
	isRows := func(p store.Problem) bool { return p.Kind == store.BadDatabase }
	if !o.fix || !slices.ContainsFunc(problems, isRows) {
		return s, problems, nil
	}
	f := &finding{Text: "the database contradicts itself", Images: "all images"}
	*found = append(*found, f)
	s.Close()
	a.store = nil
	s, err := a.rebuild(ctx, f)
	if err != nil {
		return nil, nil, err
	}
	problems, err = a.examine(ctx, s, o)
	return s, problems, daemon(err)
}

// examine takes a database that cannot be read on the way for one more problem.
func (a *App) examine(ctx context.Context, s *store.Store, o *doctorOptions) ([]store.Problem, error) {
	problems, err := s.Examine(ctx, !o.quick, a.examining(o))
	var damaged *store.DamagedError
	if errors.As(err, &damaged) {
		return append(problems, store.Problem{Kind: store.BadDatabase, Text: "the database strake.db " + damaged.What}), nil
	}
	return problems, err
}

// examining shows how much was read, on a terminal.
func (a *App) examining(o *doctorOptions) func(done, of int64) {
	if o.quick || !a.Err.Draws() {
		return nil
	}
	last := int64(-1)
	return func(done, of int64) {
		if percent := done * 100 / max(of, 1); percent != last {
			last = percent
			fmt.Fprintf(a.Err, "\rReading %s: %d%%\x1b[K", humanSize(of), percent)
			if done == of {
				fmt.Fprint(a.Err, "\r\x1b[K")
			}
		}
	}
}

// diagnose says what is lost with each problem.
func (a *App) diagnose(ctx context.Context, s *store.Store, problems []store.Problem) ([]*finding, error) {
	var all []*finding
	for _, p := range problems {
		f := &finding{Digest: string(p.Digest), Text: p.Text, problem: p}
		switch p.Kind {
		case store.BadBlob:
			f.Text = "damaged: " + strings.TrimPrefix(p.Text, "content ")
		case store.BadTree:
			f.Text = "damaged, unpacked: " + p.Text
		}
		if p.Kind != store.BadDatabase {
			var err error
			if f.needed, err = s.WhoNeeds(ctx, p.Digest); err != nil {
				return nil, err
			}
			f.Images = whoNeeds(f.needed)
		}
		all = append(all, f)
	}
	return all, nil
}

func whoNeeds(n *store.Needed) string {
	var who []string
	for _, r := range n.Names {
		who = append(who, r.Familiar())
	}
	for _, id := range n.Images {
		who = append(who, shortID(id, false))
	}
	kinds := map[string]int{}
	for _, r := range n.Records {
		kind := "build cache"
		if strings.HasPrefix(r.Bucket, "container") {
			kind = "container " + shortName(r.Key)
		}
		if kinds[kind]++; kinds[kind] == 1 {
			who = append(who, kind)
		}
	}
	return strings.Join(who, ", ")
}

func shortName(s string) string { return s[:min(12, len(s))] }

// mend mends one finding after the other: manifests first, since what they
// name is only known then.
func (a *App) mend(ctx context.Context, s *store.Store, found []*finding) ([]*finding, error) {
	ctx, release, err := s.Lease(ctx)
	if err != nil {
		return found, err
	}
	defer release()
	for round := 0; round < 4; round++ { // an index, its manifest, its config and layers
		slices.SortStableFunc(found, func(x, y *finding) int { return cmp.Compare(x.problem.Kind, y.problem.Kind) })
		for _, f := range found {
			if f.Mended || f.Lost || f.needed == nil {
				continue
			}
			if err := a.mendOne(ctx, s, f); err != nil {
				return found, err
			}
		}
		problems, err := s.Examine(ctx, false, nil)
		if err != nil {
			return found, err
		}
		seen := map[oci.Digest]bool{}
		for _, f := range found {
			seen[f.problem.Digest] = true
		}
		problems = slices.DeleteFunc(problems, func(p store.Problem) bool { return seen[p.Digest] })
		if len(problems) == 0 {
			break
		}
		more, err := a.diagnose(ctx, s, problems)
		if err != nil {
			return found, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// mendOne drops what is damaged and brings it again. Where that fails, f says
// so; an error is one that ends everything.
func (a *App) mendOne(ctx context.Context, s *store.Store, f *finding) error {
	if f.problem.Kind == store.BadTree {
		if made, err := s.Remake(ctx, f.problem.Digest); made || err != nil {
			f.Mended = made
			f.Text += "; made again from the layer's table of contents"
			return err
		}
	}
	d, other, err := s.Drop(ctx, f.problem)
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	if other {
		f.Mended = true
		f.Text += "; dropped: the store has another form of it"
		return nil
	}
	err = fmt.Errorf("no registry is known to have it")
	if d.MediaType == "" && d.Size == 0 {
		f.needed.Sources = nil
		err = fmt.Errorf("nothing says what it was")
	}
	for _, r := range f.needed.Sources {
		if err = a.fetchAgain(ctx, s, r, d); err == nil {
			f.Mended = true
			f.Text += "; fetched again from " + r.FamiliarName()
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if len(f.needed.Names)+len(f.needed.Images)+len(f.needed.Records) == 0 {
		f.Mended = true
		f.Text += "; dropped: nothing needs it"
		return s.Forget(ctx, f.problem.Digest)
	}
	f.Lost = true
	f.Text += fmt.Sprintf("; lost: %v", err)
	return nil
}

func (a *App) fetchAgain(ctx context.Context, s *store.Store, r ref.Ref, d oci.Descriptor) error {
	repo := a.Remote().Repository(r)
	if oci.IsManifest(d.MediaType) || oci.IsIndex(d.MediaType) {
		got, err := repo.Resolve(ctx, r.WithDigest(d.Digest))
		if err != nil {
			return err
		}
		d = got
	}
	from, err := repo.Open(ctx, d)
	if err != nil {
		return err
	}
	defer from.Close()
	return s.Put(ctx, d, from)
}

func (a *App) printFindings(found []*finding, o *doctorOptions) error {
	wrong := slices.DeleteFunc(slices.Clone(found), func(f *finding) bool { return f.Mended })
	if o.format != "" {
		if err := term.PrintRows(a.Out, o.format, term.Header{}, found); err != nil {
			return err
		}
	} else {
		const most = 200 // of a database whose every row is wrong
		for _, f := range found[:min(len(found), most)] {
			if f.Digest != "" {
				fmt.Fprint(a.Out, f.Digest, ": ")
			}
			fmt.Fprintln(a.Out, f.Text)
			if f.Images != "" {
				fmt.Fprintf(a.Out, "    needed by %s\n", f.Images)
			}
		}
	}
	switch {
	case len(wrong) > 0 && !o.fix:
		return &Failure{Code: 1, Err: fmt.Errorf("%s; `%s doctor --fix` mends what can be mended", plural(len(wrong), "problem"), a.name)}
	case len(wrong) > 0:
		return &Failure{Code: 1, Err: fmt.Errorf("%s left: pull or build these images again, or remove them with `%s rmi`", plural(len(wrong), "problem"), a.name)}
	case o.format == "" && len(found) == 0:
		fmt.Fprintln(a.Out, "The store is in order.")
	}
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
