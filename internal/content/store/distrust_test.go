package store_test

import (
	"bytes"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	_ "modernc.org/sqlite"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/ocitest"
)

func execute(t *testing.T, root, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(root, "strake.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

// TestPruneDistrusts damages a tag's row: what it no longer points at looks
// like rubbish, and nothing is removed until the database is made again.
func TestPruneDistrusts(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	put(t, t.Context(), s, numbered(1), "one")
	put(t, t.Context(), s, numbered(2), "two")
	execute(t, root, "UPDATE tag SET digest = (SELECT digest FROM tag WHERE repo LIKE '%one') WHERE repo LIKE '%two'")
	var damaged *store.DamagedError
	for _, p := range []store.Prune{{All: true, Now: true}, {All: true}, {All: true, Dry: true}, {Images: images(t, s)}} {
		if _, err := s.Prune(t.Context(), p); !errors.As(err, &damaged) {
			t.Errorf("prune %+v of a damaged database: %v", p, err)
		}
	}
	s.Close()
	if _, err := store.Rebuild(t.Context(), root, store.Options{}); err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	if _, err := s.Prune(t.Context(), store.Prune{All: true, Now: true}); err != nil {
		t.Error(err)
	}
	for i, n := range []string{"one", "two"} {
		if !hasAll(t, s, numbered(i+1)) {
			t.Errorf("%s is not whole", n)
		}
	}
	sound(t, s)
}

// TestRebuildKeepsLog makes the database again: pins, what can be undone, and
// what waits are as they were.
func TestRebuildKeepsLog(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	index := ocitest.TwoPlatforms()
	put(t, t.Context(), s, numbered(1), "one", "other")
	put(t, t.Context(), s, index, "multi")
	if _, err := s.Pin(t.Context(), name(t, "one"), true); err != nil {
		t.Fatal(err)
	}
	before := lines(t, s)
	remove(t, s, "multi", false)
	logged, err := s.TagLog(t.Context(), name(t, "multi").WithDefaultTag())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := store.Rebuild(t.Context(), root, store.Options{}); err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	if changed, err := s.Pin(t.Context(), name(t, "one"), true); changed || err != nil {
		t.Errorf("the pin is lost: %v", err)
	}
	if got := lines(t, s); len(got) != 1 {
		t.Errorf("images are %v; what was removed is back", got)
	}
	if again, err := s.TagLog(t.Context(), name(t, "multi").WithDefaultTag()); err != nil || len(again) != len(logged) || again[0] != logged[0] {
		t.Errorf("log %v, %v; want %v", again, err, logged)
	}
	if u, err := s.Undo(t.Context(), 0, false); err != nil || u.Command != "rmi" {
		t.Fatalf("Undo = %+v, %v", u, err)
	}
	if got := lines(t, s); len(got) != len(before) || !hasAll(t, s, index) {
		t.Errorf("images are %v, want %v", got, before)
	}
	sound(t, s)
}

// TestRemake changes all of a tree but its files' contents: the layer has no
// other form, and its table of contents is enough. Of changed contents it is not.
func TestRemake(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, _ := lease(t, s)
	up := filepath.Join(t.TempDir(), "up")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(up, "d", "e"), 0o750),
		os.WriteFile(filepath.Join(up, "d", "f"), []byte("content"), 0o644),
		os.WriteFile(filepath.Join(up, "d", "nothing"), nil, 0o600),
		os.Symlink("f", filepath.Join(up, "d", "s")),
		os.Link(filepath.Join(up, "d", "f"), filepath.Join(up, "d", "h")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	toc, err := s.TakeTree(ctx, up)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.Tree(ctx, toc.DiffID)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chmod(filepath.Join(tree, "d", "f"), 0o4777),
		os.Chtimes(filepath.Join(tree, "d"), time.Unix(9, 0), time.Unix(9, 0)),
		os.Remove(filepath.Join(tree, "d", "s")),
		os.Remove(filepath.Join(tree, "d", "nothing")),
		os.Remove(filepath.Join(tree, "d", "h")),
		os.Remove(filepath.Join(tree, "d", "e")),
		os.WriteFile(filepath.Join(tree, "d", "more"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if problems, err := s.Examine(ctx, true, nil); len(problems) != 1 || err != nil {
		t.Fatalf("%v, %v", problems, err)
	}
	if made, err := s.Remake(ctx, toc.DiffID); !made || err != nil {
		t.Fatalf("Remake = %v, %v", made, err)
	}
	sound(t, s)
	if err := os.WriteFile(filepath.Join(tree, "d", "f"), []byte("kontent"), 0); err != nil {
		t.Fatal(err)
	}
	if made, err := s.Remake(ctx, toc.DiffID); made || err != nil {
		t.Errorf("Remake of changed contents = %v, %v", made, err)
	}
	if b, err := os.ReadFile(filepath.Join(tree, "d", "f")); string(b) != "kontent" {
		t.Errorf("what could not be made again is gone: %q, %v", b, err)
	}
}

// TestRebuildPassesOver makes the database again over content that looks like
// an index and is none: it stays content, and hinders nobody.
func TestRebuildPassesOver(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	put(t, t.Context(), s, ocitest.One(), "one")
	ctx, release := lease(t, s)
	for _, body := range []string{
		`{"mediaType":"application/vnd.oci.image.index.v1+json","config":5}`,
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:x"},"layers":[]}`,
		`{"manifests":7}`,
	} {
		d := oci.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromString(body), Size: int64(len(body))}
		if err := s.Put(ctx, d, strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
		d.MediaType = oci.MediaTypeIndex
		if err := s.Put(ctx, d, strings.NewReader(body)); !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("%s as an index: %v", body, err)
		}
	}
	release()
	s.Close()
	done, err := store.Rebuild(t.Context(), root, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if done.Manifests != 1 {
		t.Errorf("%d manifests, not one", done.Manifests)
	}
	sound(t, open(t, root))
}

// TestFlippedBit changes one byte of the database's file, in a row that keeps
// something or in its index: it is found, nothing is removed because of it, and
// a new database knows everything again.
func TestFlippedBit(t *testing.T) {
	im := numbered(1)
	config, layer := im.Blobs[len(im.Blobs)-2].Digest, im.Blobs[0].Digest
	for _, c := range []struct {
		what, bytes string
		at          int // of the byte that changes
	}{
		{"an edge's child", string(im.Target.Digest) + string(config), -3},
		{"an edge's parent", string(im.Target.Digest) + string(layer), 20},
		{"the index of a child", string(layer) + string(im.Target.Digest), 30},
		{"the index of a child's parent", string(config) + string(im.Target.Digest), -1},
	} {
		t.Run(c.what, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			put(t, t.Context(), s, im, "one")
			put(t, t.Context(), s, numbered(2), "two")
			s.Close()
			file := filepath.Join(root, "strake.db")
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			flipped := []byte(c.bytes)
			flipped[(c.at+len(flipped))%len(flipped)] ^= 1
			if n := bytes.Count(b, []byte(c.bytes)); n == 0 {
				t.Fatalf("%s is not in the file", c.bytes)
			}
			b = bytes.ReplaceAll(b, []byte(c.bytes), flipped) // once where it counts, perhaps in free space
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, root)
			var damaged *store.DamagedError
			for _, p := range []store.Prune{{All: true, Now: true}, {All: true, Dry: true}, {Now: true}} {
				if _, err := s.Prune(t.Context(), p); !errors.As(err, &damaged) {
					t.Errorf("prune %+v: %v", p, err)
				}
			}
			problems, err := s.Examine(t.Context(), false, nil)
			if !errors.As(err, &damaged) && !slices.ContainsFunc(problems, func(p store.Problem) bool { return p.Kind == store.BadDatabase }) {
				t.Errorf("Check says %v, %v", problems, err)
			}
			s.Close()
			if _, err := store.Rebuild(t.Context(), root, store.Options{}); err != nil {
				t.Fatal(err)
			}
			s = open(t, root)
			for i, n := range []string{"one", "two"} {
				if !hasAll(t, s, numbered(i+1)) {
					t.Errorf("%s is not whole", n)
				}
			}
			sound(t, s)
		})
	}
}
