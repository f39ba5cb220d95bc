package build

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/strake-project/strake/internal/build/cache"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// bucketKnown holds the steps that the store knows by their keys without having
// what they made, and the number of their outputs: they were found in an
// imported cache and nothing needed their layers. The next build finds them
// without that cache. What copies take from them is in bucketSelected.
const bucketKnown = "build.known"

// maxOutputs bounds the outputs of a step: a command has as many as mounts.
const maxOutputs = 10_000

// knownKey is the key in bucketSelected of what a copy takes from a step's
// output or an image.
func knownKey(of, which oci.Digest) string {
	return string(digestOf("known", string(of), string(which)))
}

// knownContent is what the store knows of that.
func (e *Engine) knownContent(ctx context.Context, of, which oci.Digest) (oci.Digest, error) {
	r, err := e.opt.Store.GetRecord(ctx, bucketSelected, knownKey(of, which))
	if errors.Is(err, oci.ErrNotFound) {
		return "", nil
	}
	return oci.Digest(r.Value), err
}

// lookupKnown returns the step's outputs if the store knows the step. It is
// run once something needs its layers.
func (s *step) lookupKnown(ctx context.Context, k key) ([]*Snapshot, error) {
	r, err := s.opt.Store.GetRecord(ctx, bucketKnown, string(k.digest))
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(string(r.Value))
	if err != nil || n != outputsOf(s.v.Op) || n > maxOutputs {
		return nil, nil
	}
	return s.found(&importedCache{}, &cache.Record{Key: k.digest, Outputs: make([]*cache.Output, n)}, k), nil
}

// RememberImports keeps in the store what the build found in imported caches:
// whole steps as far as their layers came here, of others that they are known.
func (e *Engine) RememberImports(ctx context.Context) error {
	if len(e.imports.caches) == 0 {
		return nil
	}
	e.journal.mu.Lock()
	steps := slices.Clone(e.journal.steps)
	e.journal.mu.Unlock()
	known := map[oci.Digest]bool{}
	for _, st := range steps {
		if len(st.out) == 0 || st.out[0] == nil {
			continue
		}
		h, ok := st.out[0].lazy.(*hit)
		if !ok || h.have.Load() {
			continue
		}
		out, err := h.present(ctx)
		if err != nil {
			return err
		}
		if out != nil {
			if err := h.remember(ctx, h.key, out); err != nil {
				return err
			}
			continue
		}
		if h.from.src == nil {
			continue // it was known before
		}
		n := strconv.Itoa(len(st.out))
		if err := e.opt.Store.PutRecord(ctx, store.Record{Bucket: bucketKnown, Key: string(st.key.digest), Value: []byte(n)}); err != nil {
			return err
		}
		for i := range st.out {
			known[st.key.output(i)] = true
		}
	}
	e.mu.Lock()
	for _, img := range e.pulled {
		if img.elsewhere != nil && !img.have.Load() {
			known[img.key()] = true
		}
	}
	e.mu.Unlock()
	e.journal.mu.Lock()
	defer e.journal.mu.Unlock()
	for k, d := range e.journal.contents {
		if known[k[0]] {
			if err := e.opt.Store.PutRecord(ctx, store.Record{Bucket: bucketSelected, Key: knownKey(k[0], k[1]), Value: []byte(d)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// present returns the step's outputs if all their layers are in the store, as
// those of the steps below one that was fetched are.
func (h *hit) present(ctx context.Context) ([]*Snapshot, error) {
	if !whole(h.record) {
		return nil, nil
	}
	out := make([]*Snapshot, len(h.record.Outputs))
	for i, o := range h.record.Outputs {
		layers := make([]Layer, len(o.Layers))
		for n, l := range o.Layers {
			layers[n] = layerOf(&h.from.part.Layers[l])
			if b := h.journal.baseOf(layers[n].DiffID); b.img != nil {
				layers[n].Descriptor = b.Descriptor
			}
			if ok, err := h.has(ctx, layers[n].Descriptor); err != nil || !ok {
				return nil, err
			}
		}
		out[i] = newSnapshot(h.opt.Store, layers, h.key.output(i))
	}
	return out, nil
}
