package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/platforms"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

func platformKey(p oci.Platform) string { return platforms.FormatAll(p) }

// base is the number of img's layers that are its base image's, and that
// image's config.
func (img *Image) base() (int, *oci.Image, error) {
	var base oci.Image
	if len(img.BaseConfig) == 0 || img.Snapshot == nil {
		return 0, &base, nil
	}
	if err := json.Unmarshal(img.BaseConfig, &base); err != nil {
		return 0, nil, fmt.Errorf("base image config: %v: %w", err, oci.ErrInvalid)
	}
	n := 0
	for n < len(base.RootFS.DiffIDs) && n < len(img.Snapshot.Layers) && img.Snapshot.Layers[n].DiffID == base.RootFS.DiffIDs[n] {
		n++
	}
	return n, &base, nil
}

// rewrite makes no file of the layers above the base later than img.Epoch: what
// RUN writes, and what WORKDIR and COPY make, has the time of the build.
func (e *Engine) rewrite(ctx context.Context, img Image) (Image, error) {
	from, _, err := img.base()
	if err != nil || img.Snapshot == nil {
		return img, err
	}
	layers := append([]Layer(nil), img.Snapshot.Layers...)
	for i := from; i < len(layers); i++ {
		if layers[i], err = e.rewriteLayer(ctx, layers[i], *img.Epoch); err != nil {
			return img, err
		}
	}
	img.Snapshot = newSnapshot(e.opt.Store, layers, "")
	return img, nil
}

// rewriteLayer remembers its result as a step's: the layer stays as long as
// the build cache does.
func (e *Engine) rewriteLayer(ctx context.Context, l Layer, epoch time.Time) (Layer, error) {
	if !oci.IsPlainLayer(l.Descriptor.MediaType) {
		return l, nil // not made here
	}
	toc, err := e.opt.Store.TOC(ctx, l.DiffID)
	if err != nil {
		return l, err
	}
	late := false
	entries := make([]*layer.Entry, len(toc.Entries))
	for i := range toc.Entries {
		entry := toc.Entries[i]
		if entry.ModTime.After(epoch) {
			entry.ModTime, late = epoch, true
		}
		entries[i] = &entry
	}
	if !late {
		return l, nil
	}
	key := string(digestOf("rewrite", string(l.DiffID), epoch.UTC().Format(time.RFC3339)))
	if done, err := e.rewritten(ctx, key); err != nil || done != nil {
		if err != nil {
			return l, err
		}
		done.CreatedBy, done.Created = l.CreatedBy, l.Created
		return *done, nil
	}
	alone := tree.New([]*layer.TOC{toc}, func(ctx context.Context, _ int, entry *layer.Entry) (io.ReadCloser, error) {
		return e.opt.Store.OpenFile(ctx, l.DiffID, entry)
	})
	made, err := e.writeLayer(ctx, entries, alone)
	if err != nil {
		return l, err
	}
	made.CreatedBy, made.Created = l.CreatedBy, l.Created
	b, err := json.Marshal(result{Outputs: []output{{[]Layer{*made}}}, Name: fmt.Sprintf("rewriting %s with source-date-epoch %d", l.DiffID, epoch.Unix()), At: time.Now().UTC()})
	if err != nil {
		return l, err
	}
	return *made, e.opt.Store.PutRecord(ctx, store.Record{Bucket: bucketSteps, Key: key, Value: b, Holds: []oci.Digest{made.DiffID}})
}

func (e *Engine) rewritten(ctx context.Context, key string) (*Layer, error) {
	r, err := e.opt.Store.GetRecord(ctx, bucketSteps, key)
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var res result
	if json.Unmarshal(r.Value, &res) != nil || len(res.Outputs) != 1 || len(res.Outputs[0].Layers) != 1 {
		return nil, nil
	}
	l := res.Outputs[0].Layers[0]
	if ok, err := e.has(ctx, l.Descriptor); err != nil || !ok {
		return nil, err
	}
	return &l, nil
}

// squash makes the layers above the base one, with docker's history: the lines
// of the build stand for no layer any more, and one more line does.
func (e *Engine) squash(ctx context.Context, img Image) (Image, error) {
	n, base, err := img.base()
	if err != nil || img.Snapshot == nil || len(img.Snapshot.Layers) == n {
		return img, err
	}
	before, err := finishConfig(img)
	if err != nil {
		return img, err
	}
	lower := newSnapshot(e.opt.Store, img.Snapshot.Layers[:n], "")
	l, err := e.difference(ctx, lower, img.Snapshot, "")
	if err != nil {
		return img, err
	}
	comment := fmt.Sprintf("create new from %s", oci.DescriptorOf("", before).Digest)
	if n > 0 {
		comment = fmt.Sprintf("merge %s to %s", oci.DescriptorOf("", before).Digest, oci.DescriptorOf("", img.BaseConfig).Digest)
	}
	var config struct {
		History []oci.History `json:"history"`
	}
	if err := json.Unmarshal(before, &config); err != nil {
		return img, err
	}
	for i := len(base.History); i < len(config.History); i++ {
		config.History[i].EmptyLayer = true
	}
	config.History = append(config.History, oci.History{Created: &l.Created, Comment: comment})
	fields := map[string]any{}
	if err := json.Unmarshal(img.Config, &fields); err != nil {
		return img, err
	}
	fields["history"] = config.History
	if img.Config, err = json.Marshal(fields); err != nil {
		return img, err
	}
	img.Snapshot = newSnapshot(e.opt.Store, append(append([]Layer(nil), lower.Layers...), *l), "")
	return img, nil
}
