package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// Edit says what Mutate changes. Nil and empty fields change nothing.
type Edit struct {
	// Env, Labels and Annotations are set; those of the Unset lists go.
	Env                        []string // KEY=VALUE, in order
	UnsetEnv                   []string
	Labels, Annotations        map[string]string
	UnsetLabels                []string
	UnsetAnnotations           []string
	Ports, UnsetPorts          []string // as the config has them: "80/tcp"
	Volumes, UnsetVolumes      []string
	Entrypoint, Cmd            *[]string // an empty list removes it
	User, WorkingDir, StopSign *string   // "" removes it
	// CreatedBy is the line that the history gets.
	CreatedBy string
}

// Mutate puts an image with im's layers and a changed config into s, and
// returns its ID and manifest. The image's time is not changed, so the same
// edit makes the same image. Called under the lease im was opened under. What is
// to be unset and is not there fails with oci.ErrNotFound: it was misspelt.
func Mutate(ctx context.Context, s *store.Store, im *Image, e *Edit) (oci.Digest, oci.Descriptor, error) {
	fields, err := object(im.rawConfig)
	if err != nil {
		return "", oci.Descriptor{}, fmt.Errorf("config: %w", err)
	}
	config, err := object(fields["config"])
	if err != nil {
		return "", oci.Descriptor{}, fmt.Errorf("config: %w", err)
	}
	if err := e.change(config, &im.Config); err != nil {
		return "", oci.Descriptor{}, err
	}
	history := append(slices.Clone(im.Config.History), oci.History{Created: im.Config.Created, CreatedBy: e.CreatedBy, EmptyLayer: true})
	if err := setAll(fields, map[string]any{"config": config, "history": history}); err != nil {
		return "", oci.Descriptor{}, err
	}
	manifest, err := object(im.rawManifest)
	if err != nil {
		return "", oci.Descriptor{}, fmt.Errorf("manifest: %w", err)
	}
	if err := e.annotate(manifest); err != nil {
		return "", oci.Descriptor{}, err
	}
	return im.put(ctx, s, fields, manifest, im.Layers, len(e.Annotations) > 0)
}

// put stores a config and a manifest made of im's.
func (im *Image) put(ctx context.Context, s *store.Store, config, manifest map[string]json.RawMessage, layers []oci.Descriptor, asOCI bool) (oci.Digest, oci.Descriptor, error) {
	body, err := json.Marshal(config)
	if err != nil {
		return "", oci.Descriptor{}, err
	}
	d := im.Manifest
	configType, docker := oci.MediaTypeConfig, d.MediaType == oci.MediaTypeDockerMani
	if docker && !asOCI {
		configType = oci.MediaTypeDockerConfig
	} else {
		d.MediaType = oci.MediaTypeManifest
	}
	list := make([]oci.Descriptor, len(layers))
	for i, l := range layers {
		l.MediaType = inFamily(l.MediaType, docker && !asOCI)
		list[i] = l
	}
	id := oci.DescriptorOf(configType, body)
	if err := s.Put(ctx, id, bytes.NewReader(body)); err != nil {
		return "", oci.Descriptor{}, err
	}
	delete(manifest, "subject") // what referred to the old image does not refer to this one
	if err := setAll(manifest, map[string]any{"config": id, "layers": list, "mediaType": d.MediaType}); err != nil {
		return "", oci.Descriptor{}, err
	}
	if body, err = json.Marshal(manifest); err != nil {
		return "", oci.Descriptor{}, err
	}
	made := oci.DescriptorOf(d.MediaType, body)
	return id.Digest, made, s.Put(ctx, made, bytes.NewReader(body))
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

// change applies e to the object "config" of an image's config.
func (e *Edit) change(config map[string]json.RawMessage, im *oci.Image) error {
	c := &im.Config
	values := map[string]any{}
	if len(e.Env)+len(e.UnsetEnv) > 0 {
		env, err := e.env(c.Env)
		if err != nil {
			return err
		}
		values["Env"] = orNone(env, len(env))
	}
	if len(e.Labels)+len(e.UnsetLabels) > 0 {
		labels, err := changed("label", c.Labels, e.Labels, e.UnsetLabels)
		if err != nil {
			return err
		}
		values["Labels"] = orNone(labels, len(labels))
	}
	if len(e.Ports)+len(e.UnsetPorts) > 0 {
		ports, err := changed("port", c.ExposedPorts, set(e.Ports), e.UnsetPorts)
		if err != nil {
			return err
		}
		values["ExposedPorts"] = orNone(ports, len(ports))
	}
	if len(e.Volumes)+len(e.UnsetVolumes) > 0 {
		volumes, err := changed("volume", c.Volumes, set(e.Volumes), e.UnsetVolumes)
		if err != nil {
			return err
		}
		values["Volumes"] = orNone(volumes, len(volumes))
	}
	for name, list := range map[string]*[]string{"Entrypoint": e.Entrypoint, "Cmd": e.Cmd} {
		if list != nil {
			values[name] = orNone(*list, len(*list))
		}
	}
	for name, s := range map[string]*string{"User": e.User, "WorkingDir": e.WorkingDir, "StopSignal": e.StopSign} {
		if s != nil {
			values[name] = orNone(*s, len(*s))
		}
	}
	return setAll(config, values)
}

// orNone is v, or nil where it is empty.
func orNone(v any, n int) any {
	if n == 0 {
		return nil
	}
	return v
}

func set(list []string) map[string]struct{} {
	m := map[string]struct{}{}
	for _, s := range list {
		m[s] = struct{}{}
	}
	return m
}

func changed[V any](kind string, old, more map[string]V, unset []string) (map[string]V, error) {
	m := maps.Clone(old)
	if m == nil {
		m = map[string]V{}
	}
	for _, k := range unset {
		if _, ok := m[k]; !ok {
			return nil, fmt.Errorf("the image has no %s %q to unset: %w", kind, k, oci.ErrNotFound)
		}
		delete(m, k)
	}
	maps.Copy(m, more)
	return m, nil
}

// env keeps the order of what is there: later entries may build on it.
func (e *Edit) env(old []string) ([]string, error) {
	env := slices.Clone(old)
	find := func(name string) int {
		return slices.IndexFunc(env, func(s string) bool { n, _ := cutEnv(s); return n == name })
	}
	for _, name := range e.UnsetEnv {
		i := find(name)
		if i < 0 {
			return nil, fmt.Errorf("the image has no variable %q to unset: %w", name, oci.ErrNotFound)
		}
		env = slices.Delete(env, i, i+1)
	}
	for _, kv := range e.Env {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not KEY=VALUE: %w", kv, oci.ErrInvalid)
		}
		if i := find(name); i >= 0 {
			env[i] = kv
		} else {
			env = append(env, kv)
		}
	}
	return env, nil
}

func (e *Edit) annotate(manifest map[string]json.RawMessage) error {
	if len(e.Annotations)+len(e.UnsetAnnotations) == 0 {
		return nil
	}
	old := map[string]string{}
	if raw := manifest["annotations"]; raw != nil {
		if err := json.Unmarshal(raw, &old); err != nil {
			return fmt.Errorf("annotations: %v: %w", err, oci.ErrInvalid)
		}
	}
	m, err := changed("annotation", old, e.Annotations, e.UnsetAnnotations)
	if err != nil {
		return err
	}
	return setAll(manifest, map[string]any{"annotations": orNone(m, len(m))})
}
