// Package ocitest is for tests only: tiny images whose bytes are the same on
// every run, Memory, a place in memory to copy from and to, and Run, the suite
// of tests that every content.Source and content.Sink passes.
package ocitest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
)

// Blob is one piece of content with its bytes.
type Blob struct {
	oci.Descriptor
	Body []byte
}

// Image is an image, index or artifact with all below it.
type Image struct {
	// Target is what a tag of the image points at.
	Target oci.Descriptor
	// Blobs in an order in which they may be put: children first, Target last.
	// No digest occurs twice.
	Blobs []Blob
}

// Body returns the bytes of the blob with that digest, nil if there is none.
func (im *Image) Body(d oci.Digest) []byte {
	for _, b := range im.Blobs {
		if b.Digest == d {
			return b.Body
		}
	}
	return nil
}

// Manifest returns the first single image's manifest in im.
func (im *Image) Manifest() oci.Manifest {
	for _, b := range im.Blobs {
		if oci.IsManifest(b.MediaType) {
			var m oci.Manifest
			if err := json.Unmarshal(b.Body, &m); err != nil {
				panic(err)
			}
			return m
		}
	}
	panic("ocitest: no manifest")
}

// Layers returns the layers of the first single image in im.
func (im *Image) Layers() []Blob {
	var layers []Blob
	for _, l := range im.Manifest().Layers {
		layers = append(layers, Blob{l, im.Body(l.Digest)})
	}
	return layers
}

func (im *Image) add(mediaType string, body []byte) oci.Descriptor {
	d := oci.DescriptorOf(mediaType, body)
	if im.Body(d.Digest) == nil {
		im.Blobs = append(im.Blobs, Blob{d, body})
	}
	return d
}

func (im *Image) addJSON(mediaType string, v any) oci.Descriptor {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return im.add(mediaType, body)
}

// Spec says what Make makes; the zero value is an OCI image without layers.
type Spec struct {
	// Layers are the layers' tars, lowest first; see Layer.
	Layers [][]byte
	// Packing of the layers; plain by default.
	Packing content.Compression
	// Docker uses docker's schema 2 media types.
	Docker bool
	// Platform is linux/amd64 by default.
	Platform oci.Platform
	// Env makes configs differ.
	Env []string
}

// Make makes an image of one platform.
func Make(s Spec) *Image {
	im := new(Image)
	s.addTo(im)
	return im
}

var epoch = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)

func (s Spec) addTo(im *Image) oci.Descriptor {
	p := s.Platform
	if p.OS == "" {
		p = oci.Platform{OS: "linux", Architecture: "amd64"}
	}
	mt := struct{ manifest, config, plain, gzip, zstd string }{oci.MediaTypeManifest, oci.MediaTypeConfig, oci.MediaTypeLayer, oci.MediaTypeLayerGzip, oci.MediaTypeLayerZstd}
	if s.Docker {
		mt = struct{ manifest, config, plain, gzip, zstd string }{oci.MediaTypeDockerMani, oci.MediaTypeDockerConfig, oci.MediaTypeDockerLayer, oci.MediaTypeDockerGzip, oci.MediaTypeDockerZstd}
	}
	var cfg oci.Image
	cfg.Created = &epoch
	cfg.Platform = p
	cfg.Config.Env = s.Env
	cfg.Config.Cmd = []string{"/bin/hello"}
	cfg.RootFS.Type = "layers"
	m := oci.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mt.manifest}
	for i, plain := range s.Layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(plain))
		cfg.History = append(cfg.History, oci.History{Created: &epoch, CreatedBy: fmt.Sprintf("step %d", i)})
		mediaType := map[content.Compression]string{content.Uncompressed: mt.plain, content.Gzip: mt.gzip, content.Zstd: mt.zstd}[s.Packing]
		m.Layers = append(m.Layers, im.add(mediaType, Pack(plain, s.Packing)))
	}
	if m.Layers == nil {
		m.Layers = []oci.Descriptor{}
	}
	m.Config = im.addJSON(mt.config, cfg)
	im.Target = im.addJSON(mt.manifest, m)
	return im.Target
}

