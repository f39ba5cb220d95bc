package archive

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

func TestSuite(t *testing.T) {
	ocitest.Run(t, func(t *testing.T) ocitest.End {
		path := filepath.Join(t.TempDir(), "image.tar")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		w := NewWriter(f)
		var once sync.Once
		var a *Archive
		return ocitest.End{
			Sink: w, Stream: true, Strict: true,
			Ref: ref.Ref{Domain: "docker.io", Path: "library/tiny"},
			Source: func(t *testing.T) content.Source {
				once.Do(func() {
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
					f.Close()
					if a, err = Open(t.Context(), path, t.TempDir()); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { a.Close() })
				})
				return a
			},
		}
	})
}
