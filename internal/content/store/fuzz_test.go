package store_test

import (
	"bytes"
	"testing"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/ocitest"
)

// FuzzManifest puts foreign bytes as a config and as a manifest that names it:
// they are stored or refused, and lists, look-ups and collections go on.
func FuzzManifest(f *testing.F) {
	for _, im := range []*ocitest.Image{ocitest.One(), ocitest.Docker(), ocitest.TwoPlatforms(), ocitest.Artifact(ocitest.One().Target, "a/b", "x")} {
		for _, b := range im.Blobs {
			if b.MediaType != oci.MediaTypeLayerGzip {
				f.Add(b.Body, b.Body)
			}
		}
	}
	f.Add([]byte(`{"created":"yesterday","rootfs":{"type":"layers","diff_ids":["sha256:x"]},"config":{"Labels":{"a":1}}}`), []byte(`{"config":null,"layers":null}`))
	f.Add([]byte(`{"created":"9999-01-01T00:00:00Z","rootfs":{"type":"layers","diff_ids":[]}}`), []byte(`{"subject":{"digest":"../../x"}}`))
	s := open(f, f.TempDir())
	keep := ocitest.One()
	put(f, f.Context(), s, keep, "keep")
	f.Fuzz(func(t *testing.T, config, manifest []byte) {
		ctx := t.Context()
		cd := oci.DescriptorOf(oci.MediaTypeConfig, config)
		if err := s.Put(ctx, cd, bytes.NewReader(config)); err != nil {
			t.Fatal(err)
		}
		var made []oci.Digest
		try := func(mediaType string, body []byte) {
			d := oci.DescriptorOf(mediaType, body)
			if s.Put(ctx, d, bytes.NewReader(body)) == nil {
				made = append(made, d.Digest)
				if err := s.Tag(ctx, name(t, "fuzz:1"), d); err != nil {
					t.Fatal(err)
				}
				s.Find(ctx, "fuzz:1")
				s.Find(ctx, string(d.Digest))
			}
		}
		try(oci.MediaTypeManifest, manifest)
		try(oci.MediaTypeIndex, manifest)
		try(oci.MediaTypeManifest, bytes.ReplaceAll(ocitest.One().Body(keep.Target.Digest), []byte(keep.Manifest().Config.Digest), []byte(cd.Digest)))
		found := false
		for _, im := range images(t, s) {
			for _, n := range im.Names {
				found = found || n.Familiar() == "keep:latest"
			}
		}
		if !found {
			t.Fatal("the list lost an image")
		}
		s.Untag(ctx, name(t, "fuzz:1"))
		collect(t, s, append(made, cd.Digest)...)
		if !hasAll(t, s, keep) {
			t.Fatal("an image was damaged")
		}
	})
}
