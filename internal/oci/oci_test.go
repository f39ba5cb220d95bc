package oci

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// What Verify hands out is what the descriptor names, or the reader fails with
// the kind that says how it differs, and never hands out more.
func TestVerify(t *testing.T) {
	right := DescriptorOf("", []byte("content"))
	sized := func(n int64) Descriptor { d := right; d.Size = n; return d }
	for _, c := range []struct {
		why, body string
		d         Descriptor
		kind      error
		text      string
	}{
		{"the same", "content", right, nil, ""},
		{"other bytes", "cOntent", right, ErrCorrupt, "content digest mismatch: expected sha256:"},
		{"shorter", "conten", right, ErrCorrupt, "ended after 6 of 7 bytes"},
		{"longer", "contents", right, ErrCorrupt, "is longer than its 7 bytes"},
		{"a size that lies", "content", sized(8), ErrCorrupt, "ended after 7 of 8 bytes"},
		{"a negative size", "content", sized(-1), ErrCorrupt, "is longer than its -1 bytes"},
		{"no digest", "content", Descriptor{Size: 7}, ErrInvalid, `digest ""`},
		{"an unknown algorithm", "content", Descriptor{Digest: "crc:0123", Size: 7}, ErrInvalid, `digest "crc:0123"`},
		{"a path for a digest", "content", Descriptor{Digest: "sha256:../../x", Size: 7}, ErrInvalid, "digest"},
		{"nothing, named rightly", "", DescriptorOf("", nil), nil, ""},
	} {
		for name, in := range map[string]io.Reader{
			"at once": strings.NewReader(c.body), "byte by byte": iotest.OneByteReader(strings.NewReader(c.body)),
			"with its end": iotest.DataErrReader(strings.NewReader(c.body)),
		} {
			got, err := io.ReadAll(Verify(in, c.d))
			if !errors.Is(err, c.kind) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s, %s: %v, not %v with %q", c.why, name, err, c.kind, c.text)
			}
			if int64(len(got)) > max(c.d.Size, 0) {
				t.Errorf("%s, %s: %d bytes of %d came out", c.why, name, len(got), c.d.Size)
			}
		}
	}
	failed := errors.New("the line is cut")
	if _, err := io.ReadAll(Verify(iotest.ErrReader(failed), right)); !errors.Is(err, failed) || errors.Is(err, ErrCorrupt) {
		t.Errorf("a reader that fails: %v", err)
	}
}

// A manifest's size is refused before anything is read of it.
func TestReadAllIsBounded(t *testing.T) {
	for _, size := range []int64{-1, MaxManifestSize + 1, 1 << 62} {
		d := DescriptorOf("", nil)
		d.Size = size
		if _, err := ReadAll(iotest.ErrReader(errors.New("was read")), d); !errors.Is(err, ErrInvalid) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	b := bytes.Repeat([]byte("x"), MaxManifestSize)
	if got, err := ReadAll(bytes.NewReader(b), DescriptorOf("", b)); err != nil || len(got) != len(b) {
		t.Errorf("the largest: %d bytes, %v", len(got), err)
	}
}

// Children are what a manifest names; what is two things at once, or another
// than it was called, or names what is no digest, is refused.
func TestChildren(t *testing.T) {
	d := DescriptorOf("", []byte("x")).Digest
	child := `{"digest":"` + string(d) + `","size":1}`
	for _, c := range []struct {
		why, mediaType, body string
		n                    int
		kind                 error
	}{
		{"a manifest: config, then layers", MediaTypeManifest, `{"config":` + child + `,"layers":[` + child + `,` + child + `]}`, 3, nil},
		{"an index", MediaTypeIndex, `{"manifests":[` + child + `]}`, 1, nil},
		{"docker's list", MediaTypeDockerList, `{"mediaType":"` + MediaTypeDockerList + `","manifests":[` + child + `]}`, 1, nil},
		{"an empty index", MediaTypeIndex, `{"manifests":[]}`, 0, nil},
		{"a subject is no child", MediaTypeIndex, `{"manifests":[],"subject":` + child + `}`, 0, nil},
		{"a layer has none", MediaTypeLayer, `not json`, 0, nil},
		{"both at once", MediaTypeManifest, `{"config":` + child + `,"layers":[],"manifests":[]}`, 0, ErrInvalid},
		{"both at once, as an index", MediaTypeIndex, `{"manifests":[` + child + `],"layers":[]}`, 0, ErrInvalid},
		{"another media type", MediaTypeManifest, `{"mediaType":"` + MediaTypeIndex + `","config":` + child + `}`, 0, ErrInvalid},
		{"schema 1", MediaTypeDockerMani, `{"fsLayers":[]}`, 0, ErrUnsupported},
		{"a path for a digest", MediaTypeIndex, `{"manifests":[{"digest":"../../etc/passwd","size":1}]}`, 0, ErrInvalid},
		{"a negative size", MediaTypeIndex, `{"manifests":[{"digest":"` + string(d) + `","size":-1}]}`, 0, ErrInvalid},
		{"no JSON", MediaTypeIndex, `[`, 0, ErrInvalid},
		{"no config", MediaTypeManifest, `{"layers":[]}`, 0, ErrInvalid},
	} {
		got, err := Children(c.mediaType, []byte(c.body))
		if !errors.Is(err, c.kind) || len(got) != c.n || c.kind != nil && err == nil {
			t.Errorf("%s: %d children, %v; not %d, %v", c.why, len(got), err, c.n, c.kind)
		}
	}
}

// Every media type is one thing: of docker's and OCI's pairs both are, and no
// type is two.
func TestMediaTypes(t *testing.T) {
	for _, c := range []struct {
		is    string
		check func(string) bool
		types []string
	}{
		{"manifest", IsManifest, []string{MediaTypeManifest, MediaTypeDockerMani}},
		{"index", IsIndex, []string{MediaTypeIndex, MediaTypeDockerList}},
		{"layer", IsLayer, []string{MediaTypeLayer, MediaTypeLayerGzip, MediaTypeLayerZstd, MediaTypeDockerLayer, MediaTypeDockerGzip, MediaTypeDockerZstd}},
		{"none", func(s string) bool { return !IsManifest(s) && !IsIndex(s) && !IsLayer(s) },
			[]string{"", MediaTypeConfig, MediaTypeDockerConfig, MediaTypeEmptyJSON, MediaTypeDockerSchema1, MediaTypeDockerForeign}},
	} {
		for _, mt := range c.types {
			if !c.check(mt) {
				t.Errorf("%q is no %s", mt, c.is)
			}
			n := 0
			for _, f := range []func(string) bool{IsManifest, IsIndex, IsLayer} {
				if f(mt) {
					n++
				}
			}
			if n > 1 || IsPlainLayer(mt) && !IsLayer(mt) {
				t.Errorf("%q is several things", mt)
			}
		}
	}
}
