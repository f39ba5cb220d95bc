package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

var sum = digest.FromString("x")

func sound() (*Document, []oci.Descriptor) {
	return &Document{
		Version: version,
		Layers: []Layer{
			{DiffID: sum, Base: &oci.Descriptor{MediaType: oci.MediaTypeLayerGzip, Digest: sum, Size: 9}},
			{DiffID: sum, Size: 10, Blob: 0},
		},
		Records:  []Record{{Key: sum, Outputs: []*Output{{Layers: []int{0, 1}}, nil}}},
		Contents: []Content{{Of: sum, Copy: sum, Content: sum}},
		Mounts:   []Mount{{Key: "k", ID: "m", DiffID: sum, Size: 3}},
	}, []oci.Descriptor{{MediaType: oci.MediaTypeLayerGzip, Digest: sum, Size: 5}}
}

// TestHostile: whatever a document claims that is not so is refused.
func TestHostile(t *testing.T) {
	for name, spoil := range map[string]func(*Document){
		"version":         func(d *Document) { d.Version = 99 },
		"diffID":          func(d *Document) { d.Layers[0].DiffID = "sha256:../../etc" },
		"negative size":   func(d *Document) { d.Layers[1].Size = -1 },
		"no size":         func(d *Document) { d.Layers[1].Size = 0 },
		"blob":            func(d *Document) { d.Layers[1].Blob = 1 },
		"negative blob":   func(d *Document) { d.Layers[1].Blob = -1 },
		"base digest":     func(d *Document) { d.Layers[0].Base.Digest = "" },
		"base type":       func(d *Document) { d.Layers[0].Base.MediaType = "text/html" },
		"key":             func(d *Document) { d.Records[0].Key = "" },
		"index":           func(d *Document) { d.Records[0].Outputs[0].Layers[0] = 2 },
		"negative index":  func(d *Document) { d.Records[0].Outputs[0].Layers[0] = -1 },
		"content":         func(d *Document) { d.Contents[0].Content = "x" },
		"mount blob":      func(d *Document) { d.Mounts[0].Blob = 7 },
		"mount owner":     func(d *Document) { d.Mounts[0].UID = -2 },
		"too many mounts": func(d *Document) { d.Mounts = make([]Mount, maxMounts+1) },
	} {
		d, blobs := sound()
		spoil(d)
		b, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(b, blobs); !errors.Is(err, oci.ErrInvalid) && !errors.Is(err, oci.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d, blobs := sound()
	b, _ := d.encode()
	if _, err := decode(b, blobs); err != nil {
		t.Error(err)
	}
}

// shelf is a source of one manifest and its config.
type shelf struct {
	top   oci.Descriptor
	blobs map[oci.Digest][]byte
}

func (s *shelf) Resolve(context.Context, ref.Ref) (oci.Descriptor, error) { return s.top, nil }

func (s *shelf) Open(_ context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	b, ok := s.blobs[d.Digest]
	if !ok {
		return nil, oci.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// FuzzImport: no config makes an import do anything but fail or be sound.
func FuzzImport(f *testing.F) {
	d, _ := sound()
	b, err := d.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, true)
	f.Add([]byte(`{"strake.buildcache.v1":{"version":1,"layers":[{"size":4}]},"rootfs":{"diff_ids":["`+string(sum)+`"]}}`), false)
	f.Fuzz(func(t *testing.T, config []byte, own bool) {
		mediaType := oci.MediaTypeConfig
		if own {
			mediaType = MediaType
		}
		m := oci.Manifest{MediaType: oci.MediaTypeManifest, Config: oci.DescriptorOf(mediaType, config),
			Layers: []oci.Descriptor{{MediaType: oci.MediaTypeLayerGzip, Digest: sum, Size: 5}}}
		m.SchemaVersion = 2
		body, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		top := oci.DescriptorOf(oci.MediaTypeManifest, body)
		parts, _, err := Import(t.Context(), &shelf{top, map[oci.Digest][]byte{top.Digest: body, m.Config.Digest: config}}, ref.Ref{})
		if err != nil {
			return
		}
		for _, p := range parts {
			if err := p.check(p.Blobs); err != nil {
				t.Error(err)
			}
		}
	})
}
