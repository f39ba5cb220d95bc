package registry

import (
	"strings"
	"testing"
)

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2", "/v2/_catalog", "/v2/a/b/tags/list", "/v2/a/manifests/v1", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/x", "/v2/blobs/blobs/uploads/", "/v2/a/referrers/sha256:" + strings.Repeat("0", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		r, err := parsePath(path)
		if err != nil {
			return
		}
		if r.kind != kindBase && r.kind != kindCatalog && r.name == "" && !strings.Contains(path, "//") {
			t.Errorf("%q: kind %d without a name", path, r.kind)
		}
		if r.name != "" && validName(r.name) {
			if at, err := target(r.name); err == nil && at.FamiliarName() != r.name && "library/"+at.FamiliarName() != r.name && "docker.io/"+at.FamiliarName() != r.name && !strings.HasPrefix(r.name, "docker.io/") && !strings.HasPrefix(r.name, "index.docker.io/") {
				t.Errorf("name %q is the image %q", r.name, at.FamiliarName())
			}
		}
		if r.tag != "" && strings.ContainsAny(r.tag, "/:@ ") {
			t.Errorf("%q: tag %q", path, r.tag)
		}
		if r.digest != "" && r.digest.Validate() != nil {
			t.Errorf("%q: digest %q", path, r.digest)
		}
	})
}

func FuzzRanges(f *testing.F) {
	f.Add("bytes=0-1", int64(10))
	f.Add("bytes=-5", int64(3))
	f.Add("0-9", int64(10))
	f.Add("bytes 3-9/10", int64(10))
	f.Add("bytes=4611686018427387903-9223372036854775807", int64(1)<<61)
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			size = 0
		}
		if p, _, ok := parseRange(header, size); ok && (p.start < 0 || p.length < 0 || p.start+p.length > size) {
			t.Errorf("Range %q of %d bytes: %+v", header, size, p)
		}
		if p, ok := parseContentRange(header); ok && (p.start < 0 || p.length <= 0 || p.start+p.length < p.start) {
			t.Errorf("Content-Range %q: %+v", header, p)
		}
	})
}
