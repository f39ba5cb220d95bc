package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

func TestSuite(t *testing.T) {
	ocitest.Run(t, func(t *testing.T) ocitest.End {
		s := open(t, t.TempDir())
		return ocitest.End{
			Sink:   s,
			Source: func(*testing.T) content.Source { return s },
			Ref:    name(t, "localhost:5000/suite"),
		}
	})
}

func open(t testing.TB, root string) *store.Store {
	t.Helper()
	s, err := store.Open(root, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func name(t testing.TB, s string) ref.Ref {
	t.Helper()
	r, err := ref.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// put stores an image and tags it with each name.
func put(t testing.TB, ctx context.Context, s *store.Store, im *ocitest.Image, names ...string) {
	t.Helper()
	for _, b := range im.Blobs {
		if err := s.Put(ctx, b.Descriptor, bytes.NewReader(b.Body)); err != nil {
			t.Fatalf("Put %s: %v", b.Digest, err)
		}
	}
	for _, n := range names {
		if err := s.Tag(ctx, name(t, n).WithDefaultTag(), im.Target); err != nil {
			t.Fatalf("Tag %s: %v", n, err)
		}
	}
}

func lease(t testing.TB, s *store.Store) (context.Context, func()) {
	t.Helper()
	ctx, release, err := s.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return ctx, release
}

func readAll(t testing.TB, s *store.Store, d oci.Descriptor) []byte {
	t.Helper()
	b, err := readBlob(s, d)
	if err != nil {
		t.Fatalf("read %s: %v", d.Digest, err)
	}
	return b
}

func readBlob(s *store.Store, d oci.Descriptor) ([]byte, error) {
	r, err := s.Open(context.Background(), d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestTakeTree(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, release := lease(t, s)
	upper := func() string {
		dir, err := s.Scratch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(dir, "upper")
		if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "etc", "motd"), []byte("hello"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{dir, dir + "/etc", dir + "/etc/motd"} {
			if err := os.Chtimes(p, epoch, epoch); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	dir := upper()
	toc, err := s.TakeTree(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	d := oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: toc.DiffID, Size: toc.Size}
	if ok, err := s.Has(ctx, d); !ok || err != nil {
		t.Errorf("Has = %v, %v", ok, err)
	}
	tar := readAll(t, s, d)
	if again, err := layer.Index(bytes.NewReader(tar)); err != nil || again.DiffID != toc.DiffID {
		t.Errorf("the stream indexes to %v, %v", again, err)
	}
	dir = upper()
	again, err := s.TakeTree(ctx, dir)
	if err != nil || again.DiffID != toc.DiffID {
		t.Errorf("the same tree again: %v", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the second directory is still there: %v", err)
	}
	tree, err := s.Tree(ctx, toc.DiffID)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "etc", "motd"), []byte("jello"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readBlob(s, d); !errors.Is(err, oci.ErrCorrupt) {
		t.Errorf("a changed tree streams with error %v, want ErrCorrupt", err)
	}
	release()
}
