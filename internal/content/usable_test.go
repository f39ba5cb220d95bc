package content_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/ocitest"
)

// TestUsable: an image with a config that is none, or of another image, is not
// taken where images are used, and leaves no tag; an artifact is.
func TestUsable(t *testing.T) {
	one := ocitest.One().Manifest()
	layer := ocitest.One().Layers()[0]
	for _, c := range []struct{ name, mediaType, config, want string }{
		{"garbage", oci.MediaTypeConfig, "garbage", "unmarshal image config: invalid character 'g' looking for beginning of value: invalid"},
		{"docker's garbage", oci.MediaTypeDockerConfig, "[]", "unmarshal image config: json: cannot unmarshal array into Go value of type content.config: invalid"},
		{"of two layers", oci.MediaTypeConfig, `{"rootfs":{"type":"layers","diff_ids":["a","b"]}}`, "mismatched image rootfs and manifest layers: invalid"},
		{"an artifact's", "application/vnd.example.config", "garbage", ""},
		{"of no layers that it says", oci.MediaTypeConfig, `{}`, ""},
	} {
		im := &ocitest.Image{}
		config := oci.DescriptorOf(c.mediaType, []byte(c.config))
		body, err := json.Marshal(oci.Manifest{MediaType: oci.MediaTypeManifest, Config: config, Layers: one.Layers})
		if err != nil {
			t.Fatal(err)
		}
		im.Target = oci.DescriptorOf(oci.MediaTypeManifest, body)
		im.Blobs = []ocitest.Blob{layer, {Descriptor: config, Body: []byte(c.config)}, {Descriptor: im.Target, Body: body}}
		dst := ocitest.NewMemory()
		_, err = content.Copy(t.Context(), dst, to, ocitest.Fill(from, im), from, content.CopyOptions{Usable: true})
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want || !errors.Is(err, oci.ErrInvalid)) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		if _, err := dst.Resolve(t.Context(), to); (err == nil) != (c.want == "") {
			t.Errorf("%s: the tag: %v", c.name, err)
		}
		if _, err := content.Copy(t.Context(), ocitest.NewMemory(), to, ocitest.Fill(from, im), from, content.CopyOptions{}); err != nil {
			t.Errorf("%s, as it is: %v", c.name, err)
		}
	}
}
