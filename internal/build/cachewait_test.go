package build

import (
	"context"
	"io"
	"testing"
	"testing/synctest"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// silent is a registry that takes a request and never answers.
type silent struct{}

func (silent) Resolve(ctx context.Context, _ ref.Ref) (oci.Descriptor, error) {
	<-ctx.Done()
	return oci.Descriptor{}, context.Cause(ctx)
}

func (silent) Open(ctx context.Context, _ oci.Descriptor) (io.ReadCloser, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// TestSilentCache imports from a registry that never answers: the build does
// not wait for it for ever, and is told.
func TestSilentCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said string
		e := New(Options{CacheFrom: []CacheSource{{Name: "silent", Source: silent{}}}, Events: func(ev Event) {
			if ev.Vertex != nil && ev.Vertex.Error != "" {
				said = ev.Vertex.Error
			}
		}})
		stop := e.ImportCaches(t.Context())
		<-e.imports.done
		stop()
		if want := "failed to configure cache importer: no answer in 30s"; said != want {
			t.Errorf("said %q, want %q", said, want)
		}
	})
}
