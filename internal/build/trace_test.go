package build

import (
	"testing"
	"time"

	"github.com/strake-project/strake/internal/content/store"
)

func steps(texts ...string) []*tracedStep {
	var all []*tracedStep
	for _, t := range texts {
		all = append(all, &tracedStep{Name: "[app 1/9] " + t, Text: t})
	}
	for i, s := range all {
		s.Key = digestOf(s.Text, time.Now().String(), string(rune(i)))
	}
	return all
}

// Steps keep their like when others come and go between them.
func TestMatch(t *testing.T) {
	old := steps("COPY a /", "RUN one", "RUN two --flag", "COPY b /", "RUN end")
	now := steps("COPY a /", "RUN zero", "RUN one", "RUN two --other-flag", "RUN new", "RUN end", "USER x")
	want := map[int]int{0: 0, 2: 1, 3: 2, 5: 4}
	pairs := match(old, now)
	for i, n := range now {
		j, ok := want[i]
		switch {
		case !ok && pairs[n] != nil:
			t.Errorf("%s is new, but was taken for %s", n.Text, pairs[n].Text)
		case ok && pairs[n] != old[j]:
			t.Errorf("%s: got %v, want %s", n.Text, pairs[n], old[j].Text)
		}
	}
	for _, s := range now {
		s.Name = "[renamed 1/9] " + s.Text
	}
	if got := match(old, now)[now[0]]; got != old[0] {
		t.Errorf("in a renamed stage: got %v", got)
	}
}

func TestStaleTraces(t *testing.T) {
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	now := time.Now()
	for _, r := range []store.Record{
		{Bucket: bucketTraces, Key: "old", Used: now.Add(-31 * 24 * time.Hour)},
		{Bucket: bucketListings, Key: "old/sha256:1", Used: now},
		{Bucket: bucketTraces, Key: "young", Used: now},
		{Bucket: bucketListings, Key: "young/sha256:1", Used: now.Add(-99 * 24 * time.Hour)},
	} {
		if err := s.PutRecord(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	stale, err := staleTraces(t.Context(), s, now)
	if err != nil || len(stale) != 2 || stale[0].Key != "old" || stale[1].Key != "old/sha256:1" {
		t.Errorf("got %v, %v", stale, err)
	}
}
