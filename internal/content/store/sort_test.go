package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/oci"
)

// Every image is there once, the newest first; the ID decides between equals.
func TestNewestFirst(t *testing.T) {
	for n := range 200 {
		all := make([]Image, n)
		for i := range all {
			all[i] = Image{ID: oci.Digest(fmt.Sprintf("%03d", i)), Created: time.Unix(rand.Int64N(20), rand.Int64N(3))}
		}
		want := slices.Clone(all)
		slices.SortFunc(want, func(a, b Image) int {
			if c := b.Created.Compare(a.Created); c != 0 {
				return c
			}
			return slices.Compare([]byte(a.ID), []byte(b.ID))
		})
		rand.Shuffle(n, func(i, j int) { all[i], all[j] = all[j], all[i] })
		if got := newestFirst(all); !slices.EqualFunc(got, want, func(a, b Image) bool { return a.ID == b.ID }) {
			t.Fatalf("%d images come as %v", n, got)
		}
	}
}
