// Package store is the disk: blobs by digest, layers in their forms, tags and
// where they pointed before, leases for work in flight, and garbage collection.
//
// Several processes use one store at once; there is no daemon. Files hold
// bytes and are written aside, synced and renamed; SQLite holds what needs
// transactions. A crash at any moment loses nothing that was acknowledged and
// leaves nothing that blocks: what a dead process left is found by its
// unlocked lease file and swept.
//
// Layout below the root:
//
//	strake.db                tags, their log, images' facts, edges, leases, records
//	blobs/sha256/ab/HEX      packed bytes: manifests, configs, layers as they came
//	layers/ab/HEX/toc        table of contents of the layer with that diffID
//	layers/ab/HEX/tree       its unpacked form, for overlayfs
//	partial/HEX              unfinished downloads, kept for resuming
//	leases/ID                a lease's lock file; held while its process lives
//	work/ID/…                scratch directories of a lease
package store

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Store is an open store. Its methods may be called from many goroutines.
// It implements content.Source, Sink, RangeOpener, Resumer, Packer,
// OriginLister, OriginRecorder, TagLister, ReferrerLister and SparseSink.
type Store struct{ state }

// Options for Open; the zero value works.
type Options struct {
	Log *slog.Logger // nil is silent
}

// Open opens the store at root and makes it if there is none. A root that
// cannot be written fails with the path and the way out (--root).
func Open(root string, opt Options) (*Store, error) { panic("unwritten") }

// Close releases the store and every lease of this process.
func (s *Store) Close() error { panic("unwritten") }

// Root is the directory given to Open, absolute.
func (s *Store) Root() string { panic("unwritten") }

// Resolve implements content.Source. A digest is looked up among all blobs.
func (s *Store) Resolve(ctx context.Context, r ref.Ref) (oci.Descriptor, error) { panic("unwritten") }

// Open implements content.Source. A plain layer that exists only as a tree is
// streamed from it as its canonical tar, and the stream fails with
// oci.ErrCorrupt at its end if somebody changed the tree.
func (s *Store) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	panic("unwritten")
}

// OpenAt implements content.RangeOpener.
func (s *Store) OpenAt(ctx context.Context, d oci.Descriptor, offset, length int64) (io.ReadCloser, error) {
	panic("unwritten")
}

// Has implements content.Sink: the blob is there, or, for a plain layer, some
// form from which Open can make it.
func (s *Store) Has(ctx context.Context, d oci.Descriptor) (bool, error) { panic("unwritten") }

// Put implements content.Sink. Of a manifest it also records the facts that
// listing images needs, and the edges to what it names; the children may still
// be missing (an index of which one platform was pulled).
func (s *Store) Put(ctx context.Context, d oci.Descriptor, r io.Reader) error { panic("unwritten") }

// Resume implements content.Resumer.
func (s *Store) Resume(ctx context.Context, d oci.Descriptor) (content.Partial, error) {
	panic("unwritten")
}

// AcceptsSparseIndex implements content.SparseSink.
func (s *Store) AcceptsSparseIndex() {}

// Pack implements content.Packer; the result is kept as a further form.
func (s *Store) Pack(ctx context.Context, d oci.Descriptor, c content.Compression) (oci.Descriptor, error) {
	panic("unwritten")
}

// Origins implements content.OriginLister.
func (s *Store) Origins(ctx context.Context, d oci.Descriptor) ([]ref.Ref, error) { panic("unwritten") }

// RecordOrigin implements content.OriginRecorder.
func (s *Store) RecordOrigin(ctx context.Context, r ref.Ref, d oci.Descriptor) error {
	panic("unwritten")
}

// Referrers implements content.ReferrerLister.
func (s *Store) Referrers(ctx context.Context, d oci.Descriptor, artifactType string) ([]oci.Descriptor, error) {
	panic("unwritten")
}

// ---- tags

// Tag implements content.Sink, and logs what the tag pointed at before. r with
// a digest and no tag records that r's repository knows that digest (docker's
// RepoDigests), as a Tag of a pulled or pushed image does too.
func (s *Store) Tag(ctx context.Context, r ref.Ref, d oci.Descriptor) error { panic("unwritten") }

// Untag removes r's tag (or r's repository digest) and returns what it pointed
// at; oci.ErrNotFound if there is none. The content stays until Collect.
func (s *Store) Untag(ctx context.Context, r ref.Ref) (oci.Descriptor, error) { panic("unwritten") }

// Tags implements content.TagLister.
func (s *Store) Tags(ctx context.Context, r ref.Ref) ([]string, error) { panic("unwritten") }

// Repositories lists the repositories that have a tag, as refs without tag.
func (s *Store) Repositories(ctx context.Context) ([]ref.Ref, error) { panic("unwritten") }

// TagChange is one line of a tag's log; Digest is empty where it was removed.
type TagChange struct {
	Ref    ref.Ref
	Digest oci.Digest
	At     time.Time
}

// TagLog returns where r's tag has pointed, newest first.
func (s *Store) TagLog(ctx context.Context, r ref.Ref) ([]TagChange, error) { panic("unwritten") }

// ---- images

