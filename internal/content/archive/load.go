package archive

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
)

// The names of an archive's own files and annotations.
const (
	indexFile    = "index.json"
	layoutFile   = "oci-layout"
	manifestFile = "manifest.json"
	reposFile    = "repositories"

	annotationName    = "io.containerd.image.name"
	annotationRefName = "org.opencontainers.image.ref.name"
)

// entry is one image of docker's manifest.json.
type entry struct {
	Config       string
	RepoTags     []string
	Layers       []string
	LayerSources map[oci.Digest]oci.Descriptor `json:",omitempty"`
}

// load finds the images: in index.json or, where there is none, in docker's
// manifest.json.
func (a *Archive) load(ctx context.Context) error {
	var ix oci.Index
	err := a.json(indexFile, &ix)
	if errors.Is(err, oci.ErrNotFound) {
		return a.loadDocker(ctx)
	}
	if err != nil {
		return err
	}
	var layout struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := a.json(layoutFile, &layout); err == nil && layout.Version != "" && layout.Version != "1.0.0" {
		return fmt.Errorf("unsupported OCI version %s: %w", layout.Version, oci.ErrInvalid)
	}
	for _, d := range ix.Manifests {
		if !oci.IsManifest(d.MediaType) && !oci.IsIndex(d.MediaType) {
			continue
		}
		if err := a.learn(d, 4); err != nil {
			return fmt.Errorf("%s: %w", indexFile, err)
		}
		r, err := nameOf(d)
		if err != nil {
			return err
		}
		target := d
		target.Annotations = nil
		a.images = append(a.images, Image{Ref: r, Target: target})
	}
	if len(a.images) == 0 {
		return fmt.Errorf("%s names no image: %w", indexFile, oci.ErrInvalid)
	}
	return a.nameByDocker()
}

// nameOf reads the name that an index's annotations give d. A bare tag, which
// is all that the image specification asks for, names no repository: such an
// image is loaded without a name.
func nameOf(d oci.Descriptor) (ref.Ref, error) {
	name := d.Annotations[annotationName]
	if name == "" {
		if name = d.Annotations[annotationRefName]; !strings.ContainsAny(name, ":/") {
			return ref.Ref{}, nil
		}
	}
	r, err := ref.Parse(name)
	if err != nil {
		return r, fmt.Errorf("%s names an image %q: %w", indexFile, name, err)
	}
	return ref.Ref{Domain: r.Domain, Path: r.Path, Tag: r.Tag}.WithDefaultTag(), nil
}

// nameByDocker takes names from manifest.json where index.json has none.
func (a *Archive) nameByDocker() error {
	for _, im := range a.images {
		if im.Ref.Tag != "" {
			return nil
		}
	}
	var entries []entry
	if err := a.json(manifestFile, &entries); errors.Is(err, oci.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	tags := map[string][]string{} // by the hex digits of the config
	for _, e := range entries {
		id := strings.TrimSuffix(path.Base(e.Config), ".json")
		tags[id] = append(tags[id], e.RepoTags...)
	}
	var named []Image
	for _, im := range a.images {
		refs, err := parseTags(tags[a.configOf(im.Target).Encoded()])
		if err != nil {
			return err
		}
		for _, r := range refs {
			named = append(named, Image{r, im.Target})
		}
		if len(refs) == 0 {
			named = append(named, im)
		}
	}
	a.images = named
	return nil
}

// configOf is the digest of a single image's config; of an index, a digest
// that nothing has.
func (a *Archive) configOf(d oci.Descriptor) oci.Digest {
	var m oci.Manifest
	if body, err := a.body(d); err != nil || !oci.IsManifest(d.MediaType) || json.Unmarshal(body, &m) != nil {
		return digest.FromString("")
	}
	return m.Config.Digest
}

func parseTags(tags []string) ([]ref.Ref, error) {
	var refs []ref.Ref
	for _, s := range tags {
		r, err := ref.ParseTag(s)
		if err != nil {
			return nil, fmt.Errorf("%s names an image %q: %w", manifestFile, s, err)
		}
		refs = append(refs, r)
	}
	return refs, nil
}

// loadDocker reads the older form.
func (a *Archive) loadDocker(ctx context.Context) error {
	var entries []entry
	err := a.json(manifestFile, &entries)
	if errors.Is(err, oci.ErrNotFound) {
		if _, _, c, err := a.files.Open(reposFile); err == nil {
			c.Close()
			return fmt.Errorf("an archive of docker before 1.10, without %s: %w; load and save it with a newer docker", manifestFile, oci.ErrUnsupported)
		}
		return invalid{errors.New("invalid archive: does not contain a " + manifestFile)}
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		d, err := a.makeManifest(ctx, e)
		if err != nil {
			return err
		}
		refs, err := parseTags(e.RepoTags)
		if err != nil {
			return err
		}
		for _, r := range refs {
			a.images = append(a.images, Image{r, d})
		}
		if len(refs) == 0 {
			a.images = append(a.images, Image{Target: d})
		}
	}
	if len(a.images) == 0 {
		return fmt.Errorf("%s names no image: %w", manifestFile, oci.ErrInvalid)
	}
	return nil
}

// makeManifest makes the OCI manifest of an image that has only a config and
// layers, as docker 25 does when it saves one.
func (a *Archive) makeManifest(ctx context.Context, e entry) (oci.Descriptor, error) {
	var none oci.Descriptor
	configName, err := clean(e.Config)
	if err != nil {
		return none, err
	}
	config, err := a.small(configName)
	if err != nil {
		return none, fmt.Errorf("%s: config: %w", manifestFile, err)
	}
	var cfg oci.Image
	if err := json.Unmarshal(config, &cfg); err != nil {
		return none, fmt.Errorf("config %s: %v: %w", e.Config, err, oci.ErrInvalid)
	}
	if got, want := len(e.Layers), len(cfg.RootFS.DiffIDs); got != want {
		// Docker's words: it takes the manifest for what is expected.
		return none, invalid{fmt.Errorf("invalid manifest, layers length mismatch: expected %d, got %d", got, want)}
	}
	m := oci.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeManifest,
		Config: oci.DescriptorOf(oci.MediaTypeConfig, config),
		Layers: make([]oci.Descriptor, len(e.Layers)),
	}
	a.blobs[m.Config.Digest] = blob{member: configName}
	members := make([]string, len(e.Layers))
	failed := make([]error, len(e.Layers))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, name := range e.Layers {
		if members[i], err = clean(name); err != nil {
			return none, err
		}
	}
	for i := range members {
		g.Go(func() error {
			m.Layers[i], failed[i] = a.layer(ctx, members[i], cfg.RootFS.DiffIDs[i])
			return nil
		})
	}
	g.Wait()
	for _, err := range failed { // the lowest layer's, whoever was first
		if err != nil {
			return none, err
		}
	}
	for i, d := range m.Layers {
		a.blobs[d.Digest] = blob{member: members[i]}
	}
	body, err := json.Marshal(m)
	if err != nil {
		return none, err
	}
	d := oci.DescriptorOf(m.MediaType, body)
	a.blobs[d.Digest] = blob{body: body}
	a.manifests[d.Digest] = manifest{Descriptor: d}
	return d, nil
}

