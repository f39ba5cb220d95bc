package image

import (
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
	Env                   []string // KEY=VALUE, in order
	UnsetEnv              []string
	Labels, Annotations   map[string]string
	UnsetLabels           []string
	UnsetAnnotations      []string
	Ports, UnsetPorts     []string // as the config has them: "80/tcp"
	Volumes, UnsetVolumes []string
	Entrypoint, Cmd       *[]string // an empty list removes it
	User, WorkingDir      *string   // "" removes it
	StopSignal            *string
	// CreatedBy is the line that the history gets.
	CreatedBy string
}

// Mutate puts an image with im's layers and a changed config into s and
// returns it. The image's time is not changed, so the same edit makes the same
// image. Called under the lease im was opened under. What is to be unset and is
// not there fails with oci.ErrNotFound: it was misspelt.
func Mutate(ctx context.Context, s *store.Store, im *Image, e *Edit) (*Made, error) {
	config, manifest, err := im.objects()
	if err != nil {
		return nil, err
	}
	inner, err := object(config["config"])
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if err := e.change(inner, &im.Config); err != nil {
		return nil, err
	}
	history := append(slices.Clone(im.Config.History), oci.History{Created: im.Config.Created, CreatedBy: e.CreatedBy, EmptyLayer: true})
	if err := setAll(config, map[string]any{"config": inner, "history": history}); err != nil {
		return nil, err
	}
	if err := e.annotate(manifest); err != nil {
		return nil, err
	}
	return im.put(ctx, s, config, manifest, im.Layers, len(e.Annotations) > 0)
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
	for name, s := range map[string]*string{"User": e.User, "WorkingDir": e.WorkingDir, "StopSignal": e.StopSignal} {
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
