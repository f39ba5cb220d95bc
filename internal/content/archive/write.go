package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Writer writes a docker-save archive to a stream. It is a content.Sink: copy
// images to it, then Close it, which writes what names them. Blobs that images
// share are written once; nothing is compressed or recompressed.
//
// What fits in memory is checked before it is written. A larger blob is checked
// as it passes: where it turns out wrong, the stream is broken and everything
// fails from then on.
type Writer struct {
	mu     sync.Mutex
	tar    *tar.Writer
	broken error
	// started says that the directories are written.
	started bool
	plain   bool                  // an OCI layout without docker's files
	sizes   map[oci.Digest]int64  // of the blobs written
	bodies  map[oci.Digest][]byte // of the manifests and indexes among them
	tagged  []Image
}

// inMemory is the size up to which a blob is checked before it is written.
const inMemory = 1 << 20

// NewWriter starts an archive.
func NewWriter(w io.Writer) *Writer {
	return &Writer{tar: tar.NewWriter(w), sizes: map[oci.Digest]int64{}, bodies: map[oci.Digest][]byte{}}
}

// NewLayoutWriter starts an archive that is an OCI layout and nothing else.
func NewLayoutWriter(w io.Writer) *Writer {
	aw := NewWriter(w)
	aw.plain = true
	return aw
}

// AcceptsSparseIndex implements content.SparseSink: an image of which one
// platform is here keeps its index, and so its digest, through save and load.
func (w *Writer) AcceptsSparseIndex() {}

// WritesInOrder implements content.OrderedSink: the same image gives the same
// bytes.
func (w *Writer) WritesInOrder() {}

// Has implements content.Sink.
func (w *Writer) Has(ctx context.Context, d oci.Descriptor) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.sizes[d.Digest]
	return ok, nil
}

// Put implements content.Sink.
func (w *Writer) Put(ctx context.Context, d oci.Descriptor, r io.Reader) error {
	if err := d.Digest.Validate(); err != nil || d.Size < 0 {
		return fmt.Errorf("digest %q of %d bytes: %w", d.Digest, d.Size, oci.ErrInvalid)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.sizes[d.Digest]; ok {
		return nil
	}
	if w.broken != nil {
		return w.broken
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	image := oci.IsManifest(d.MediaType) || oci.IsIndex(d.MediaType)
	if !image && d.Size > inMemory {
		return w.stream(ctx, d, r)
	}
	body, err := oci.ReadAll(r, d)
	if err != nil {
		return err
	}
	if image {
		if err := w.checkChildren(d, body); err != nil {
			return err
		}
	}
	if err := w.write(blobName(d.Digest), bytes.NewReader(body), d.Size); err != nil {
		return err
	}
	w.sizes[d.Digest] = d.Size
	if image {
		w.bodies[d.Digest] = body
	}
	return nil
}

func (w *Writer) checkChildren(d oci.Descriptor, body []byte) error {
	children, err := oci.Children(d.MediaType, body)
	if err != nil {
		return err
	}
	for _, c := range children {
		if _, ok := w.sizes[c.Digest]; !ok && !oci.IsIndex(d.MediaType) {
			return fmt.Errorf("%s is written before %s, which it names: %w", d.Digest, c.Digest, oci.ErrNotFound)
		}
	}
	return nil
}

func (w *Writer) stream(ctx context.Context, d oci.Descriptor, r io.Reader) error {
	if err := w.write(blobName(d.Digest), reader{ctx, oci.Verify(r, d)}, d.Size); err != nil {
		if w.broken == nil {
			w.broken = err
		}
		return err
	}
	w.sizes[d.Digest] = d.Size
	return nil
}

func blobName(d oci.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

// write appends a member. Nothing is written where r fails at once.
func (w *Writer) write(name string, r io.Reader, size int64) error {
	if !w.started {
		w.started = true
		for _, dir := range []string{"blobs/", "blobs/sha256/"} {
			if err := w.header(&tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
				return err
			}
		}
	}
	if err := w.header(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{w.tar}, r, make([]byte, 256<<10))
	if err != nil {
		w.broken = err
	}
	return err
}

// header writes one with a fixed time, owner and format.
func (w *Writer) header(h *tar.Header) error {
	h.ModTime = time.Unix(0, 0)
	err := w.tar.WriteHeader(h)
	if err != nil {
		w.broken = err
	}
	return err
}

// Tag implements content.Sink. An image may have several names, or none.
func (w *Writer) Tag(ctx context.Context, r ref.Ref, d oci.Descriptor) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		return w.broken
	}
	if _, ok := w.bodies[d.Digest]; !ok {
		return fmt.Errorf("tag %s: the archive has no image %s: %w", r.Familiar(), d.Digest, oci.ErrNotFound)
	}
	name := ref.Ref{}
	if r.Tag != "" {
		name = r.WithTag(r.Tag)
	}
	// A name points at one image; an image is listed without a name only as
	// long as it has none.
	named := false
	w.tagged = slices.DeleteFunc(w.tagged, func(im Image) bool {
		sameImage := im.Target.Digest == d.Digest
		named = named || sameImage && im.Ref.Tag != ""
		if im.Ref.Tag == "" {
			return sameImage
		}
		return im.Ref == name
	})
	if name.Tag == "" && named {
		return nil
	}
	w.tagged = append(w.tagged, Image{name, d})
	return nil
}

// errClosed is what a Writer fails with after Close.
var errClosed = errors.New("the archive is closed")

// Close writes the files that name the images and ends the tar. It does not
// close the stream. An archive that failed stays without them, so that nobody
// can load it.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		return w.broken
	}
	ix := oci.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeIndex, Manifests: []oci.Descriptor{}}
	docker := manifests{writer: w, entries: []*entry{}, repos: map[string]map[string]string{}}
	for _, im := range w.tagged {
		d := im.Target
		d.Annotations = naming(d.Annotations, im.Ref)
		ix.Manifests = append(ix.Manifests, d)
		if err := docker.add(im); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name  string
		value any
	}{
		{indexFile, ix},
		{manifestFile, docker.entries},
		{layoutFile, v1.ImageLayout{Version: v1.ImageLayoutVersion}},
		{reposFile, docker.repos},
	} {
		body, err := json.Marshal(f.value)
		if err != nil {
			return err
		}
		if f.name == reposFile && len(docker.repos) == 0 || w.plain && (f.name == reposFile || f.name == manifestFile) {
			continue
		}
		if err := w.write(f.name, bytes.NewReader(body), int64(len(body))); err != nil {
			return err
		}
	}
	if err := w.tar.Close(); err != nil {
		return err
	}
	w.broken = errClosed
	return nil
}