// layer describes the layer in a member. A plain tar's digest is its diffID,
// which whoever stores it verifies. Of a compressed one the digest must be
// computed, and the diffID is checked in the same pass.
func (a *Archive) layer(ctx context.Context, name string, diffID oci.Digest) (oci.Descriptor, error) {
	if err := diffID.Validate(); err != nil {
		return oci.Descriptor{}, fmt.Errorf("layer %s has the diffID %q: %w", name, diffID, oci.ErrInvalid)
	}
	at, size, closer, err := a.files.Open(name)
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("%s: layer: %w", manifestFile, err)
	}
	defer closer.Close()
	var magic [6]byte
	n, err := io.ReadFull(io.NewSectionReader(at, 0, size), magic[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return oci.Descriptor{}, err
	}
	if layer.Sniff(magic[:n]) == layer.Plain {
		return oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: diffID, Size: size}, nil
	}
	hash := digest.SHA256.Hash()
	r := bufio.NewReaderSize(io.TeeReader(reader{ctx, io.NewSectionReader(at, 0, size)}, hash), 1<<20)
	plain, packing, err := layer.Decompress(r)
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("layer %s: %w", name, err)
	}
	defer plain.Close()
	mediaType := map[layer.Packing]string{layer.Gzip: oci.MediaTypeLayerGzip, layer.Zstd: oci.MediaTypeLayerZstd}[packing]
	if mediaType == "" {
		return oci.Descriptor{}, fmt.Errorf("layer %s is packed with %s: %w", name, packing, oci.ErrUnsupported)
	}
	got, err := diffID.Algorithm().FromReader(plain)
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("layer %s: %w", name, err)
	}
	if got != diffID {
		return oci.Descriptor{}, fmt.Errorf("layer %s: %w", name, &oci.DigestError{Want: diffID, Got: got})
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // what follows the packed stream is part of the blob
		return oci.Descriptor{}, err
	}
	return oci.Descriptor{MediaType: mediaType, Digest: digest.NewDigest(digest.SHA256, hash), Size: size}, nil
}

// reader ends when its context does.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// small reads a whole member that must be small.
func (a *Archive) small(name string) ([]byte, error) {
	at, size, closer, err := a.files.Open(name)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	if size > oci.MaxManifestSize {
		return nil, fmt.Errorf("%s has %d bytes, the most is %d: %w", name, size, oci.MaxManifestSize, oci.ErrInvalid)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(at, 0, size), body); err != nil {
		return nil, fmt.Errorf("%s: %w", name, badTar(err))
	}
	return body, nil
}

func (a *Archive) json(name string, v any) error {
	body, err := a.small(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s: %v: %w", name, err, oci.ErrInvalid)
	}
	return nil
}
