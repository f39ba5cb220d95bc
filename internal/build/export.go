package build

import (
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"github.com/strake-project/strake/internal/build/cache"
	"github.com/strake-project/strake/internal/oci"
)

// Image is a finished image of one platform, before it has a manifest.
type Image struct {
	Snapshot *Snapshot
	// Config is the image config as the frontend made it: its history lines
	// have no times yet and its rootfs is empty.
	Config []byte
	// BaseConfig is the base image's config, if there is one; its history
	// keeps its times.
	BaseConfig []byte
	// Epoch is SOURCE_DATE_EPOCH: no time in the config is later.
	Epoch    *time.Time
	Platform oci.Platform
	// Edge is what the graph asked for, which a provenance tells.
	Edge Edge

	cache json.RawMessage // the inline build cache
}

// finishConfig fills in what only the finished image knows: rootfs, and the
// times of its history. Fields that strake does not know are kept.
func finishConfig(img Image) ([]byte, error) {
	var config oci.Image
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return nil, fmt.Errorf("image config: %v: %w", err, oci.ErrInvalid)
	}
	if err := json.Unmarshal(img.Config, &fields); err != nil {
		return nil, fmt.Errorf("image config: %v: %w", err, oci.ErrInvalid)
	}
	var layers []Layer
	if img.Snapshot != nil {
		layers = img.Snapshot.Layers
	}
	history := finishHistory(config.History, layers)
	if err := clamp(history, img); err != nil {
		return nil, err
	}
	created := config.Created
	if created == nil {
		for _, h := range history {
			if h.Created != nil {
				created = h.Created
			}
		}
	}
	if img.Epoch != nil && created != nil && created.After(*img.Epoch) {
		created = img.Epoch
	}
	rootfs := struct {
		Type    string       `json:"type"`
		DiffIDs []oci.Digest `json:"diff_ids"`
	}{"layers", img.Snapshot.DiffIDs()}
	if rootfs.DiffIDs == nil {
		rootfs.DiffIDs = []oci.Digest{}
	}
	for name, v := range map[string]any{"rootfs": rootfs, "history": history, "created": created} {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		fields[name] = b
	}
	delete(fields, cache.InlineField) // a base's
	if img.cache != nil {
		fields[cache.InlineField] = img.cache
	}
	return json.Marshal(fields)
}

// finishHistory makes the history's lines that stand for layers agree with the
// layers in number, and gives every line a time: its layer's, or, for a line
// without a layer, that of the layer after it or else before it. A base
// image's lines have theirs already.
func finishHistory(history []oci.History, layers []Layer) []oci.History {
	out := make([]oci.History, 0, len(history))
	n := 0
	for _, h := range history {
		if !h.EmptyLayer && n >= len(layers) {
			h.EmptyLayer = true // the config claims a layer too many
		}
		if !h.EmptyLayer {
			if h.Created == nil && !layers[n].Created.IsZero() {
				h.Created = &layers[n].Created
			}
			n++
		}
		out = append(out, h)
	}
	for ; n < len(layers); n++ {
		l := layers[n]
		h := oci.History{CreatedBy: l.CreatedBy, Comment: "buildkit.exporter.image.v0"}
		if !l.Created.IsZero() {
			h.Created = &l.Created
		}
		out = append(out, h)
	}
	var created *time.Time
	missing := false
	for _, h := range out {
		if h.Created != nil {
			created = h.Created
			if missing {
				break
			}
		} else {
			missing = true
		}
	}
	missing = false
	for i := range out {
		if out[i].Created != nil {
			if missing {
				created = out[i].Created
			}
			continue
		}
		missing = true
		out[i].Created = created
	}
	return out
}

// clamp applies SOURCE_DATE_EPOCH to the lines that this build added.
func clamp(history []oci.History, img Image) error {
	if img.Epoch == nil {
		return nil
	}
	var base oci.Image
	if len(img.BaseConfig) > 0 {
		if err := json.Unmarshal(img.BaseConfig, &base); err != nil {
			return fmt.Errorf("base image config: %v: %w", err, oci.ErrInvalid)
		}
	}
	ours := false
	for i, h := range history {
		ours = ours || i >= len(base.History) || !reflect.DeepEqual(h, base.History[i])
		if ours && (h.Created == nil || h.Created.After(*img.Epoch)) {
			history[i].Created = img.Epoch
		}
	}
	return nil
}
