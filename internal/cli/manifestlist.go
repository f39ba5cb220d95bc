package cli

import (
	"bytes"
	"encoding/json"
	"io"

	"github.com/strake-project/strake/internal/oci"
)

// manifestList is a list as docker writes it: the order of its fields and its
// indentation are part of its digest.
type manifestList struct {
	SchemaVersion int            `json:"schemaVersion"`
	MediaType     string         `json:"mediaType"`
	Manifests     []listManifest `json:"manifests"`
}

type listManifest struct {
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
	Digest    oci.Digest    `json:"digest"`
	Platform  *listPlatform `json:"platform,omitempty"`
}

type listPlatform struct {
	Architecture string   `json:"architecture"`
	OS           string   `json:"os"`
	OSVersion    string   `json:"os.version,omitempty"`
	OSFeatures   []string `json:"os.features,omitempty"`
	Variant      string   `json:"variant,omitempty"`
}

func newManifestList(mediaType string, ds []oci.Descriptor) ([]byte, error) {
	list := manifestList{SchemaVersion: 2, MediaType: mediaType, Manifests: []listManifest{}}
	for _, d := range ds {
		m := listManifest{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest}
		if p := d.Platform; p != nil {
			m.Platform = &listPlatform{p.Architecture, p.OS, p.OSVersion, p.OSFeatures, p.Variant}
		}
		list.Manifests = append(list.Manifests, m)
	}
	return json.MarshalIndent(list, "", "   ")
}

func writeIndented(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := b.WriteTo(w)
	return err
}
