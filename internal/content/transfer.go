package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// maxMounts bounds the repositories that are asked for a blob before it is sent.
const maxMounts = 4

// transfer brings one blob to the destination, by the cheapest way there is.
func (c *copier) transfer(ctx context.Context, d oci.Descriptor) (oci.Descriptor, error) {
	plain := oci.Digest("")
	if packer, ok := c.src.(Packer); ok && c.opt.Compression != Uncompressed && oci.IsPlainLayer(d.MediaType) {
		plain = d.Digest
		c.event(Event{Kind: Packing, Descriptor: d, DiffID: plain})
		packed, err := packer.Pack(ctx, d, c.opt.Compression)
		if err != nil {
			return d, sourceErr(err)
		}
		packed.Annotations = d.Annotations
		d = packed
	}
	ev := func(k EventKind, n int64) { c.event(Event{Kind: k, Descriptor: d, DiffID: plain, Current: n}) }
	if ok, err := c.dst.Has(ctx, d); err != nil {
		return d, sinkErr(err)
	} else if ok {
		ev(Exists, d.Size)
		return d, c.recordOrigin(ctx, d)
	}
	if from, ok := c.mount(ctx, d); ok {
		c.event(Event{Kind: Mounted, Descriptor: d, DiffID: plain, Current: d.Size, From: from})
		return d, c.recordOrigin(ctx, d)
	}
	ev(Started, 0)
	var err error
	if resumer, ok := c.dst.(Resumer); ok {
		err = c.resume(ctx, resumer, d, ev)
	} else {
		err = c.putBlob(ctx, d, ev)
	}
	if errors.Is(err, oci.ErrNotFound) && strings.Contains(d.MediaType, ".foreign.") {
		err = sourceErr(fmt.Errorf("layer %s is a foreign one (%s), which registries do not hold: %w", d.Digest, d.MediaType, oci.ErrUnsupported))
	}
	if err != nil {
		return d, err
	}
	ev(Done, d.Size)
	return d, c.recordOrigin(ctx, d)
}

// recordOrigin remembers on both ends that the remote repository holds d, so
// that a later push to its registry can mount it. A place that knows no mounts,
// such as an archive, is no origin, whatever its images are called.
func (c *copier) recordOrigin(ctx context.Context, d oci.Descriptor) error {
	_, fromRegistry := c.src.(Mounter)
	_, toRegistry := c.dst.(Mounter)
	if rec, ok := c.dst.(OriginRecorder); ok && fromRegistry {
		if err := rec.RecordOrigin(ctx, c.from, d); err != nil {
			return sinkErr(err)
		}
	}
	if rec, ok := c.src.(OriginRecorder); ok && toRegistry {
		if err := rec.RecordOrigin(ctx, c.to, d); err != nil {
			return sourceErr(err)
		}
	}
	return nil
}

// mount tries to take d from a repository of the destination's own registry.
// A registry that declines costs a transfer, never an error.
func (c *copier) mount(ctx context.Context, d oci.Descriptor) (ref.Ref, bool) {
	mounter, ok := c.dst.(Mounter)
	if !ok {
		return ref.Ref{}, false
	}
	var origins []ref.Ref
	if lister, ok := c.src.(OriginLister); ok {
		origins, _ = lister.Origins(ctx, d) // without them the blob is sent
	}
	asked := 0
	for _, from := range append(origins, c.from) {
		if from.Domain != c.to.Domain || from.Path == c.to.Path || asked == maxMounts {
			continue
		}
		asked++
		if ok, err := mounter.Mount(ctx, d, from); err == nil && ok {
			return from, true
		}
	}
	return ref.Ref{}, false
}

