package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Annotations of a manifest that name what it was built on.
const (
	AnnotationBaseName   = "org.opencontainers.image.base.name"
	AnnotationBaseDigest = "org.opencontainers.image.base.digest"
)

// Annotations are the manifest's.
func (im *Image) Annotations() map[string]string {
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	_ = json.Unmarshal(im.rawManifest, &m) // it was parsed before
	return m.Annotations
}

// Rebase puts an image into s that has im's layers above old on top of onto
// instead. Its config is im's with what onto changed against old: a field, a
// variable, a label, a port that im has as old had it becomes onto's. It fails
// with oci.ErrInvalid where im does not lie on old, or where one of its layers
// writes into a directory that is something else in onto. name is onto's, for
// the annotations that say so. Called under the lease the images were opened
// under.
func Rebase(ctx context.Context, s *store.Store, im, old, onto *Image, name string) (*Made, error) {
	n := len(old.Config.RootFS.DiffIDs)
	if len(im.Config.RootFS.DiffIDs) < n || !slices.Equal(im.Config.RootFS.DiffIDs[:n], old.Config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("the image does not lie on top of the old base: %w", oci.ErrInvalid)
	}
	if a, b := im.Config.Platform, onto.Config.Platform; a.OS != b.OS || a.Architecture != b.Architecture {
		return nil, fmt.Errorf("the image is for %s/%s, the new base for %s/%s: %w", a.OS, a.Architecture, b.OS, b.Architecture, oci.ErrInvalid)
	}
	if err := fitsOn(im.tocs[n:], old.Tree, onto.Tree); err != nil {
		return nil, err
	}
	config, manifest, err := im.objects()
	if err != nil {
		return nil, err
	}
	inner, err := mergedConfig(im, old, onto)
	if err != nil {
		return nil, err
	}
	if err := setAll(config, map[string]any{"config": inner}); err != nil {
		return nil, err
	}
	diffIDs := append(slices.Clone(onto.Config.RootFS.DiffIDs), im.Config.RootFS.DiffIDs[n:]...)
	history := append(slices.Clone(onto.Config.History), im.Config.History[ownHistory(im, old):]...)
	if err := setLayers(config, diffIDs, history); err != nil {
		return nil, err
	}
	if im.Manifest.MediaType == oci.MediaTypeManifest { // docker's has no annotations
		annotations := maps.Clone(im.Annotations())
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[AnnotationBaseName], annotations[AnnotationBaseDigest] = name, string(onto.Manifest.Digest)
		if err := setAll(manifest, map[string]any{"annotations": annotations}); err != nil {
			return nil, err
		}
	}
	return im.put(ctx, s, config, manifest, append(slices.Clone(onto.Layers), im.Layers[n:]...), false)
}

// ownHistory is where im's own lines of history begin: after old's, which are
// found by their number or, where they were rewritten, by their layers.
func ownHistory(im, old *Image) int {
	h, base := im.Config.History, old.Config.History
	if len(h) >= len(base) && slices.EqualFunc(h[:len(base)], base, func(x, y oci.History) bool {
		return x.CreatedBy == y.CreatedBy && x.EmptyLayer == y.EmptyLayer
	}) {
		return len(base)
	}
	layers := len(old.Config.RootFS.DiffIDs)
	for i := range h {
		if layers == 0 {
			return i
		}
		if !h[i].EmptyLayer {
			layers--
		}
	}
	return len(h)
}

// fitsOn refuses layers that would put a directory where onto has a symlink or
// a file, which old had not: /lib becoming a link to /usr/lib, for one. What
// they delete and is not there any more does no harm.
func fitsOn(above []*layer.TOC, old, onto tree.View) error {
	checked := map[string]bool{}
	for _, t := range above {
		for i := range t.Entries {
			e := &t.Entries[i]
			p := e.Path
			if e.Type != layer.Dir {
				p = path.Dir(p)
			}
			for ; p != "." && p != "/" && !checked[p]; p = path.Dir(p) {
				checked[p] = true
				now, err := onto.Lstat(p)
				if err != nil || now.Type == layer.Dir {
					continue
				}
				if was, err := old.Lstat(p); err == nil && was.Type != layer.Dir {
					continue
				}
				return fmt.Errorf("/%s, which the image has as a directory, is none in the new base: build the image again: %w", p, oci.ErrInvalid)
			}
		}
	}
	return nil
}

// mergedConfig is the object "config" of im with what onto changed against old.
func mergedConfig(im, old, onto *Image) (map[string]json.RawMessage, error) {
	var configs [3]map[string]json.RawMessage
	for i, x := range []*Image{im, old, onto} {
		fields, err := object(x.rawConfig)
		if err == nil {
			configs[i], err = object(fields["config"])
		}
		if err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	mine, was, now := configs[0], configs[1], configs[2]
	out := merge3(mine, was, now, func(x, y json.RawMessage) bool { return bytes.Equal(compact(x), compact(y)) })
	values := map[string]any{}
	env := mergedEnv(im.Config.Config.Env, old.Config.Config.Env, onto.Config.Config.Env)
	values["Env"] = orNone(env, len(env))
	labels := merge3(im.Config.Config.Labels, old.Config.Config.Labels, onto.Config.Config.Labels, func(x, y string) bool { return x == y })
	values["Labels"] = orNone(labels, len(labels))
	same := func(struct{}, struct{}) bool { return true }
	ports := merge3(im.Config.Config.ExposedPorts, old.Config.Config.ExposedPorts, onto.Config.Config.ExposedPorts, same)
	values["ExposedPorts"] = orNone(ports, len(ports))
	volumes := merge3(im.Config.Config.Volumes, old.Config.Config.Volumes, onto.Config.Config.Volumes, same)
	values["Volumes"] = orNone(volumes, len(volumes))
	return out, setAll(out, values)
}

// merge3 is mine, but where mine is as it was it is as it is now.
func merge3[V any](mine, was, now map[string]V, same func(x, y V) bool) map[string]V {
	out := map[string]V{}
	for k, v := range mine {
		old, had := was[k]
		if had && same(v, old) {
			if n, has := now[k]; has {
				out[k] = n
			}
			continue
		}
		out[k] = v
	}
	for k, v := range now {
		if _, had := was[k]; had {
			continue // mine has it, or took it away
		}
		if _, has := mine[k]; !has {
			out[k] = v
		}
	}
	return out
}

// mergedEnv keeps onto's order, then mine.
func mergedEnv(mine, was, now []string) []string {
	asMap := func(env []string) map[string]string {
		m := map[string]string{}
		for _, kv := range env {
			k, v := cutEnv(kv)
			m[k] = v
		}
		return m
	}
	merged := merge3(asMap(mine), asMap(was), asMap(now), func(x, y string) bool { return x == y })
	var out []string
	for _, kv := range append(slices.Clone(now), mine...) {
		k, _ := cutEnv(kv)
		if v, ok := merged[k]; ok {
			out = append(out, k+"="+v)
			delete(merged, k)
		}
	}
	return out
}

func compact(raw json.RawMessage) []byte {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return raw
	}
	return b.Bytes()
}