// Image is what lists and look-ups say of one image. An image is a config:
// its ID is the config's digest, and one ID may be reached through several
// manifests (packed differently) and names.
type Image struct {
	ID       oci.Digest
	Manifest oci.Descriptor // for the platform chosen
	Target   oci.Descriptor // what the names point at: Manifest, or its index
	Names    []ref.Ref      // tags, sorted
	Digests  []ref.Ref      // repository@digest, sorted
	Created  time.Time
	Tagged   time.Time // when a tag last came to point at it
	Platform oci.Platform
	Labels   map[string]string
	// Size is the sum of its layers' file sizes: exact where every layer has a
	// TOC, else estimated from the length of the plain tars.
	Size      int64
	SizeExact bool
	Layers    []oci.Digest // diffIDs
}

// Images lists every image that has a name or was left without one, newest
// first. Facts come from columns: no blob is read.
func (s *Store) Images(ctx context.Context) ([]Image, error) { panic("unwritten") }

// Find looks up an image by name (latest by default), name@digest, ID, ID
// prefix (with or without "sha256:") or manifest digest, in docker's order. It
// fails with oci.ErrNotFound, or oci.ErrInvalid for an ambiguous prefix.
func (s *Store) Find(ctx context.Context, name string) (*Image, error) { panic("unwritten") }

// ---- layers

// LayerWriter writes a new layer as canonical tar: Write entries, then Commit.
type LayerWriter struct {
	*layer.Writer
	layerWriter
}

// NewLayer starts a layer.
func (s *Store) NewLayer(ctx context.Context) (*LayerWriter, error) { panic("unwritten") }

// Commit makes the layer visible: its tar as a blob and its TOC.
func (w *LayerWriter) Commit(ctx context.Context) (*layer.TOC, error) { panic("unwritten") }

// Abort throws it away; after Commit it does nothing.
func (w *LayerWriter) Abort() { panic("unwritten") }

// TakeTree makes dir, an overlay upper directory in a scratch directory of
// this store, the tree of a layer, by rename; no tar is written. dir is gone
// afterwards, also where the layer existed already.
func (s *Store) TakeTree(ctx context.Context, dir string) (*layer.TOC, error) { panic("unwritten") }

// TOC returns the layer's table of contents, made now if it is missing (one
// decompression pass). The result is shared: do not change it.
func (s *Store) TOC(ctx context.Context, diffID oci.Digest) (*layer.TOC, error) { panic("unwritten") }

// Tree returns the directory of the layer's unpacked form, made now if it is
// missing. Side by side for several layers is the caller's choice. It stays
// as long as ctx's lease.
func (s *Store) Tree(ctx context.Context, diffID oci.Digest) (string, error) { panic("unwritten") }

// OpenFile reads one file's content out of a layer: from the tree or a plain
// tar by offset; from a packed blob by making the tree first.
func (s *Store) OpenFile(ctx context.Context, diffID oci.Digest, e *layer.Entry) (io.ReadCloser, error) {
	panic("unwritten")
}

// ---- work in flight

// Lease returns a context under which everything put, opened as a tree or
// resolved stays, whatever Collect is asked to do, until release is called or
// the process dies. Every operation that stores something and names it later
// runs under one.
func (s *Store) Lease(ctx context.Context) (leased context.Context, release func(), err error) {
	panic("unwritten")
}

// Scratch makes an empty directory on the store's file system that belongs to
// ctx's lease and vanishes with it.
func (s *Store) Scratch(ctx context.Context) (string, error) { panic("unwritten") }

// ---- records: small facts of other rooms that keep content alive

// Record is a value that another room keeps in the store under a key, such as
// the build cache's results and the containers. What Holds names (layers by
// diffID, blobs by digest) is not collected while the record is there.
type Record struct {
	Bucket, Key string
	Value       []byte
	Holds       []oci.Digest
	Created     time.Time
	Used        time.Time
}

// PutRecord stores r, replacing what the key had.
func (s *Store) PutRecord(ctx context.Context, r Record) error { panic("unwritten") }

// GetRecord returns the record, or oci.ErrNotFound, and takes what it holds
// into ctx's lease.
func (s *Store) GetRecord(ctx context.Context, bucket, key string) (*Record, error) {
	panic("unwritten")
}

// Records lists a bucket, most recently used first.
func (s *Store) Records(ctx context.Context, bucket string) ([]Record, error) { panic("unwritten") }

// DeleteRecord removes one; it is no error if it is not there.
func (s *Store) DeleteRecord(ctx context.Context, bucket, key string) error { panic("unwritten") }

// ---- reclaiming

// Freed is what Collect deleted.
type Freed struct {
	Manifests, Configs, Blobs []oci.Digest
	Layers                    []oci.Digest // diffIDs that lost every form
	Bytes                     int64        // true disk bytes
}

// Collect deletes what no tag, record or lease reaches. With from given, only
// what those digests reach is looked at, which is fast; without, everything is,
// and leftovers of dead processes are swept. It is safe beside any other work.
func (s *Store) Collect(ctx context.Context, from ...oci.Digest) (*Freed, error) { panic("unwritten") }

type (
	state       struct{}
	layerWriter struct{}
)
