package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

// remove is rmi of the only name of an image.
func remove(t testing.TB, s *store.Store, tag string, now bool) *store.Freed {
	t.Helper()
	img, err := s.Find(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	freed, err := s.Remove(store.WithOperation(t.Context(), "rmi"), store.Removal{Names: append([]ref.Ref{}, img.Names...), Image: img.ID, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return freed
}

func TestUndoRemove(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir())
	one, index := ocitest.One(), ocitest.TwoPlatforms()
	put(t, ctx, s, one, "one")
	put(t, ctx, s, index, "multi")
	before := lines(t, s)
	if f := remove(t, s, "multi", false); len(f.Manifests) != 3 || f.Bytes != 0 {
		t.Errorf("freed %+v; want three manifests hidden and no bytes", f)
	}
	if ok, err := s.Has(ctx, index.Target); ok || err != nil {
		t.Errorf("what was removed is there: %v", err)
	}
	collect(t, s)
	u, err := s.Undo(ctx, 0, false)
	if err != nil || len(u.Lost)+len(u.Moved) != 0 {
		t.Fatalf("Undo = %+v, %v", u, err)
	}
	if !hasAll(t, s, index) {
		t.Error("what was taken back is not whole")
	}
	after := lines(t, s)
	if len(after) != len(before) {
		t.Errorf("images are %v, want %v", after, before)
	}
	sound(t, s)
}

// What a later operation still needs is not lost with what was reclaimed, and
// what is lost is said.
func TestUndoAfterPartialReclaim(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir())
	put(t, ctx, s, ocitest.One(), "one")
	put(t, ctx, s, ocitest.Two(), "two")
	both := store.WithOperation(ctx, "rmi")
	for _, tag := range []string{"one", "two"} {
		img, err := s.Find(ctx, tag)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Remove(both, store.Removal{Names: img.Names, Image: img.ID}); err != nil {
			t.Fatal(err)
		}
	}
	ops, err := s.Operations(ctx, 1)
	if err != nil || len(ops) != 1 || !ops[0].Possible || ops[0].Bytes == 0 || len(ops[0].Names) != 2 {
		t.Fatalf("Operations = %+v, %v", ops, err)
	}
	// One of the two comes back by itself; the rest is reclaimed.
	put(t, ctx, s, ocitest.One(), "again")
	if f, err := s.Reclaim(ctx); err != nil || f.Bytes == 0 || f.Bytes > ops[0].Bytes {
		t.Fatalf("Reclaim = %+v, %v", f, err)
	}
	u, err := s.Undo(ctx, ops[0].ID, false)
	if err != nil {
		t.Fatal(err)
	}
	var lost []string
	for _, r := range u.Lost {
		if r.Ref.Tag != "" {
			lost = append(lost, r.Ref.Familiar())
		}
	}
	if strings.Join(lost, " ") != "two:latest" {
		t.Errorf("lost %v", lost)
	}
	if _, err := s.Find(ctx, "one"); err != nil {
		t.Error(err)
	}
	if _, err := s.Undo(ctx, ops[0].ID, false); !errors.Is(err, oci.ErrConflict) {
		t.Errorf("undone twice: %v", err)
	}
	sound(t, s)
}

// Two processes take operations back at once: each its own, or one of them
// hears that it was done.
func TestUndoTogether(t *testing.T) {
	ctx := t.Context()
	root := t.TempDir()
	s := open(t, root)
	put(t, ctx, s, ocitest.One(), "one")
	remove(t, s, "one", false)
	ops, err := s.Operations(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range errs {
		other := open(t, root)
		wg.Go(func() { _, errs[i] = other.Undo(context.Background(), ops[0].ID, false) })
	}
	wg.Wait()
	good := 0
	for _, err := range errs {
		if err == nil {
			good++
		} else if !errors.Is(err, oci.ErrConflict) {
			t.Error(err)
		}
	}
	if good != 1 || !hasAll(t, s, ocitest.One()) {
		t.Errorf("%d undid it; want one", good)
	}
	sound(t, s)
}

// A process that died between the decision to reclaim and the deletion leaves
// files that the next Collect of everything finds, and nothing half there.
func TestReclaimDies(t *testing.T) {
	ctx := t.Context()
	root := t.TempDir()
	s := open(t, root)
	one := ocitest.One()
	put(t, ctx, s, one, "one")
	saved := map[string][]byte{}
	for _, b := range one.Blobs {
		hex := b.Digest.Encoded()
		path := filepath.Join(root, "blobs/sha256", hex[:2], hex)
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		saved[path] = body
	}
	remove(t, s, "one", false)
	if _, err := s.Reclaim(ctx); err != nil {
		t.Fatal(err)
	}
	for path, body := range saved { // as if it had not come to the files
		if err := os.WriteFile(path, body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Undo(ctx, 0, false); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("what was reclaimed came back: %v", err)
	}
	sound(t, s)
	if f := collect(t, s); f.Bytes == 0 {
		t.Error("the files stay for ever")
	}
}

// What has waited long enough goes when the next command that changes
// something ends; a store that keeps nothing deletes at once.
func TestKeepRemoved(t *testing.T) {
	root := t.TempDir()
	for _, keep := range []time.Duration{time.Nanosecond, -1} {
		s, err := store.Open(root, store.Options{KeepRemoved: keep})
		if err != nil {
			t.Fatal(err)
		}
		put(t, t.Context(), s, ocitest.One(), "one")
		remove(t, s, "one", false)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, root)
		if f, err := s.Reclaim(t.Context()); err != nil || len(f.Manifests) != 0 {
			t.Errorf("%v: still there: %+v, %v", keep, f, err)
		}
		if _, err := s.Undo(t.Context(), 0, false); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("%v: Undo = %v", keep, err)
		}
	}
}

// An image without a name keeps the layers that it shares with one that goes.
func TestNamelessKeepsItsLayers(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir())
	shared := ocitest.Layer("f", "shared")
	a := ocitest.Make(ocitest.Spec{Layers: [][]byte{shared}})
	b := ocitest.Make(ocitest.Spec{Layers: [][]byte{shared, ocitest.Layer("g", "own")}})
	put(t, ctx, s, a)
	put(t, ctx, s, b, "b")
	remove(t, s, "b", true)
	if !hasAll(t, s, a) {
		t.Error("the image without a name lost a layer")
	}
	if hasAll(t, s, b) {
		t.Error("nothing was deleted")
	}
	sound(t, s)
}
