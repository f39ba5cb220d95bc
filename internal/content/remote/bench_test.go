package remote_test

import (
	"context"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/ocitest"
)

// BenchmarkOpen reads and verifies a layer of 64 MB from Debian's registry:
// what a pull does but for writing.
func BenchmarkOpen(b *testing.B) {
	r := mustRef(b, debian(b, "")+"/bench/image:v1")
	body := make([]byte, 64<<20)
	chacha := rand.NewChaCha8([32]byte{2})
	_, _ = chacha.Read(body)
	im := ocitest.Make(ocitest.Spec{Layers: [][]byte{body}})
	repo := client(remote.Options{}).Repository(r)
	if err := push(b, client(remote.Options{}), r, im); err != nil {
		b.Fatal(err)
	}
	d := im.Layers()[0].Descriptor
	b.SetBytes(d.Size)
	b.ReportAllocs()
	for b.Loop() {
		rc, err := repo.Open(context.Background(), d)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, oci.Verify(rc, d), make([]byte, 256<<10)); err != nil {
			b.Fatal(err)
		}
		rc.Close()
	}
}