// naming adds to a descriptor's annotations those that name an image in an
// index.
func naming(notes map[string]string, r ref.Ref) map[string]string {
	out := maps.Clone(notes)
	delete(out, annotationName)
	delete(out, annotationRefName)
	if r.Tag != "" {
		if out == nil {
			out = map[string]string{}
		}
		out[annotationName], out[annotationRefName] = r.String(), r.Tag
	}
	return out
}

// manifests are docker's own files, manifest.json and repositories.
type manifests struct {
	writer  *Writer
	entries []*entry
	repos   map[string]map[string]string
}

// add lists an image. Docker's form knows no indexes: of one it lists the
// image for this host, or the first that there is.
func (m *manifests) add(im Image) error {
	d, ok := m.choose(im.Target, 4)
	if !ok {
		return nil
	}
	var man oci.Manifest
	if err := json.Unmarshal(m.writer.bodies[d.Digest], &man); err != nil {
		return fmt.Errorf("%s: %w", d.Digest, err)
	}
	if man.ArtifactType != "" || len(man.Layers) > 0 && !oci.IsLayer(man.Layers[0].MediaType) {
		return nil // an artifact is no image that docker could load
	}
	e := m.entry(man)
	if im.Ref.Tag == "" {
		return nil
	}
	e.RepoTags = append(e.RepoTags, im.Ref.Familiar())
	if len(man.Layers) > 0 {
		name := im.Ref.FamiliarName()
		if m.repos[name] == nil {
			m.repos[name] = map[string]string{}
		}
		m.repos[name][im.Ref.Tag] = man.Layers[len(man.Layers)-1].Digest.Encoded()
	}
	return nil
}

// entry finds the entry of that image or adds one.
func (m *manifests) entry(man oci.Manifest) *entry {
	config := blobName(man.Config.Digest)
	for _, e := range m.entries {
		if e.Config == config {
			return e
		}
	}
	e := &entry{Config: config, Layers: []string{}}
	for _, l := range man.Layers {
		e.Layers = append(e.Layers, blobName(l.Digest))
		if oci.IsPlainLayer(l.MediaType) {
			if e.LayerSources == nil {
				e.LayerSources = map[oci.Digest]oci.Descriptor{}
			}
			e.LayerSources[l.Digest] = oci.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}
		}
	}
	m.entries = append(m.entries, e)
	return e
}

func (m *manifests) choose(d oci.Descriptor, depth int) (oci.Descriptor, bool) {
	body, ok := m.writer.bodies[d.Digest]
	if !ok || depth == 0 {
		return d, false
	}
	if oci.IsManifest(d.MediaType) {
		return d, true
	}
	children, err := oci.Children(d.MediaType, body)
	if err != nil {
		return d, false
	}
	var here []oci.Descriptor
	for _, c := range children {
		if _, ok := m.writer.bodies[c.Digest]; ok {
			here = append(here, c)
		}
	}
	if best, err := content.Choose(here, content.Host()); err == nil {
		return m.choose(best, depth-1)
	}
	for _, c := range here {
		if best, ok := m.choose(c, depth-1); ok {
			return best, true
		}
	}
	return d, false
}