// Layer makes a plain layer tar from names and contents in turn; a name that
// ends with a slash is a directory and its content is ignored.
func Layer(namesAndContents ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i+1 < len(namesAndContents); i += 2 {
		name, body := namesAndContents[i], namesAndContents[i+1]
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), ModTime: epoch, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if name[len(name)-1] == '/' {
			h.Typeflag, h.Mode, h.Size, body = tar.TypeDir, 0o755, 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Pack compresses plain bytes.
func Pack(plain []byte, c content.Compression) []byte {
	var b bytes.Buffer
	var w io.WriteCloser
	switch c {
	case content.Gzip:
		w = gzip.NewWriter(&b)
	case content.Zstd:
		zw, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		if err != nil {
			panic(err)
		}
		w = zw
	default:
		return plain
	}
	if _, err := w.Write(plain); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func baseLayer() []byte {
	return Layer("bin/", "", "bin/hello", "#!/bin/sh\necho hello\n", "etc/", "", "etc/os-release", "ID=tiny\n")
}

func topLayer() []byte {
	return Layer("app/", "", "app/data", string(bytes.Repeat([]byte("0123456789abcdef"), 8<<10)))
}

// One is an OCI image of one plain layer, as a build leaves it.
func One() *Image { return Make(Spec{Layers: [][]byte{baseLayer()}, Env: []string{"IMAGE=one"}}) }

// Two is an OCI image of two gzip layers; the lower is One's.
func Two() *Image {
	return Make(Spec{Layers: [][]byte{baseLayer(), topLayer()}, Packing: content.Gzip, Env: []string{"IMAGE=two"}})
}

// Plain is Two without compression.
func Plain() *Image {
	return Make(Spec{Layers: [][]byte{baseLayer(), topLayer()}, Env: []string{"IMAGE=plain"}})
}

// Docker is an image of docker's schema 2 with two gzip layers.
func Docker() *Image {
	return Make(Spec{Layers: [][]byte{baseLayer(), topLayer()}, Packing: content.Gzip, Docker: true, Env: []string{"IMAGE=docker"}})
}

// Zstd is an OCI image with a zstd layer.
func Zstd() *Image {
	return Make(Spec{Layers: [][]byte{topLayer()}, Packing: content.Zstd, Env: []string{"IMAGE=zstd"}})
}

// TwoPlatforms is an OCI index of linux/amd64 and linux/arm64, which share
// their lower layer.
func TwoPlatforms() *Image { return twoPlatforms(false) }

// DockerList is TwoPlatforms as docker's manifest list.
func DockerList() *Image { return twoPlatforms(true) }

func twoPlatforms(docker bool) *Image {
	im := new(Image)
	ix := oci.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeIndex}
	if docker {
		ix.MediaType = oci.MediaTypeDockerList
	}
	for _, arch := range []string{"amd64", "arm64"} {
		p := oci.Platform{OS: "linux", Architecture: arch}
		d := Spec{Layers: [][]byte{baseLayer(), Layer("arch", arch)}, Packing: content.Gzip, Docker: docker, Platform: p}.addTo(im)
		d.Platform = &p
		ix.Manifests = append(ix.Manifests, d)
	}
	im.Target = im.addJSON(ix.MediaType, ix)
	return im
}

// Artifact is an OCI manifest of that artifact type which refers to subject.
func Artifact(subject oci.Descriptor, artifactType, body string) *Image {
	im := new(Image)
	subject = oci.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	m := oci.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeManifest,
		ArtifactType: artifactType, Subject: &subject,
		Config:      im.add(oci.MediaTypeEmptyJSON, []byte("{}")),
		Layers:      []oci.Descriptor{im.add("application/vnd.example.note", []byte(body))},
		Annotations: map[string]string{"org.example.note": body},
	}
	im.Target = im.addJSON(oci.MediaTypeManifest, m)
	return im
}
