// Package cache is the build cache outside of a store: the document that says
// which step gave which layers, as an image of its own in a registry or a
// directory, or inside an ordinary image's config.
//
// The document is an OCI image manifest, so that every registry takes it and
// content.Copy moves it: its config is the Document, its layers are the layers.
// What a key means, who looks it up and what is done with a hit is package
// build's; this package knows the format and trusts nothing that it reads.
package cache

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/strake-project/strake/internal/oci"
)

// MediaType is the config of a cache's manifest.
const MediaType = "application/vnd.strake.buildcache.v1+json"

// InlineField is the field of an image's config that holds an inline Document.
const InlineField = "strake.buildcache.v1"

// version changes when older readers would misread a Document.
const version = 1

// The most that a document may hold: some ten times the largest real one.
const (
	maxLayers  = 20_000
	maxRecords = 50_000
	maxMounts  = 1_000
)

// Document says what steps came to.
type Document struct {
	Version int      `json:"version"`
	Layers  []Layer  `json:"layers,omitempty"`
	Records []Record `json:"records,omitempty"`
	// Contents are what copies take from steps: with them the key of a COPY
	// --from is known without the layers that it copies from.
	Contents []Content `json:"contents,omitempty"`
	Mounts   []Mount   `json:"mounts,omitempty"`
}

// Layer is a layer that records name by its index.
type Layer struct {
	// DiffID is left out of an inline document: the image's config has it.
	DiffID oci.Digest `json:"diffID,omitempty"`
	// Size is that of the plain tar. Where it is 0 the layer is a base image's,
	// which Base describes as its registry has it and which is not in the cache.
	Size      int64           `json:"size,omitempty"`
	Base      *oci.Descriptor `json:"base,omitempty"`
	CreatedBy string          `json:"createdBy,omitempty"`
	Created   *time.Time      `json:"created,omitempty"`
	// Blob is the index of the packed layer among the manifest's layers.
	Blob int `json:"blob,omitempty"`
}

// Record is a step by its key.
type Record struct {
	Key  oci.Digest `json:"key"`
	Name string     `json:"name,omitempty"`
	// Outputs are the layers of each output; nil where the cache knows of the
	// step, but does not have what it made.
	Outputs []*Output `json:"outputs"`
}

// Output is a stack of layers, as indexes into Document.Layers.
type Output struct {
	Layers []int `json:"layers"`
}

// Content is the digest of what the copy operation Copy takes from the output
// Of of a step.
type Content struct {
	Of      oci.Digest `json:"of"`
	Copy    oci.Digest `json:"copy"`
	Content oci.Digest `json:"content"`
}

// Mount is a cache mount's content, packed like a layer.
type Mount struct {
	Key     string     `json:"key"` // of its directory in a store
	ID      string     `json:"id"`
	Sharing string     `json:"sharing"`
	UID     int        `json:"uid"`
	GID     int        `json:"gid"`
	Mode    uint32     `json:"mode"`
	DiffID  oci.Digest `json:"diffID"`
	Size    int64      `json:"size"`
	Blob    int        `json:"blob"`
}

// encode is the document's bytes, which are the same for the same document.
func (d *Document) encode() ([]byte, error) {
	d.Version = version
	b, err := json.Marshal(d)
	if err == nil && len(b) > oci.MaxManifestSize {
		err = fmt.Errorf("the cache's records have %d bytes, the most is %d: %w", len(b), oci.MaxManifestSize, oci.ErrUnsupported)
	}
	return b, err
}

// decode reads a document of somebody's making, with as many layers beside it
// as blobs has.
func decode(b []byte, blobs []oci.Descriptor) (*Document, error) {
	var d Document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("build cache: %v: %w", err, oci.ErrInvalid)
	}
	if d.Version != version {
		return nil, fmt.Errorf("build cache of version %d; this strake knows %d: %w", d.Version, version, oci.ErrUnsupported)
	}
	return &d, d.check(blobs)
}

func (d *Document) check(blobs []oci.Descriptor) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("build cache: "+format+": %w", append(args, oci.ErrInvalid)...)
	}
	if len(d.Layers) > maxLayers || len(d.Records) > maxRecords || len(d.Contents) > maxRecords || len(d.Mounts) > maxMounts {
		return bad("%d layers, %d records and %d mounts are more than there may be", len(d.Layers), len(d.Records), len(d.Mounts))
	}
	for i, l := range d.Layers {
		switch {
		case l.DiffID.Validate() != nil:
			return bad("layer %d has diffID %q", i, l.DiffID)
		case l.Size < 0 || l.Size == 0 && l.Base == nil:
			return bad("layer %d has size %d", i, l.Size)
		case l.Size > 0 && (l.Blob < 0 || l.Blob >= len(blobs) || !oci.IsLayer(blobs[l.Blob].MediaType)):
			return bad("layer %d is blob %d of %d", i, l.Blob, len(blobs))
		case l.Size == 0 && (l.Base.Digest.Validate() != nil || l.Base.Size < 0 || !oci.IsLayer(l.Base.MediaType)):
			return bad("layer %d is base layer %q", i, l.Base.Digest)
		}
	}
	for _, r := range d.Records {
		if r.Key.Validate() != nil {
			return bad("key %q", r.Key)
		}
		for _, o := range r.Outputs {
			if o == nil {
				continue
			}
			for _, l := range o.Layers {
				if l < 0 || l >= len(d.Layers) {
					return bad("record %s names layer %d of %d", r.Key, l, len(d.Layers))
				}
			}
		}
	}
	for _, c := range d.Contents {
		if c.Of.Validate() != nil || c.Copy.Validate() != nil || c.Content.Validate() != nil {
			return bad("content %q", c.Content)
		}
	}
	for _, m := range d.Mounts {
		if m.DiffID.Validate() != nil || m.Size < 0 || m.Blob < 0 || m.Blob >= len(blobs) || m.UID < 0 || m.GID < 0 {
			return bad("mount %q", m.ID)
		}
	}
	return nil
}
