package store_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

// A dry run decides in memory, the prune of a few images by queries: on random
// stores both must come to the same, whatever shares what, is held by records,
// waits, is an index or refers to something.
func TestPruneDryEqualsReal(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	ctx := t.Context()
	s := open(t, t.TempDir())
	for round := range 25 {
		for range 1 + r.IntN(5) {
			grow(t, s, r)
		}
		all := images(t, s)
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		p := store.Prune{Images: all[:r.IntN(len(all)+1)], Now: r.IntN(3) == 0, Dry: true}
		for i := range p.Images { // sometimes not all of its names
			if im := &p.Images[i]; len(im.Names) > 1 && r.IntN(3) == 0 {
				im.Names = im.Names[:1]
			}
		}
		dry, err := s.Prune(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		if after := images(t, s); len(after) != len(all) {
			t.Fatalf("round %d: a dry run changed %d images to %d", round, len(all), len(after))
		}
		p.Dry = false
		done, err := s.Prune(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := pruned(dry), pruned(done); a != b {
			t.Fatalf("round %d, now %v:\ndry  %s\nreal %s", round, p.Now, a, b)
		}
		var shares int64
		for _, n := range dry.Shares {
			shares += n
		}
		if shares > dry.Bytes+dry.Waiting || len(dry.Rest) == 0 && shares != dry.Bytes+dry.Waiting {
			t.Errorf("round %d: the images' shares are %d, all together %d + %d", round, shares, dry.Bytes, dry.Waiting)
		}
	}
	sound(t, s)
}

// grow adds an image, an index, something that refers to an image, or a record.
func grow(t *testing.T, s *store.Store, r *rand.Rand) {
	t.Helper()
	ctx := t.Context()
	names := []string{}
	for range r.IntN(3) {
		names = append(names, fmt.Sprintf("r%d:t%d", r.IntN(3), r.IntN(6)))
	}
	im := randomImage(r)
	switch r.IntN(6) {
	case 0:
		put(t, ctx, s, ocitest.TwoPlatforms(), names...)
	case 1:
		put(t, ctx, s, im, names...)
		put(t, ctx, s, ocitest.Artifact(im.Target, "application/x", fmt.Sprint(r.IntN(3))))
	case 2:
		put(t, ctx, s, im, names...)
		held := im.Blobs[r.IntN(len(im.Blobs))].Digest
		if err := s.PutRecord(ctx, store.Record{Bucket: "cache", Key: fmt.Sprint(r.IntN(4)), Holds: []oci.Digest{held, digest.FromString("nowhere")}}); err != nil {
			t.Fatal(err)
		}
	default:
		put(t, ctx, s, im, names...)
	}
}

// pruned says what a prune did, in one order.
func pruned(p *store.Pruned) string {
	text := ""
	for _, list := range [][]oci.Digest{p.Manifests, p.Configs, p.Blobs, p.Layers, p.Dead} {
		list = slices.Clone(list)
		slices.Sort(list)
		text += fmt.Sprintln(slices.Compact(list))
	}
	for _, id := range slices.Sorted(maps.Keys(p.Untagged)) {
		text += fmt.Sprintln(id, slices.SortedFunc(slices.Values(p.Untagged[id]), func(a, b ref.Ref) int { return cmp.Compare(a.String(), b.String()) }))
	}
	return text + fmt.Sprintln(p.Bytes, p.Waiting)
}
