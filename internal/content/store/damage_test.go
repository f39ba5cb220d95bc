package store_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// TestDamagedDatabase changes the database's bytes in many ways: nothing
// panics, an error says that the database is damaged, and Rebuild brings back
// the names from what is left.
func TestDamagedDatabase(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good")
	s, err := store.Open(good, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	body := []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeIndex + `","manifests":[]}`)
	d := oci.DescriptorOf(oci.MediaTypeIndex, body)
	if err := s.Put(t.Context(), d, bytes.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	r, _ := refOf("example.com/team/web:1")
	if err := s.Tag(t.Context(), r, d); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := os.ReadFile(filepath.Join(good, "strake.db"))
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 40 {
		root := filepath.Join(t.TempDir(), "s")
		if err := os.CopyFS(root, os.DirFS(good)); err != nil {
			t.Fatal(err)
		}
		broken := append([]byte(nil), db...)
		switch i % 4 {
		case 0:
			for range 30 {
				broken[rnd.IntN(len(broken))] ^= 1 << rnd.IntN(8)
			}
		case 1:
			broken = broken[:rnd.IntN(len(broken))]
		case 2:
			clear(broken[:rnd.IntN(9000)])
		case 3:
			at := rnd.IntN(len(broken)/4096) * 4096
			clear(broken[at : at+4096])
		}
		path := filepath.Join(root, "strake.db")
		if err := os.WriteFile(path, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		use(t, root)
		if _, err := store.Rebuild(t.Context(), root, store.Options{}); err != nil {
			t.Fatalf("%d: rebuild: %v", i, err)
		}
		s, err := store.Open(root, store.Options{})
		if err != nil {
			t.Fatalf("%d: after rebuild: %v", i, err)
		}
		if got, err := s.Resolve(t.Context(), r); err != nil || got.Digest != d.Digest {
			t.Errorf("%d: %s is %v, %v", i, r, got, err)
		}
		if problems, err := s.Examine(t.Context(), true, nil); len(problems) > 0 || err != nil {
			t.Errorf("%d: %v, %v", i, problems, err)
		}
		s.Close()
	}
}

// use does what commands do with the store at root, whatever comes of it.
func use(t *testing.T, root string) {
	s, err := store.Open(root, store.Options{})
	var damaged *store.DamagedError
	if err != nil {
		if !errors.As(err, &damaged) {
			t.Errorf("open: %v", err)
		}
		return
	}
	defer s.Close()
	ctx := context.Background()
	r, _ := refOf("example.com/team/web:1")
	_, _ = s.Images(ctx)
	_, _ = s.Resolve(ctx, r)
	_, _ = s.Find(ctx, "web")
	_, _ = s.AllTags(ctx)
	_, _ = s.TagLog(ctx, r)
	_, _ = s.Examine(ctx, true, nil)
}
