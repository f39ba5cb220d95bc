package store_test

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/ocitest"
)

func filled(b *testing.B, n int) string {
	root := b.TempDir()
	s := open(b, root)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				put(b, b.Context(), s, numbered(i), fmt.Sprintf("localhost:5000/repo%d:v%d", i%100, i))
			}
		})
	}
	wg.Wait()
	s.Close()
	return root
}

func BenchmarkOpenImages(b *testing.B) {
	for _, n := range []int{0, 10, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			if n > 10 && os.Getenv("STRAKE_BENCH_LARGE") == "" {
				b.Skip("set STRAKE_BENCH_LARGE: filling the store takes a minute")
			}
			root := filled(b, n)
			b.Run("open", func(b *testing.B) {
				for b.Loop() {
					s, err := store.Open(root, store.Options{})
					if err != nil {
						b.Fatal(err)
					}
					s.Close()
				}
			})
			b.Run("open+images", func(b *testing.B) {
				for b.Loop() {
					s, err := store.Open(root, store.Options{})
					if err != nil {
						b.Fatal(err)
					}
					if all, err := s.Images(b.Context()); err != nil || len(all) != n {
						b.Fatal(len(all), err)
					}
					s.Close()
				}
			})
			s := open(b, root)
			b.Run("images", func(b *testing.B) {
				for b.Loop() {
					if _, err := s.Images(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			})
			if n == 0 {
				return
			}
			b.Run("find", func(b *testing.B) {
				for b.Loop() {
					if _, err := s.Find(b.Context(), "localhost:5000/repo7:v7"); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("has-leased", func(b *testing.B) {
				d := numbered(7).Blobs[0].Descriptor
				for b.Loop() {
					ctx, release, _ := s.Lease(b.Context())
					if ok, err := s.Has(ctx, d); err != nil || !ok {
						b.Fatal(ok, err)
					}
					release()
				}
			})
			b.Run("put+tag+rmi", func(b *testing.B) {
				i := n
				for b.Loop() {
					i++
					im := numbered(i)
					put(b, b.Context(), s, im, "x:1")
					if _, err := s.Untag(b.Context(), name(b, "x:1")); err != nil {
						b.Fatal(err)
					}
					if f, err := s.Collect(b.Context(), im.Target.Digest); err != nil || len(f.Manifests) != 1 {
						b.Fatal(f, err)
					}
				}
			})
			b.Run("collect-shared", func(b *testing.B) {
				base := oci.Digest(numbered(7).Manifest().Layers[0].Digest)
				for b.Loop() {
					if f, err := s.Collect(b.Context(), base); err != nil || len(f.Blobs) != 0 {
						b.Fatal(f, err)
					}
				}
			})
			b.Run("collect-all", func(b *testing.B) {
				for b.Loop() {
					if _, err := s.Collect(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("record", func(b *testing.B) {
				ctx, release, _ := s.Lease(b.Context())
				defer release()
				s.PutRecord(ctx, store.Record{Bucket: "cache", Key: "k", Holds: []oci.Digest{ocitest.One().Target.Digest}})
				for b.Loop() {
					if _, err := s.GetRecord(ctx, "cache", "k"); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// What a command costs that finds everything as it was: open, take a lease,
// look up what it holds, release, close.
func BenchmarkCommand(b *testing.B) {
	root := filled(b, 10)
	d := numbered(7).Target
	for b.Loop() {
		s, err := store.Open(root, store.Options{})
		if err != nil {
			b.Fatal(err)
		}
		ctx, release, err := s.Lease(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if ok, err := s.Has(ctx, d); err != nil || !ok {
			b.Fatal(ok, err)
		}
		release()
		s.Close()
	}
}
