package cli

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci/ref"
)

// prunePolicy is what `image prune` keeps, or takes, by rules of ours.
type prunePolicy struct {
	keep     int
	lastUsed string
	patterns []string // the arguments: only tags that fit one

	unused    time.Duration // of lastUsed
	keepGiven func() bool
}

func (p *prunePolicy) addFlags(fs *pflag.FlagSet) {
	fs.IntVar(&p.keep, "keep", 0, "Keep the newest n tags of each repository, remove the others (implies -a)")
	p.keepGiven = func() bool { return fs.Changed("keep") }
	fs.StringVar(&p.lastUsed, "keep-last-used", "", `Keep what was used this recently, e.g. "30d": pulled, built, tagged, run, built from or pushed (implies -a)`)
}

// check reads the flags.
func (p *prunePolicy) check() (err error) {
	if p.keep < 0 || p.keep == 0 && p.keepGiven() {
		return fmt.Errorf("invalid argument \"%d\" for \"--keep\" flag: it is the number of tags to keep, 1 or more", p.keep)
	}
	if p.lastUsed != "" {
		if p.unused, err = longDuration(p.lastUsed); err != nil || p.unused < 0 {
			return fmt.Errorf("invalid argument %q for \"--keep-last-used\" flag: it is a duration such as 12h or 30d", p.lastUsed)
		}
	}
	for _, g := range p.patterns {
		if _, err := path.Match(g, ""); err != nil {
			return fmt.Errorf("invalid pattern %q: %w", g, err)
		}
	}
	return nil
}

// any tells whether there is a rule.
func (p *prunePolicy) any() bool { return p.keep > 0 || p.lastUsed != "" || len(p.patterns) > 0 }

// sentence says the rules, for the question before.
func (p *prunePolicy) sentence() string {
	var but []string
	if p.keep > 0 {
		but = append(but, fmt.Sprintf("the newest %d tags of each repository", p.keep))
	}
	if p.lastUsed != "" {
		but = append(but, "what was used in the last "+p.lastUsed)
	}
	text := "WARNING! This will remove all images without at least one container associated to them"
	if len(p.patterns) > 0 {
		text = "WARNING! This will remove all tags that fit " + strings.Join(p.patterns, " ") + " of images without at least one container associated to them"
	}
	if len(but) > 0 {
		text += ", but for " + strings.Join(but, " and ")
	}
	return text + "."
}

// narrow leaves of the images, with only those names, what the rules let go.
// all are the images of the store: the newest tags are counted among them.
func (p *prunePolicy) narrow(images, all []store.Image) []store.Image {
	kept := p.newest(all)
	var out []store.Image
	for _, img := range images {
		if p.lastUsed != "" && time.Since(img.Used) < p.unused {
			continue
		}
		goes := slices.DeleteFunc(slices.Clone(img.Names), func(r ref.Ref) bool { return kept[r] || !p.fits(r) })
		if len(goes) == 0 && (len(img.Names) > 0 || len(p.patterns) > 0) {
			continue
		}
		if len(goes) < len(img.Names) {
			img.Digests = withoutTags(&img, goes)
			img.Names = goes
		}
		out = append(out, img)
	}
	return out
}

func (p *prunePolicy) fits(r ref.Ref) bool {
	return len(p.patterns) == 0 || slices.ContainsFunc(p.patterns, func(g string) bool { return matches(g, r) })
}

// newest are the tags that --keep keeps, of those that fit.
func (p *prunePolicy) newest(all []store.Image) map[ref.Ref]bool {
	type tag struct {
		ref ref.Ref
		img *store.Image
	}
	if p.keep == 0 {
		return nil
	}
	repos := map[string][]tag{}
	for i := range all {
		for _, n := range all[i].Names {
			if p.fits(n) {
				repos[n.Repository()] = append(repos[n.Repository()], tag{n, &all[i]})
			}
		}
	}
	kept := map[ref.Ref]bool{}
	for _, tags := range repos {
		slices.SortFunc(tags, func(a, b tag) int {
			return cmp.Or(b.img.Created.Compare(a.img.Created), b.img.Tagged.Compare(a.img.Tagged), cmp.Compare(b.ref.Tag, a.ref.Tag))
		})
		for _, t := range tags[:min(p.keep, len(tags))] {
			kept[t.ref] = true
		}
	}
	return kept
}

// withoutTags are the repositories' digests of img that go with the tags: of
// repositories that have none left then.
func withoutTags(img *store.Image, goes []ref.Ref) []ref.Ref {
	stays, went := map[string]bool{}, map[string]bool{}
	for _, n := range img.Names {
		if slices.Contains(goes, n) {
			went[n.Repository()] = true
		} else {
			stays[n.Repository()] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(img.Digests), func(d ref.Ref) bool {
		return stays[d.Repository()] || !went[d.Repository()]
	})
}

// selectImages lists what o asks to prune.
func selectImages(ctx context.Context, s *store.Store, o *imagePruneOptions, all bool) ([]store.Image, error) {
	images, err := unusedImages(ctx, s, all || o.any(), o.dry || o.plan != "", o.filters)
	if err != nil || !o.any() {
		return images, err
	}
	every, err := s.Images(ctx)
	if err != nil {
		return nil, daemon(err)
	}
	return o.narrow(images, every), nil
}
