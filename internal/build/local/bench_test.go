package local_test

import (
	"context"
	"io"
	"os"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/build/fileop"
	"github.com/strake-project/strake/internal/build/local"
	"github.com/strake-project/strake/internal/oci/layer"
)

// benchDir is a context of some size, named by the environment: nothing that a
// test should make each time.
func benchDir(b *testing.B) string {
	dir := os.Getenv("STRAKE_BENCH_CONTEXT")
	if dir == "" {
		b.Skip("set STRAKE_BENCH_CONTEXT to a directory")
	}
	return dir
}

func copyAll() *pb.FileActionCopy {
	return &pb.FileActionCopy{Src: "/", Dest: "/app/", DirCopyContents: true, CreateDestPath: true, AllowWildcard: true, FollowSymlink: true, Mode: -1, Timestamp: -1}
}

func selected(b *testing.B, dir, cache string) {
	d, err := local.Open(b.Context(), dir, local.Options{CacheDir: cache})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := fileop.Selected(b.Context(), d, copyAll()); err != nil {
		b.Fatal(err)
	}
	if err := d.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkUnchanged(b *testing.B) {
	dir, cache := benchDir(b), b.TempDir()
	selected(b, dir, cache)
	b.ResetTimer()
	for b.Loop() {
		selected(b, dir, cache)
	}
}

func BenchmarkCold(b *testing.B) {
	dir := benchDir(b)
	for b.Loop() {
		selected(b, dir, "")
	}
}

func BenchmarkWalk(b *testing.B) {
	dir := benchDir(b)
	for b.Loop() {
		d, err := local.Open(b.Context(), dir, local.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := d.Prefetch(b.Context(), "."); err != nil {
			b.Fatal(err)
		}
		d.Close()
	}
}

// BenchmarkCopy is a COPY of everything with known digests, to a file.
func BenchmarkCopy(b *testing.B) {
	dir, cache := benchDir(b), b.TempDir()
	selected(b, dir, cache)
	b.ResetTimer()
	for b.Loop() {
		d, err := local.Open(b.Context(), dir, local.Options{CacheDir: cache})
		if err != nil {
			b.Fatal(err)
		}
		out, err := os.Create(b.TempDir() + "/layer")
		if err != nil {
			b.Fatal(err)
		}
		write(b, d, out)
		out.Close()
		os.Remove(out.Name())
		d.Close()
	}
}

func write(b *testing.B, d *local.Dir, out io.Writer) {
	draft := fileop.New(nil)
	if err := draft.Apply(context.Background(), &pb.FileAction{Action: &pb.FileAction_Copy{Copy: copyAll()}}, d, nil, time.Now()); err != nil {
		b.Fatal(err)
	}
	w := layer.NewWriter(out)
	if err := draft.Write(b.Context(), w); err != nil {
		b.Fatal(err)
	}
	if _, err := w.Close(); err != nil {
		b.Fatal(err)
	}
}
