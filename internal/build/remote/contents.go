package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	cdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// octets is the media type of content of which only the digest is known. The
// manifest that names it tells the rest.
const octets = "application/octet-stream"

// nothing is a containerd content store that can do nothing; what ours can do
// is added to it.
type nothing struct{}

var errNot = fmt.Errorf("not supported by strake: %w", errdefs.ErrNotImplemented)

func (nothing) Info(context.Context, digest.Digest) (cdcontent.Info, error) {
	return cdcontent.Info{}, errdefs.ErrNotFound
}
func (nothing) Update(context.Context, cdcontent.Info, ...string) (cdcontent.Info, error) {
	return cdcontent.Info{}, errNot
}
func (nothing) Walk(context.Context, cdcontent.WalkFunc, ...string) error { return errNot }
func (nothing) Delete(context.Context, digest.Digest) error               { return errNot }
func (nothing) ReaderAt(context.Context, oci.Descriptor) (cdcontent.ReaderAt, error) {
	return nil, errdefs.ErrNotFound
}
func (nothing) Status(context.Context, string) (cdcontent.Status, error) {
	return cdcontent.Status{}, errdefs.ErrNotFound
}
func (nothing) ListStatuses(context.Context, ...string) ([]cdcontent.Status, error) { return nil, nil }
func (nothing) Abort(context.Context, string) error                                 { return nil }
func (nothing) Writer(context.Context, ...cdcontent.WriterOpt) (cdcontent.Writer, error) {
	return nil, errNot
}

// sink is the store as the daemon's exporter sees it. It says of what it has
// that it exists, and that is not sent. The session's contexts know nothing of
// the build's lease, so the sink's own is used.
type sink struct {
	nothing
	ctx     context.Context
	store   *store.Store
	scratch string

	mu     sync.Mutex
	bodies map[oci.Digest][]byte // manifests that arrived
}

func newSink(ctx context.Context, s *store.Store) (*sink, error) {
	scratch, err := s.Scratch(ctx)
	if err != nil {
		return nil, err
	}
	k := &sink{ctx: ctx, store: s, bodies: map[oci.Digest][]byte{}}
	k.scratch, err = os.MkdirTemp(scratch, "image-")
	return k, err
}

func (k *sink) close() { os.RemoveAll(k.scratch) }

// Info implements content.Store.
func (k *sink) Info(_ context.Context, d digest.Digest) (cdcontent.Info, error) {
	ok, err := k.store.Has(k.ctx, oci.Descriptor{Digest: d})
	if err != nil {
		return cdcontent.Info{}, err
	}
	if !ok {
		return cdcontent.Info{}, fmt.Errorf("%s: %w", d, errdefs.ErrNotFound)
	}
	return cdcontent.Info{Digest: d}, nil
}

