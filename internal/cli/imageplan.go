package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// prunePlan is the file of `image prune --plan`: what to delete, and nothing
// else. Names are canonical.
type prunePlan struct {
	Version int            `json:"version"`
	Created time.Time      `json:"created"`
	Bytes   int64          `json:"bytes"`             // that reclaiming it all frees
	Images  []plannedImage `json:"images"`            //
	Content []oci.Digest   `json:"content,omitempty"` // that no image needs
}

type plannedImage struct {
	ID      oci.Digest `json:"id"`
	Names   []string   `json:"names,omitempty"`   // that go
	Digests []string   `json:"digests,omitempty"` // of repositories, that go
	Stays   []string   `json:"stays,omitempty"`   // the image's other names
	Bytes   int64      `json:"bytes"`
}

// shown is what people call the image.
func (p *plannedImage) shown() string {
	if len(p.Names) > 0 {
		return p.Names[0]
	}
	return string(p.ID)
}

// writePlan writes what p would do.
func (a *App) writePlan(ctx context.Context, s *store.Store, file string, p store.Prune) error {
	p.Dry = true
	first, err := s.Prune(ctx, p)
	if err != nil {
		return daemon(err)
	}
	plan := prunePlan{Version: 1, Created: time.Now().UTC(), Images: []plannedImage{}, Content: first.Rest}
	all, err := s.Images(ctx)
	if err != nil {
		return daemon(err)
	}
	now := byID(all)
	for i := range p.Images {
		img := &p.Images[i]
		pl := plannedImage{ID: img.ID, Names: canonical(img.Names), Digests: canonical(img.Digests), Bytes: first.Shares[i]}
		if cur := now[img.ID]; cur != nil {
			for _, n := range canonical(cur.Names) {
				if !slices.Contains(pl.Names, n) {
					pl.Stays = append(pl.Stays, n)
				}
			}
		}
		plan.Images = append(plan.Images, pl)
	}
	// Once more as --apply will do it, which leaves alone what came since.
	p.All, p.Content = false, plan.Content
	done, err := s.Prune(ctx, p)
	if err != nil {
		return daemon(err)
	}
	plan.Bytes = done.Bytes + done.Waiting
	return writeFile(file, 0o600, func(w io.Writer) error { return writeIndented(w, plan, "  ") })
}

func canonical(refs []ref.Ref) []string {
	out := make([]string, len(refs))
	for i, r := range refs {
		out[i] = r.String()
	}
	return out
}

func byID(images []store.Image) map[oci.Digest]*store.Image {
	m := map[oci.Digest]*store.Image{}
	for i := range images {
		m[images[i].ID] = &images[i]
	}
	return m
}

func readPlan(file string) (*prunePlan, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var plan prunePlan
	if err := json.Unmarshal(b, &plan); err != nil {
		return nil, fmt.Errorf("%s is no plan of image prune: %w", file, err)
	}
	if plan.Version != 1 {
		return nil, fmt.Errorf("%s is no plan of image prune that this strake knows: its version is %d", file, plan.Version)
	}
	for _, d := range plan.Content {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("%s: content %q: %w", file, d, err)
		}
	}
	return &plan, nil
}

// choosePlanned returns what is still as planned, and says what is not and why.
func (a *App) choosePlanned(ctx context.Context, s *store.Store, plan *prunePlan) ([]store.Image, error) {
	used, err := usedImages(ctx, s)
	if err != nil {
		return nil, err
	}
	all, err := s.Images(ctx)
	if err != nil {
		return nil, daemon(err)
	}
	now := byID(all)
	var out []store.Image
	for _, pl := range plan.Images {
		img := now[pl.ID]
		if why := changedSince(plan, &pl, img, used[pl.ID]); why != "" {
			a.skipped(pl.shown(), why)
			continue
		}
		chosen := *img
		chosen.Names = intersect(img.Names, pl.Names)
		chosen.Digests = intersect(img.Digests, pl.Digests)
		for _, n := range pl.Names {
			if !slices.Contains(canonical(chosen.Names), n) {
				a.skipped(n, "it was moved or removed since")
			}
		}
		if len(pl.Names)+len(pl.Digests) > 0 && len(chosen.Names)+len(chosen.Digests) == 0 {
			continue
		}
		out = append(out, chosen)
	}
	return out, nil
}

// changedSince says why an image that was planned to go has to stay, or "".
func changedSince(plan *prunePlan, pl *plannedImage, img *store.Image, containers int) string {
	switch {
	case img == nil:
		return "it is gone already"
	case containers > 0:
		return "a container uses it"
	case img.Pinned || len(img.PinnedNames) > 0:
		return "it is pinned"
	}
	for _, n := range img.Names {
		if !slices.Contains(pl.Names, n.String()) && !slices.Contains(pl.Stays, n.String()) {
			return "it was tagged " + n.Familiar() + " since"
		}
	}
	if img.Used.After(plan.Created) {
		return "it was used since"
	}
	return ""
}

func intersect(refs []ref.Ref, names []string) []ref.Ref {
	return slices.DeleteFunc(slices.Clone(refs), func(r ref.Ref) bool { return !slices.Contains(names, r.String()) })
}

func (a *App) skipped(what, why string) {
	fmt.Fprintf(a.Err, "Skipped: %s: %s\n", strings.TrimPrefix(strings.TrimPrefix(what, "docker.io/library/"), "docker.io/"), why)
}

// stillThere says which images could not go because another process has them.
func (a *App) stillThere(ctx context.Context, s *store.Store, images []store.Image) error {
	all, err := s.Images(ctx)
	if err != nil {
		return daemon(err)
	}
	now := byID(all)
	for _, img := range images {
		if cur := now[img.ID]; cur != nil && len(cur.Names)+len(cur.Digests) == 0 {
			a.skipped(string(img.ID), "another process is using it")
		}
	}
	return nil
}