func (c *copier) putBlob(ctx context.Context, d oci.Descriptor, ev func(EventKind, int64)) error {
	r, err := c.src.Open(ctx, d)
	if err != nil {
		return sourceErr(err)
	}
	src := &sourceReader{r: r, moved: func(n int64) { ev(Progressed, n) }}
	src.open = func(offset int64) (io.ReadCloser, error) { return c.openAt(ctx, d, offset) }
	defer func() { _ = src.r.Close() }()
	if err := c.dst.Put(ctx, d, src); err != nil {
		if src.err != nil {
			return sourceErr(src.err)
		}
		return sinkErr(err)
	}
	return nil
}

// resume continues an unfinished copy where it stopped. What an earlier attempt
// left may be damaged (a power cut, another source): then it starts again.
func (c *copier) resume(ctx context.Context, resumer Resumer, d oci.Descriptor, ev func(EventKind, int64)) error {
	for {
		p, err := resumer.Resume(ctx, d)
		if errors.Is(err, oci.ErrConflict) { // another process fetches it; fetch it for ourselves
			return c.putBlob(ctx, d, ev)
		}
		if err != nil {
			return sinkErr(err)
		}
		resumed := p.Offset() > 0
		err = c.fill(ctx, p, d, ev)
		p.Close()
		if !resumed || !errors.Is(err, oci.ErrCorrupt) {
			return err
		}
	}
}

// fill completes a partial blob and commits it. A source that cannot start in
// the middle starts again.
func (c *copier) fill(ctx context.Context, p Partial, d oci.Descriptor, ev func(EventKind, int64)) (err error) {
	if p.Offset() > d.Size {
		if err := p.Reset(); err != nil {
			return sinkErr(err)
		}
	}
	var r io.ReadCloser
	if at := p.Offset(); at > 0 && at < d.Size {
		if ro, ok := c.src.(RangeOpener); ok {
			if r, err = ro.OpenAt(ctx, d, at, -1); err != nil && !errors.Is(err, oci.ErrUnsupported) {
				return sourceErr(err)
			}
		}
		if r == nil {
			if err := p.Reset(); err != nil {
				return sinkErr(err)
			}
		}
	}
	if r == nil && p.Offset() < d.Size || d.Size == 0 {
		if r, err = c.src.Open(ctx, d); err != nil {
			return sourceErr(err)
		}
	}
	if r != nil {
		defer r.Close()
		src := &sourceReader{r: r, n: p.Offset(), moved: func(n int64) { ev(Progressed, n) }}
		// One byte more than promised is enough to know that the source lies.
		// Eight times io.Copy's buffer: fewer reads of the socket and writes.
		_, err := io.CopyBuffer(p, io.LimitReader(src, d.Size-p.Offset()+1), make([]byte, 256<<10))
		if src.err != nil {
			return sourceErr(src.err)
		}
		if err != nil {
			return sinkErr(err)
		}
	}
	if err := p.Commit(ctx); err != nil {
		if errors.Is(err, oci.ErrCorrupt) { // the bytes came from the source
			return sourceErr(err)
		}
		return sinkErr(err)
	}
	return nil
}

// openAt opens d at offset, also from a source that can't start in the middle.
func (c *copier) openAt(ctx context.Context, d oci.Descriptor, offset int64) (io.ReadCloser, error) {
	if ro, ok := c.src.(RangeOpener); ok && offset > 0 {
		if r, err := ro.OpenAt(ctx, d, offset, -1); !errors.Is(err, oci.ErrUnsupported) {
			return r, err
		}
	}
	r, err := c.src.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, offset); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// sourceReader counts what passes and keeps the source's own error, so that a
// failed copy can say which end failed. It is a Rewinder where it has open.
type sourceReader struct {
	r     io.ReadCloser
	n     int64
	moved func(int64)
	open  func(offset int64) (io.ReadCloser, error)
	err   error
}

// Rewind implements Rewinder.
func (s *sourceReader) Rewind(offset int64) error {
	s.r.Close()
	r, err := s.open(offset)
	if err != nil {
		s.err = err
		return err
	}
	s.r, s.n = r, offset
	return nil
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if n > 0 {
		s.moved(s.n)
	}
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
