package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/image-spec/specs-go"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// Made is an image that was put into a store.
type Made struct {
	ID       oci.Digest // its config's
	Manifest oci.Descriptor
}

// Put puts an image into s whose layers are there and named by its config.
func Put(ctx context.Context, s *store.Store, config *oci.Image, layers []oci.Descriptor) (*Made, error) {
	id, err := putJSON(ctx, s, oci.MediaTypeConfig, config)
	if err != nil {
		return nil, err
	}
	m := oci.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeManifest, Config: id, Layers: layers}
	d, err := putJSON(ctx, s, m.MediaType, m)
	return &Made{id.Digest, d}, err
}

// put stores a config and a manifest made of im's.
func (im *Image) put(ctx context.Context, s *store.Store, config, manifest map[string]json.RawMessage, layers []oci.Descriptor, asOCI bool) (*Made, error) {
	configType, manifestType := oci.MediaTypeConfig, oci.MediaTypeManifest
	docker := im.Manifest.MediaType == oci.MediaTypeDockerMani && !asOCI
	if docker {
		configType, manifestType = oci.MediaTypeDockerConfig, oci.MediaTypeDockerMani
	}
	list := make([]oci.Descriptor, len(layers))
	for i, l := range layers {
		l.MediaType = inFamily(l.MediaType, docker)
		list[i] = l
	}
	id, err := putJSON(ctx, s, configType, config)
	if err != nil {
		return nil, err
	}
	delete(manifest, "subject") // what referred to the old image does not refer to this one
	if err := setAll(manifest, map[string]any{"config": id, "layers": list, "mediaType": manifestType}); err != nil {
		return nil, err
	}
	d, err := putJSON(ctx, s, manifestType, manifest)
	return &Made{id.Digest, d}, err
}

// putJSON stores v and describes it.
func putJSON(ctx context.Context, s *store.Store, mediaType string, v any) (oci.Descriptor, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return oci.Descriptor{}, err
	}
	d := oci.DescriptorOf(mediaType, body)
	return d, s.Put(ctx, d, bytes.NewReader(body))
}

// inFamily is a layer's media type in docker's or in OCI's words: a manifest
// does not mix them.
func inFamily(mediaType string, docker bool) string {
	for _, pair := range [][2]string{
		{oci.MediaTypeLayer, oci.MediaTypeDockerLayer}, {oci.MediaTypeLayerGzip, oci.MediaTypeDockerGzip}, {oci.MediaTypeLayerZstd, oci.MediaTypeDockerZstd},
	} {
		if docker && mediaType == pair[0] {
			return pair[1]
		}
		if !docker && mediaType == pair[1] {
			return pair[0]
		}
	}
	return mediaType
}

// objects are im's config and manifest with all their fields, to be changed.
func (im *Image) objects() (config, manifest map[string]json.RawMessage, err error) {
	if config, err = object(im.rawConfig); err != nil {
		return nil, nil, fmt.Errorf("config: %w", err)
	}
	if manifest, err = object(im.rawManifest); err != nil {
		return nil, nil, fmt.Errorf("manifest: %w", err)
	}
	return config, manifest, nil
}

// object parses a JSON object, keeping the values as they are.
func object(raw []byte) (map[string]json.RawMessage, error) {
	m := map[string]json.RawMessage{}
	if len(raw) == 0 {
		return m, nil
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%v: %w", err, oci.ErrInvalid)
	}
	if m == nil { // "null"
		m = map[string]json.RawMessage{}
	}
	return m, nil
}

// setAll sets fields; those whose value is nil go.
func setAll(fields map[string]json.RawMessage, values map[string]any) error {
	for name, v := range values {
		if v == nil {
			delete(fields, name)
			continue
		}
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		fields[name] = b
	}
	return nil
}

// setLayers gives a config other layers and the history that goes with them.
func setLayers(config map[string]json.RawMessage, diffIDs []oci.Digest, history []oci.History) error {
	rootfs, err := object(config["rootfs"])
	if err != nil {
		return fmt.Errorf("config: rootfs: %w", err)
	}
	if err := setAll(rootfs, map[string]any{"diff_ids": diffIDs}); err != nil {
		return err
	}
	return setAll(config, map[string]any{"rootfs": rootfs, "history": history})
}
