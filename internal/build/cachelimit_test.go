package build

import (
	"strconv"
	"testing"

	"github.com/strake-project/strake/internal/content/store"
)

// What a cache mount takes counts in the estimate with which the next build
// decides whether to look at the disk, as it does in that build's own.
func TestLimitRemembersMounts(t *testing.T) {
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	e := New(Options{Store: s})
	defer e.Close()
	e.added.Store(true)
	const size = 1 << 40
	if err := s.PutRecord(t.Context(), store.Record{Bucket: bucketMounts, Key: "/mount", Value: []byte(strconv.Itoa(size))}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Limit(t.Context(), CacheLimit{Max: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	r, err := s.GetRecord(t.Context(), bucketLimit, "estimate")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(string(r.Value)); err != nil || n != size {
		t.Errorf("the estimate that is remembered: %q, %v", r.Value, err)
	}
}
