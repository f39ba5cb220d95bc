package ocitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Memory is a place in memory: a content.Source and Sink, RangeOpener,
// TagLister and ReferrerLister. It is strict: a manifest whose children are
// missing is refused. NewSparse makes one that is not.
type Memory struct {
	mu    sync.Mutex
	blobs map[oci.Digest]Blob
	tags  map[string]oci.Descriptor
	// Opened counts Open and OpenAt for each digest; read it when all is quiet.
	Opened map[oci.Digest]int
	sparse bool
}

// SparseMemory is a Memory that takes an index of which platforms are missing.
type SparseMemory struct{ *Memory }

// AcceptsSparseIndex implements content.SparseSink.
func (SparseMemory) AcceptsSparseIndex() {}

// NewMemory returns an empty place.
func NewMemory() *Memory {
	return &Memory{blobs: map[oci.Digest]Blob{}, tags: map[string]oci.Descriptor{}, Opened: map[oci.Digest]int{}}
}

// NewSparse returns an empty place that accepts sparse indexes.
func NewSparse() SparseMemory {
	m := NewMemory()
	m.sparse = true
	return SparseMemory{m}
}

// Fill returns a Memory that holds im, tagged as r.
func Fill(r ref.Ref, im *Image) *Memory {
	m := NewMemory()
	m.Add(r, im)
	return m
}

// Add puts im, tagged as r.
func (m *Memory) Add(r ref.Ref, im *Image) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range im.Blobs {
		m.blobs[b.Digest] = b
	}
	m.tags[r.WithTag(r.Tag).String()] = im.Target
}

// Drop removes a blob.
func (m *Memory) Drop(d oci.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blobs, d)
}

// Digests lists all that is there, sorted.
func (m *Memory) Digests() []oci.Digest {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []oci.Digest
	for d := range m.blobs {
		all = append(all, d)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	return all
}

// Resolve implements content.Source.
func (m *Memory) Resolve(ctx context.Context, r ref.Ref) (oci.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Digest != "" {
		if b, ok := m.blobs[r.Digest]; ok {
			return b.Descriptor, nil
		}
	} else if d, ok := m.tags[r.WithTag(r.Tag).String()]; ok {
		return d, nil
	}
	return oci.Descriptor{}, fmt.Errorf("%s: %w", r, oci.ErrNotFound)
}

// Open implements content.Source.
func (m *Memory) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	return m.OpenAt(ctx, d, 0, -1)
}

// OpenAt implements content.RangeOpener.
func (m *Memory) OpenAt(ctx context.Context, d oci.Descriptor, offset, length int64) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("%s: %w", d.Digest, oci.ErrNotFound)
	}
	m.Opened[d.Digest]++
	body := b.Body[min(offset, int64(len(b.Body))):]
	if length >= 0 {
		body = body[:min(length, int64(len(body)))]
	}
	return io.NopCloser(bytes.NewReader(body)), nil
}

// Has implements content.Sink.
func (m *Memory) Has(ctx context.Context, d oci.Descriptor) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.blobs[d.Digest]
	return ok, nil
}

// Put implements content.Sink.
func (m *Memory) Put(ctx context.Context, d oci.Descriptor, r io.Reader) error {
	if ok, _ := m.Has(ctx, d); ok {
		return nil
	}
	body, err := io.ReadAll(oci.Verify(r, d))
	if err != nil {
		return err
	}
	children, err := oci.Children(d.MediaType, body)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range children {
		if _, ok := m.blobs[c.Digest]; !ok && !(m.sparse && oci.IsIndex(d.MediaType)) {
			return fmt.Errorf("%s put before its child %s: %w", d.Digest, c.Digest, oci.ErrNotFound)
		}
	}
	m.blobs[d.Digest] = Blob{oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, body}
	return nil
}

// Tag implements content.Sink.
func (m *Memory) Tag(ctx context.Context, r ref.Ref, d oci.Descriptor) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.blobs[d.Digest]; !ok {
		return fmt.Errorf("tag %s: %s: %w", r, d.Digest, oci.ErrNotFound)
	}
	if r.Tag != "" {
		m.tags[r.WithTag(r.Tag).String()] = oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	}
	return nil
}

// Tags implements content.TagLister.
func (m *Memory) Tags(ctx context.Context, r ref.Ref) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var tags []string
	for name := range m.tags {
		if p, err := ref.Parse(name); err == nil && p.Repository() == r.Repository() {
			tags = append(tags, p.Tag)
		}
	}
	sort.Strings(tags)
	return tags, nil
}

// Referrers implements content.ReferrerLister.
func (m *Memory) Referrers(ctx context.Context, d oci.Descriptor, artifactType string) ([]oci.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []oci.Descriptor
	for _, b := range m.blobs {
		var man oci.Manifest
		if !oci.IsManifest(b.MediaType) || json.Unmarshal(b.Body, &man) != nil || man.Subject == nil || man.Subject.Digest != d.Digest {
			continue
		}
		kind := man.ArtifactType
		if kind == "" {
			kind = man.Config.MediaType
		}
		if artifactType != "" && artifactType != kind {
			continue
		}
		r := b.Descriptor
		r.ArtifactType, r.Annotations = kind, man.Annotations
		found = append(found, r)
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Digest < found[j].Digest })
	return found, nil
}
