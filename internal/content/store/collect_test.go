package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

func collect(t testing.TB, s *store.Store, from ...oci.Digest) *store.Freed {
	t.Helper()
	f, err := s.Collect(context.Background(), from...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func sound(t testing.TB, s *store.Store) {
	t.Helper()
	problems, err := s.Examine(context.Background(), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

func hasAll(t testing.TB, s *store.Store, im *ocitest.Image) bool {
	t.Helper()
	for _, b := range im.Blobs {
		ok, err := s.Has(context.Background(), b.Descriptor)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return false
		}
	}
	return true
}

func TestCollectTargeted(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir())
	one, two, index := ocitest.One(), ocitest.Two(), ocitest.TwoPlatforms()
	note := ocitest.Artifact(two.Target, "application/x", "note")
	put(t, ctx, s, one, "one")
	put(t, ctx, s, two, "two")
	put(t, ctx, s, index, "multi")
	put(t, ctx, s, note)
	unrelated := numbered(1)
	put(t, ctx, s, unrelated) // dangling, and nobody's business

	if f := collect(t, s, two.Target.Digest); len(f.Manifests)+len(f.Blobs) > 0 {
		t.Errorf("collected what is tagged: %+v", f)
	}
	if _, err := s.Untag(ctx, name(t, "two")); err != nil {
		t.Fatal(err)
	}
	f := collect(t, s, two.Target.Digest)
	slices.Sort(f.Manifests)
	want := []oci.Digest{two.Target.Digest, note.Target.Digest}
	slices.Sort(want)
	if !slices.Equal(f.Manifests, want) || len(f.Layers) != 1 || f.Bytes == 0 {
		t.Errorf("freed %+v; want the image, its referrer, and the one layer of its own", f)
	}
	if hasAll(t, s, two) || !hasAll(t, s, one) || !hasAll(t, s, index) || !hasAll(t, s, unrelated) {
		t.Error("the wrong things are gone")
	}
	sound(t, s)
	// And all of it can come back.
	put(t, ctx, s, two, "two")
	if !hasAll(t, s, two) {
		t.Error("what was collected does not come back")
	}
	// One platform's manifest stays as long as its index.
	if f := collect(t, s, index.Blobs[3].Digest); len(f.Manifests) > 0 {
		t.Errorf("an index lost a child: %+v", f)
	}
	if _, err := s.Untag(ctx, name(t, "multi")); err != nil {
		t.Fatal(err)
	}
	if f := collect(t, s, index.Target.Digest); len(f.Manifests) != 3 {
		t.Errorf("of an index with two images %+v were freed", f)
	}
	f = collect(t, s)
	if !slices.Contains(f.Manifests, unrelated.Target.Digest) {
		t.Errorf("everything: %+v", f)
	}
	sound(t, s)
}

func TestCollectKeeps(t *testing.T) {
	s := open(t, t.TempDir())
	bg := t.Context()
	ctx, release := lease(t, s)
	toc := newLayer(t, ctx, s, "of a cache")
	packed, err := s.Pack(ctx, oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: toc.DiffID, Size: toc.Size}, content.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	scratch, err := s.Scratch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if f := collect(t, s); len(f.Blobs) > 0 {
		t.Errorf("a lease did not keep %+v", f)
	}
	if err := s.PutRecord(bg, store.Record{Bucket: "cache", Key: "k", Holds: []oci.Digest{toc.DiffID}, Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	release()
	if _, err := os.Lstat(scratch); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the scratch directory outlives its lease: %v", err)
	}
	if f := collect(t, s); len(f.Blobs) > 0 {
		t.Errorf("a record did not keep %+v", f)
	}
	if f := collect(t, s, packed.Digest); len(f.Blobs) > 0 {
		t.Errorf("a record of the layer did not keep its packed form: %+v", f)
	}
	// Looked up under a lease, it stays when the record goes.
	ctx, release = lease(t, s)
	r, err := s.GetRecord(ctx, "cache", "k")
	if err != nil || string(r.Value) != "v" || len(r.Holds) != 1 {
		t.Fatalf("GetRecord = %+v, %v", r, err)
	}
	if err := s.DeleteRecord(bg, "cache", "k"); err != nil {
		t.Fatal(err)
	}
	if f := collect(t, s, toc.DiffID); len(f.Blobs) > 0 {
		t.Errorf("a lease did not keep what a record gave it: %+v", f)
	}
	release()
	if f := collect(t, s, toc.DiffID); len(f.Blobs) != 2 || len(f.Layers) != 1 {
		t.Errorf("freed %+v, want both forms of the layer", f)
	}
	if _, err := s.TOC(bg, toc.DiffID); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("TOC of what is gone: %v", err)
	}
	if _, err := s.GetRecord(bg, "cache", "k"); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("GetRecord of what was deleted: %v", err)
	}
}

func TestRecords(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir())
	for i, k := range []string{"a", "b", "c"} {
		r := store.Record{Bucket: "x", Key: k, Holds: []oci.Digest{digest.FromString(k)}, Created: epoch, Used: epoch.AddDate(0, 0, i)}
		if err := s.PutRecord(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	leased, _ := lease(t, s)
	if _, err := s.GetRecord(leased, "x", "a"); err != nil { // a use
		t.Fatal(err)
	}
	all, err := s.Records(ctx, "x")
	if err != nil || len(all) != 3 || all[0].Key != "a" || all[1].Key != "c" || !all[1].Created.Equal(epoch) || len(all[2].Holds) != 1 {
		t.Errorf("Records = %+v, %v", all, err)
	}
	if err := s.DeleteRecord(ctx, "x", "nosuch"); err != nil {
		t.Error(err)
	}
}

// Asked for together they answer as one by one: what a record holds is held,
// and what GetRecord would renew is left for it.
func TestManyAtOnce(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, release := lease(t, s)
	of := func(body string) oci.Descriptor { return oci.DescriptorOf("application/octet-stream", []byte(body)) }
	a, b := of("a"), of("b")
	for _, body := range []string{"a", "b"} {
		if err := s.Put(ctx, of(body), strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []store.Record{
		{Bucket: "x", Key: "fresh", Value: []byte("1"), Holds: []oci.Digest{a.Digest}},
		{Bucket: "x", Key: "old", Holds: []oci.Digest{b.Digest}, Used: epoch},
		{Bucket: "y", Key: "fresh"},
	} {
		if err := s.PutRecord(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	release()

	ctx, _ = lease(t, s)
	got, err := s.GetFresh(ctx, "x", []string{"fresh", "old", "nosuch"})
	if r := got["fresh"]; err != nil || len(got) != 1 || r == nil || string(r.Value) != "1" || len(r.Holds) != 1 {
		t.Fatalf("GetFresh = %+v, %v", got, err)
	}
	for _, k := range []string{"fresh", "old"} {
		if err := s.DeleteRecord(t.Context(), "x", k); err != nil {
			t.Fatal(err)
		}
	}
	collect(t, s)
	longer := a
	longer.Size++
	has, err := s.HasAll(ctx, []oci.Descriptor{a, b, of("c"), longer})
	if err != nil || !slices.Equal(has, []bool{true, false, false, false}) {
		t.Errorf("HasAll = %v, %v: only what GetFresh found is held", has, err)
	}
}

// True disk bytes: a hard link counts once, and so does what is deleted.
func TestCollectBytes(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	ctx, release := lease(t, s)
	dir, err := s.Scratch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir += "/upper"
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/a", bytes.Repeat([]byte("x"), 1<<20), 0o644), os.Link(dir+"/a", dir+"/b")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.TakeTree(ctx, dir); err != nil {
		t.Fatal(err)
	}
	release()
	f := collect(t, s)
	if f.Bytes < 1<<20 || f.Bytes > 1<<20+64<<10 || len(f.Layers) != 1 {
		t.Errorf("freed %+v, want a mebibyte and a little", f)
	}
}

func TestLeftoversAreSwept(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	put(t, t.Context(), s, ocitest.One(), "one")
	d := digest.FromString("orphan").Encoded()
	for _, p := range []string{
		"blobs/sha256/" + d[:2] + "/" + d,
		"layers/" + d[:2] + "/" + d + "/tree.new/file",
		"layers/" + d[:2] + "/" + d + "/toc.abc",
		"partial/put-dead",
		"work/dead/1/upper/file",
		"work/trash-dead/file",
		"leases/dead",
	} {
		p = filepath.Join(root, p)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if f := collect(t, s); f.Bytes == 0 {
		t.Errorf("freed %+v", f)
	}
	for _, dir := range []string{"partial", "work", "leases", "layers/" + d[:2], "blobs/sha256/" + d[:2]} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		for _, e := range entries {
			if e.Name() != ocitest.One().Target.Digest.Encoded() {
				t.Errorf("%s/%s is still there, %v", dir, e.Name(), err)
			}
		}
	}
	if !hasAll(t, s, ocitest.One()) {
		t.Error("the image is gone")
	}
}

// Random images over few layers, tagged, untagged, held and collected at
// random, from two stores on one root as from two processes. What is tagged or
// held is always whole; at the end what nothing names is gone.
func TestCollectProperty(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	root := t.TempDir()
	var wg sync.WaitGroup
	for w := range 4 {
		s := open(t, root)
		r := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			for i := range 40 {
				if err := step(s, r, fmt.Sprintf("w%d:t%d", w, r.IntN(4)), i); err != nil {
					t.Errorf("worker %d, step %d: %v", w, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	s := open(t, root)
	sound(t, s)
	collect(t, s)
	sound(t, s)
	for _, im := range images(t, s) {
		for _, r := range append(im.Names, im.Digests...) {
			if _, err := s.Untag(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	collect(t, s)
	left := 0
	filepath.WalkDir(filepath.Join(root, "blobs"), func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			left++
		}
		return nil
	})
	if left != 0 {
		t.Errorf("%d blobs are left where nothing names any", left)
	}
}

func randomImage(r *rand.Rand) *ocitest.Image {
	layers := [][]byte{}
	for range 1 + r.IntN(3) {
		n := fmt.Sprint("f", r.IntN(5))
		layers = append(layers, ocitest.Layer(n, n))
	}
	return ocitest.Make(ocitest.Spec{Layers: layers, Packing: []content.Compression{"", content.Gzip, content.Zstd}[r.IntN(3)]})
}

// step does one thing that a command does and checks that it holds.
func step(s *store.Store, r *rand.Rand, tag string, i int) error {
	bg := context.Background()
	to, err := refOf(tag)
	if err != nil {
		return err
	}
	switch r.IntN(7) {
	case 5: // rmi that can be taken back
		_, err := s.Remove(bg, store.Removal{Names: []ref.Ref{to}})
		return err
	case 6:
		_, err := s.Reclaim(bg)
		return err
	case 0: // rmi, the registry's way
		d, err := s.Untag(bg, to)
		if errors.Is(err, oci.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = s.Collect(bg, d.Digest)
		return err
	case 1: // prune
		_, err := s.Collect(bg)
		return err
	}
	ctx, release, err := s.Lease(bg) // pull
	if err != nil {
		return err
	}
	defer release()
	im := randomImage(r)
	src := ocitest.Fill(to, im)
	if _, err := content.Copy(ctx, s, to, src, to, content.CopyOptions{}); err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	for _, b := range im.Blobs {
		if ok, err := s.Has(ctx, b.Descriptor); err != nil || !ok {
			return fmt.Errorf("%s %s was put under a lease and is not there: %v", b.MediaType, b.Digest, err)
		}
		got, err := readBlob(s, b.Descriptor)
		if err != nil || !bytes.Equal(got, b.Body) {
			return fmt.Errorf("%s %s was put under a lease and reads otherwise: %v", b.MediaType, b.Digest, err)
		}
	}
	if found, err := s.Find(ctx, tag); err != nil {
		return err
	} else if i%4 == 0 {
		for _, l := range found.Layers {
			if _, err := s.Tree(ctx, l); err != nil {
				return err
			}
		}
	}
	return nil
}
