package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/ocitest"
)

// newLayer writes a layer of one file.
func newLayer(t testing.TB, ctx context.Context, s *store.Store, body string) *layer.TOC {
	t.Helper()
	w, err := s.NewLayer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	e := layer.Entry{Path: "file", Type: layer.Regular, Mode: 0o644, Size: int64(len(body)), ModTime: epoch}
	if err := w.Write(e, bytes.NewReader([]byte(body))); err != nil {
		t.Fatal(err)
	}
	toc, err := w.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return toc
}

func TestFormsOfALayer(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	ctx, _ := lease(t, s)
	toc := newLayer(t, ctx, s, "content")
	plain := oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: toc.DiffID, Size: toc.Size}
	tar := readAll(t, s, plain)
	if digest.FromBytes(tar) != toc.DiffID {
		t.Fatal("the layer's tar is not its diffID")
	}
	for _, c := range []struct {
		c        content.Compression
		in, want string
	}{
		{content.Gzip, oci.MediaTypeLayer, oci.MediaTypeLayerGzip},
		{content.Zstd, oci.MediaTypeLayer, oci.MediaTypeLayerZstd},
		{content.Gzip, oci.MediaTypeDockerLayer, oci.MediaTypeDockerGzip},
		{content.Uncompressed, oci.MediaTypeLayer, oci.MediaTypeLayer},
	} {
		d := plain
		d.MediaType = c.in
		packed, err := s.Pack(ctx, d, c.c)
		if err != nil || packed.MediaType != c.want {
			t.Fatalf("Pack %q %q = %v, %v", c.in, c.c, packed, err)
		}
		again, err := s.Pack(ctx, d, c.c)
		if err != nil || again.Digest != packed.Digest || again.Size != packed.Size {
			t.Errorf("Pack again = %v, %v", again, err)
		}
		r, _, err := layer.Decompress(bytes.NewReader(readAll(t, s, packed)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, tar) {
			t.Errorf("%s unpacks to something else: %v", c.c, err)
		}
	}
	// The plain file is lost: the packed forms give the same bytes.
	hex := toc.DiffID.Encoded()
	if err := os.Remove(filepath.Join(root, "blobs", "sha256", hex[:2], hex)); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, s, plain); !bytes.Equal(got, tar) {
		t.Error("the packed form gives other bytes")
	}
	if ok, err := s.Has(ctx, plain); !ok || err != nil {
		t.Errorf("Has = %v, %v", ok, err)
	}
	r, err := s.OpenFile(ctx, toc.DiffID, &toc.Entries[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "content" {
		t.Errorf("OpenFile: %q, %v", b, err)
	}
}

func TestPulledLayerFindsItsForms(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	ctx, _ := lease(t, s)
	im := ocitest.Two()
	put(t, ctx, s, im, "two")
	found, err := s.Find(ctx, "two")
	if err != nil {
		t.Fatal(err)
	}
	// Many ask for the same tree at once, also from another process's store.
	other := open(t, root)
	octx, _ := lease(t, other)
	var wg sync.WaitGroup
	for i := range 8 {
		st, c := s, ctx
		if i%2 == 1 {
			st, c = other, octx
		}
		wg.Go(func() {
			for _, l := range found.Layers {
				tree, err := st.Tree(c, l)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.ReadDir(tree); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i, l := range found.Layers {
		toc, err := s.TOC(ctx, l)
		if err != nil {
			t.Fatal(err)
		}
		d := oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: l, Size: toc.Size}
		if got := readAll(t, s, d); digest.FromBytes(got) != l {
			t.Errorf("layer %d streams other bytes", i)
		}
		packed, err := s.Pack(ctx, d, content.Gzip)
		if err != nil || packed.Digest != im.Manifest().Layers[i].Digest {
			t.Errorf("Pack makes %v where the registry's own bytes are known, %v", packed, err)
		}
	}
	if leftovers, _ := filepath.Glob(filepath.Join(root, "layers", "*", "*", "tree.new")); len(leftovers) > 0 {
		t.Errorf("left behind: %v", leftovers)
	}
}

// A manifest may claim that any bytes are somebody else's layer.
func TestFalseClaim(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, _ := lease(t, s)
	real := ocitest.Make(ocitest.Spec{Layers: [][]byte{ocitest.Layer("good", "good")}})
	liar := ocitest.Make(ocitest.Spec{Layers: [][]byte{ocitest.Layer("evil", "evil")}, Packing: content.Gzip})
	diffID := real.Manifest().Layers[0].Digest
	// The liar's config says that its layer is the real one.
	m := liar.Manifest()
	cfg := bytes.ReplaceAll(liar.Body(m.Config.Digest), []byte(digest.FromBytes(ocitest.Layer("evil", "evil"))), []byte(diffID))
	cd := oci.DescriptorOf(oci.MediaTypeConfig, cfg)
	mani := bytes.ReplaceAll(liar.Body(liar.Target.Digest), []byte(m.Config.Digest), []byte(cd.Digest))
	md := oci.DescriptorOf(oci.MediaTypeManifest, mani)
	put(t, ctx, s, &ocitest.Image{Target: md, Blobs: []ocitest.Blob{
		{Descriptor: m.Layers[0], Body: liar.Body(m.Layers[0].Digest)}, {Descriptor: cd, Body: cfg}, {Descriptor: md, Body: mani}}}, "liar")
	plain := real.Manifest().Layers[0]
	if ok, err := s.Has(ctx, plain); ok || err != nil {
		t.Errorf("Has believes the liar: %v, %v", ok, err)
	}
	if _, err := s.Tree(ctx, diffID); !errors.Is(err, oci.ErrCorrupt) {
		t.Errorf("Tree of a layer that is not what its config says: %v, want ErrCorrupt", err)
	}
	if b, err := readBlob(s, plain); err == nil {
		t.Errorf("read %d bytes of a layer that nobody has", len(b))
	}
	put(t, ctx, s, real, "real")
	tree, err := s.Tree(ctx, diffID)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(tree, "good")); string(b) != "good" {
		t.Errorf("the tree has %q, %v", b, err)
	}
}

func TestTOCIsMadeAgain(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	toc := newLayer(t, t.Context(), s, "x")
	hex := toc.DiffID.Encoded()
	for _, damage := range []func(string) error{
		os.Remove,
		func(p string) error { return os.WriteFile(p, []byte("nonsense"), 0o600) },
		func(p string) error { return os.RemoveAll(filepath.Dir(p)) },
	} {
		if err := damage(filepath.Join(root, "layers", hex[:2], hex, "toc")); err != nil {
			t.Fatal(err)
		}
		got, err := open(t, root).TOC(t.Context(), toc.DiffID)
		if err != nil || got.DiffID != toc.DiffID || len(got.Entries) != 1 {
			t.Errorf("TOC = %v, %v", got, err)
		}
	}
	if _, err := s.TOC(t.Context(), digest.FromString("nothing")); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("TOC of an unknown layer: %v", err)
	}
}

func TestChangedTree(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, _ := lease(t, s)
	im := ocitest.Two()
	put(t, ctx, s, im, "two")
	found, _ := s.Find(ctx, "two")
	toc, err := s.TOC(ctx, found.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.Tree(ctx, found.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := s.Examine(ctx, true, nil); len(problems) > 0 || err != nil {
		t.Errorf("Check of a sound store: %v, %v", problems, err)
	}
	if err := os.Remove(filepath.Join(tree, "bin", "hello")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(tree, "bin", "hello")); err != nil {
		t.Fatal(err)
	}
	for i := range toc.Entries {
		if e := &toc.Entries[i]; e.Path == "bin/hello" {
			if r, err := s.OpenFile(ctx, found.Layers[0], e); err == nil {
				r.Close()
				t.Error("OpenFile followed a symlink out of a changed tree")
			}
		}
	}
	if problems, _ := s.Examine(ctx, true, nil); len(problems) == 0 {
		t.Error("Check does not see a changed tree")
	}
}
