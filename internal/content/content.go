// Package content moves images between the places that hold them. The local
// store, a repository of a registry and an archive all hold manifests, configs
// and layers named by digest, with tags that point at them; so pull, push,
// save, load and sync are one function, Copy, with different ends.
//
// Source and Sink are what every place can do. What only some can do are
// further one-method interfaces, asked for by type assertion: RangeOpener,
// Resumer, Mounter, Packer, TagLister, ReferrerLister, SparseSink, OrderedSink.
// One suite of tests (internal/ocitest) runs over every implementation.
package content

import (
	"context"
	"io"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Source is a place that images can be read from.
type Source interface {
	// Resolve finds the manifest or index that r's digest or, without one, its
	// tag names. It fails with oci.ErrNotFound; with oci.ErrUnauthorized or
	// oci.ErrDenied where the place asks for credentials.
	Resolve(ctx context.Context, r ref.Ref) (oci.Descriptor, error)
	// Open streams the content that d names. The reader need not verify it:
	// whoever stores it does. It fails with oci.ErrNotFound, here or at the
	// first Read. The caller closes it.
	Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error)
}

// Sink is a place that images can be written to.
type Sink interface {
	// Has tells whether d is there, whole. An error means it could not tell.
	Has(ctx context.Context, d oci.Descriptor) (bool, error)
	// Put stores what r yields under d's digest, after checking its digest and
	// size (*oci.DigestError, *oci.SizeError); on any error nothing becomes
	// visible. Putting what is there already succeeds without reading r to its
	// end. A manifest or index is put after what it names: a sink may refuse
	// one whose children it lacks.
	Put(ctx context.Context, d oci.Descriptor, r io.Reader) error
	// Tag points r's tag at d, which was Put before; it replaces what the tag
	// pointed at. With an empty tag it makes d reachable by its digest alone.
	Tag(ctx context.Context, r ref.Ref, d oci.Descriptor) error
}

// RangeOpener is a Source that can start in the middle, to resume and to read
// side by side. It may fail with oci.ErrUnsupported; then Open is used.
type RangeOpener interface {
	// OpenAt streams d from byte offset on, length bytes or, if length is
	// negative, to its end.
	OpenAt(ctx context.Context, d oci.Descriptor, offset, length int64) (io.ReadCloser, error)
}

// Rewinder may be implemented by the reader given to Put. A sink whose transfer
// broke goes on with it where the other side stopped; with other readers, but
// for an io.Seeker, it must fail.
type Rewinder interface {
	io.Reader
	// Rewind makes the next Read start at offset, counted from the start of
	// the content. After an error the reader is of no more use.
	Rewind(offset int64) error
}

// Resumer is a Sink that keeps what arrived of an interrupted Put.
type Resumer interface {
	// Resume opens d's unfinished copy. Offset bytes of it are there already.
	// It fails with oci.ErrConflict where another process is writing it.
	Resume(ctx context.Context, d oci.Descriptor) (Partial, error)
}

// Partial is an unfinished blob. Close without Commit keeps it for later.
type Partial interface {
	io.Writer
	// Offset is the number of bytes there are, counted from the start.
	Offset() int64
	// Reset throws away what there is (the source cannot resume, or it was wrong).
	Reset() error
	// Commit checks digest and size and makes the blob visible. Where they
	// are wrong it fails as Put does and the partial bytes are gone.
	Commit(ctx context.Context) error
	Close() error
}

// Mounter is a Sink that can take a blob from a neighbouring repository
// without a transfer.
type Mounter interface {
	// Mount makes d, known to be in the repository from, available here. It
	// returns false, without an error, where the place declines.
	Mount(ctx context.Context, d oci.Descriptor, from ref.Ref) (bool, error)
}

// OriginLister is a Source that remembers which repositories hold a blob.
type OriginLister interface {
	Origins(ctx context.Context, d oci.Descriptor) ([]ref.Ref, error)
}

// OriginRecorder is a Sink that remembers that r's repository holds d.
type OriginRecorder interface {
	RecordOrigin(ctx context.Context, r ref.Ref, d oci.Descriptor) error
}

// Compression names how a layer's tar is packed.
type Compression string

// The packings that strake writes.
const (
	Uncompressed Compression = ""
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
)

// Packer is a Source that can give a layer in another packing. It remembers
// the result: packing the same layer again finds the same bytes.
type Packer interface {
	// Pack returns the descriptor of plain layer d packed with c; Open reads it.
	Pack(ctx context.Context, d oci.Descriptor, c Compression) (oci.Descriptor, error)
}

// TagLister is a Source that can list the tags of r's repository, sorted.
type TagLister interface {
	Tags(ctx context.Context, r ref.Ref) ([]string, error)
}

// ReferrerLister is a Source that knows which manifests have d as their
// subject (distribution specification v1.1, "Listing Referrers").
// artifactType "" means all.
type ReferrerLister interface {
	Referrers(ctx context.Context, d oci.Descriptor, artifactType string) ([]oci.Descriptor, error)
}

// SparseSink is a Sink that takes an index of which it holds only some
// platforms' manifests. Other sinks get all of an index or a single manifest.
type SparseSink interface {
	AcceptsSparseIndex()
}

// OrderedSink is a Sink that writes one thing after another, such as a stream.
// Copy gives it the blobs one at a time in the order in which the manifest
// names them, so that the same image becomes the same bytes.
type OrderedSink interface {
	WritesInOrder()
}