// Writer implements content.Store.
func (k *sink) Writer(_ context.Context, opts ...cdcontent.WriterOpt) (cdcontent.Writer, error) {
	var o cdcontent.WriterOpts
	for _, set := range opts {
		if err := set(&o); err != nil {
			return nil, err
		}
	}
	if d := o.Desc.Digest; d != "" {
		if _, err := k.Info(k.ctx, d); err == nil {
			return nil, fmt.Errorf("%s: %w", d, errdefs.ErrAlreadyExists)
		} else if !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	f, err := os.CreateTemp(k.scratch, "blob-")
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &writer{sink: k, f: f, status: cdcontent.Status{Ref: o.Ref, Total: o.Desc.Size, Expected: o.Desc.Digest, StartedAt: now, UpdatedAt: now}}, nil
}

// writer is one blob on its way in.
type writer struct {
	sink   *sink
	f      *os.File
	status cdcontent.Status
	digest oci.Digest // once committed
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.status.Offset += int64(n)
	return n, err
}

func (w *writer) Close() error {
	err := w.f.Close()
	os.Remove(w.f.Name()) // committed, it is not there any more
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Digest implements content.Writer. What arrived is digested once, when the
// store takes it; before that nobody asks.
func (w *writer) Digest() digest.Digest { return w.digest }

func (w *writer) Status() (cdcontent.Status, error) { return w.status, nil }

func (w *writer) Truncate(size int64) error {
	if size != 0 {
		return errNot
	}
	w.status.Offset = 0
	if _, err := w.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return w.f.Truncate(0)
}

// Commit checks the blob and gives it to the store.
func (w *writer) Commit(_ context.Context, size int64, d digest.Digest, _ ...cdcontent.Opt) error {
	if size == 0 {
		size = w.status.Offset
	}
	if d == "" {
		d = w.status.Expected
	}
	desc := oci.Descriptor{MediaType: octets, Digest: d, Size: size}
	if size != w.status.Offset {
		return &oci.SizeError{Digest: d, Want: size, Got: w.status.Offset}
	}
	if err := w.f.Close(); err != nil {
		return err
	}
	if body := w.manifest(size); body != nil {
		w.sink.mu.Lock()
		w.sink.bodies[d] = body
		w.sink.mu.Unlock()
	} else if err := w.sink.store.TakeFile(w.sink.ctx, desc, w.f.Name()); err != nil {
		return err
	}
	w.digest = d
	return nil
}

// manifest is the blob, if it is a manifest or an index.
func (w *writer) manifest(size int64) []byte {
	if size > oci.MaxManifestSize {
		return nil
	}
	body, err := os.ReadFile(w.f.Name())
	if err != nil || !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		return nil
	}
	var m struct{ MediaType string }
	if json.Unmarshal(body, &m) != nil || !oci.IsManifest(m.MediaType) && !oci.IsIndex(m.MediaType) {
		return nil
	}
	return body
}

// keep puts the manifests below d into the store, children first. Their digests
// are checked there.
func (k *sink) keep(ctx context.Context, d oci.Descriptor) error {
	body := k.bodies[d.Digest]
	if body == nil {
		ok, err := k.store.Has(ctx, d)
		if err == nil && !ok {
			err = fmt.Errorf("the builder did not send %s: %w", d.Digest, oci.ErrNotFound)
		}
		return err
	}
	if oci.IsIndex(d.MediaType) {
		var ix oci.Index
		if err := json.Unmarshal(body, &ix); err != nil {
			return fmt.Errorf("index %s: %v: %w", d.Digest, err, oci.ErrInvalid)
		}
		delete(k.bodies, d.Digest) // an index that names itself ends here
		for _, c := range ix.Manifests {
			if err := k.keep(ctx, c); err != nil {
				return err
			}
		}
	}
	return k.store.Put(ctx, d, bytes.NewReader(body))
}

// layouts are the client's OCI layouts as the daemon reads them.
func layouts(ctx context.Context, all map[string]content.Source) map[string]cdcontent.Store {
	out := map[string]cdcontent.Store{}
	for name, src := range all {
		out[name] = &source{ctx: ctx, src: src}
	}
	return out
}

// source is a content.Source as a containerd content store.
type source struct {
	nothing
	ctx context.Context
	src content.Source
}

// Info implements content.Store. The daemon knows digests only and asks for
// sizes.
func (s *source) Info(_ context.Context, d digest.Digest) (cdcontent.Info, error) {
	r, err := s.ReaderAt(s.ctx, oci.Descriptor{Digest: d})
	if err != nil {
		return cdcontent.Info{}, err
	}
	return cdcontent.Info{Digest: d, Size: r.Size()}, r.Close()
}

// ReaderAt implements content.Store.
func (s *source) ReaderAt(_ context.Context, d oci.Descriptor) (cdcontent.ReaderAt, error) {
	ranges, ok := s.src.(content.RangeOpener)
	if !ok {
		return nil, errNot
	}
	r, err := ranges.OpenAt(s.ctx, d, 0, -1)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, errdefs.ErrNotFound)
	}
	if ra, ok := r.(cdcontent.ReaderAt); ok {
		return ra, nil
	}
	r.Close()
	return nil, errNot
}
