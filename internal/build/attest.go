package build

import (
	"context"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Attest says what an image is accompanied by: in-toto statements in a manifest
// of their own beside the image's in the index, as BuildKit writes them.
type Attest struct {
	Provenance *Provenance
	// SBOM makes an SPDX document of a file system, or is nil.
	SBOM func(ctx context.Context, view tree.View, created time.Time) ([]byte, error)
	// Config writes the manifest with an image config, for registries and
	// tools that know no artifacts.
	Config bool
	// Names are the image's, which the statements are about.
	Names []ref.Ref
}

// The annotations by which docker finds an attestation in an index, and the
// media types of what it is made of.
const (
	annotationReferenceType   = "vnd.docker.reference.type"
	annotationReferenceDigest = "vnd.docker.reference.digest"
	referenceAttestation      = "attestation-manifest"
	artifactAttestation       = "application/vnd.docker.attestation.manifest.v1+json"
	mediaTypeInToto           = "application/vnd.in-toto+json"
	annotationPredicate       = "in-toto.io/predicate-type"
	typeStatement             = "https://in-toto.io/Statement/v1"
	predicateSPDX             = "https://spdx.dev/Document"
)

type statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// statements are those about img, by the name of the file that they become
// where the result is a directory. about is their subject.
func (e *Engine) statements(ctx context.Context, img Image, at *Attest, about []subject) (map[string]*statement, error) {
	out := map[string]*statement{}
	if at.Provenance != nil {
		kind, predicate := e.provenance(img, at.Provenance)
		b, err := json.Marshal(predicate)
		if err != nil {
			return nil, err
		}
		out["provenance.json"] = &statement{typeStatement, kind, about, b}
	}
	if at.SBOM != nil {
		view, err := img.Snapshot.View(ctx)
		if err != nil {
			return nil, err
		}
		created := time.Now().UTC().Truncate(time.Second)
		if img.Epoch != nil {
			created = *img.Epoch
		}
		b, err := at.SBOM(ctx, view, created)
		if err != nil {
			return nil, err
		}
		out["sbom.spdx.json"] = &statement{typeStatement, predicateSPDX, about, b}
	}
	return out, nil
}

// Statements are the in-toto statements about the files of img, by file name:
// what an output that is no image has of attestations.
func (e *Engine) Statements(ctx context.Context, img Image, at *Attest, files map[string]oci.Digest) (map[string][]byte, error) {
	about := []subject{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		about = append(about, subject{name, map[string]string{"sha256": files[name].Encoded()}})
	}
	all, err := e.statements(ctx, img, at, about)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for name, st := range all {
		if out[name], err = json.MarshalIndent(st, "", "  "); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// attest adds the attestation manifest of the image d and returns its
// descriptor in the index.
func (e *Engine) attest(ctx context.Context, a *Assembly, img Image, d oci.Descriptor, at *Attest) (oci.Descriptor, error) {
	digest := map[string]string{"sha256": d.Digest.Encoded()}
	about := []subject{}
	for _, n := range at.Names {
		about = append(about, subject{purl(n, img.Platform), digest})
	}
	if len(about) == 0 {
		about = append(about, subject{"_", digest})
	}
	all, err := e.statements(ctx, img, at, about)
	if err != nil {
		return oci.Descriptor{}, err
	}
	m := oci.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeManifest}
	var ids []oci.Digest
	for _, name := range slices.Sorted(maps.Keys(all)) {
		l, err := a.addJSON(mediaTypeInToto, all[name])
		if err != nil {
			return oci.Descriptor{}, err
		}
		l.Annotations = map[string]string{annotationPredicate: all[name].PredicateType}
		m.Layers, ids = append(m.Layers, l), append(ids, l.Digest)
	}
	if at.Config {
		config := oci.Image{}
		config.Platform = unknownPlatform()
		config.RootFS = v1.RootFS{Type: "layers", DiffIDs: ids}
		if m.Config, err = a.addJSON(oci.MediaTypeConfig, config.Image); err != nil {
			return oci.Descriptor{}, err
		}
	} else {
		m.ArtifactType = artifactAttestation
		m.Config = a.add(oci.MediaTypeEmptyJSON, []byte("{}"))
		m.Config.Data = []byte("{}")
		m.Subject = &oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	}
	made, err := a.addJSON(oci.MediaTypeManifest, m)
	p := unknownPlatform()
	made.Platform = &p
	made.Annotations = map[string]string{
		annotationReferenceType: referenceAttestation, annotationReferenceDigest: string(d.Digest),
	}
	return made, err
}

func unknownPlatform() oci.Platform { return oci.Platform{OS: "unknown", Architecture: "unknown"} }

// purl is an image's name as a package URL: pkg:docker/NAME@TAG?platform=…
func purl(r ref.Ref, p oci.Platform) string {
	query := "platform=" + url.QueryEscape(platforms.Format(platforms.Normalize(p)))
	version := ""
	if r.Digest != "" {
		query = "digest=" + string(r.Digest) + "&" + query
	} else {
		r = r.WithDefaultTag()
	}
	if r.Tag != "" {
		version = "@" + r.Tag
	}
	parts := strings.Split(r.FamiliarName(), "/")
	for i := range parts {
		parts[i] = strings.ReplaceAll(url.PathEscape(parts[i]), ":", "%3A")
	}
	return "pkg:docker/" + strings.Join(parts, "/") + version + "?" + query
}
