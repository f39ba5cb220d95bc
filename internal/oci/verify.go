package oci

import (
	"encoding/json"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
)

// Verify returns a reader of r that fails with a *SizeError or *DigestError,
// instead of io.EOF, unless what was read is exactly what d names. It never
// hands out more than d.Size bytes. A caller that stops before io.EOF has
// verified nothing.
func Verify(r io.Reader, d Descriptor) io.Reader {
	if err := d.Digest.Validate(); err != nil || !d.Digest.Algorithm().Available() {
		return errReader{fmt.Errorf("digest %q: %w", d.Digest, ErrInvalid)}
	}
	return &verifier{r: r, d: d, h: d.Digest.Algorithm().Hash()}
}

type verifier struct {
	r io.Reader
	d Descriptor
	h hash.Hash
	n int64
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	if v.n+int64(n) > v.d.Size {
		return 0, &SizeError{Digest: v.d.Digest, Want: v.d.Size, Got: -1}
	}
	v.n += int64(n)
	v.h.Write(p[:n])
	if err != io.EOF {
		return n, err
	}
	if v.n < v.d.Size {
		return n, &SizeError{Digest: v.d.Digest, Want: v.d.Size, Got: v.n}
	}
	if got := digest.NewDigest(v.d.Digest.Algorithm(), v.h); got != v.d.Digest {
		return n, &DigestError{Want: v.d.Digest, Got: got}
	}
	return n, io.EOF
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// ReadAll reads and verifies small content: a manifest, an index or a config.
// It refuses more than MaxManifestSize bytes with ErrInvalid.
func ReadAll(r io.Reader, d Descriptor) ([]byte, error) {
	if d.Size < 0 || d.Size > MaxManifestSize {
		return nil, fmt.Errorf("%s has %d bytes, the most for a manifest or config is %d: %w", d.Digest, d.Size, MaxManifestSize, ErrInvalid)
	}
	return io.ReadAll(Verify(r, d))
}

// DescriptorOf describes b.
func DescriptorOf(mediaType string, b []byte) Descriptor {
	return Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// Children returns the descriptors that a manifest or index (mediaType, body)
// names: config and layers, or manifests; a subject is not a child. Other
// media types have none. A body that claims to be both a manifest and an
// index, or whose own mediaType differs, is refused with ErrInvalid
// (CVE-2021-41190).
func Children(mediaType string, body []byte) ([]Descriptor, error) {
	var probe struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
		Config    json.RawMessage `json:"config"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	if !IsManifest(mediaType) && !IsIndex(mediaType) {
		return nil, nil
	}
	if err := json.Unmarshal(body, &probe); err != nil {
		return nil, fmt.Errorf("manifest: %v: %w", err, ErrInvalid)
	}
	switch {
	case probe.FSLayers != nil:
		return nil, fmt.Errorf("docker schema 1 manifest: %w; push the image again with a docker newer than 1.10", ErrUnsupported)
	case probe.MediaType != "" && probe.MediaType != mediaType:
		return nil, fmt.Errorf("manifest says mediaType %q but was named as %q: %w", probe.MediaType, mediaType, ErrInvalid)
	case probe.Manifests != nil && (probe.Layers != nil || probe.Config != nil):
		return nil, fmt.Errorf("manifest is both an image and an index: %w", ErrInvalid)
	}
	var all []Descriptor
	if IsIndex(mediaType) {
		var ix Index
		if err := json.Unmarshal(body, &ix); err != nil {
			return nil, fmt.Errorf("index: %v: %w", err, ErrInvalid)
		}
		all = ix.Manifests
	} else {
		var m Manifest
		if err := json.Unmarshal(body, &m); err != nil {
			return nil, fmt.Errorf("manifest: %v: %w", err, ErrInvalid)
		}
		all = append([]Descriptor{m.Config}, m.Layers...)
	}
	for _, d := range all {
		if err := d.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("manifest names digest %q: %w", d.Digest, ErrInvalid)
		}
		if d.Size < 0 {
			return nil, fmt.Errorf("manifest gives %s the size %d: %w", d.Digest, d.Size, ErrInvalid)
		}
	}
	return all, nil
}

// ParseManifest parses body, the manifest d of one image, and checks it as
// Children does.
func ParseManifest(d Descriptor, body []byte) (*Manifest, error) {
	if !IsManifest(d.MediaType) {
		return nil, fmt.Errorf("%s has media type %q, which is no image: %w", d.Digest, d.MediaType, ErrUnsupported)
	}
	if _, err := Children(d.MediaType, body); err != nil {
		return nil, err
	}
	m := new(Manifest)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("manifest %s: %v: %w", d.Digest, err, ErrInvalid)
	}
	return m, nil
}

// ParseConfig parses body, the config d of an image.
func ParseConfig(d Descriptor, body []byte) (*Image, error) {
	conf := new(Image)
	if err := json.Unmarshal(body, conf); err != nil {
		return nil, fmt.Errorf("config %s: %v: %w", d.Digest, err, ErrInvalid)
	}
	return conf, nil
}
