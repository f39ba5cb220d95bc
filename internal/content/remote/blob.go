package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/strake-project/strake/internal/oci"
)

// Has implements content.Sink.
func (r *Repository) Has(ctx context.Context, d oci.Descriptor) (bool, error) {
	found, err := r.exists(ctx, d)
	if err == nil && !found {
		r.mu.Lock()
		r.missing[d.Digest] = true // so the Put that follows need not ask again
		r.mu.Unlock()
	}
	return found, err
}

func (r *Repository) exists(ctx context.Context, d oci.Descriptor) (bool, error) {
	if err := checkDigest(d.Digest); err != nil {
		return false, err
	}
	scopes := r.pushScope()
	if r.reading.Load() {
		scopes = r.pullScope()
	}
	kind, header := "blobs", http.Header(nil)
	if isManifest(d) {
		kind, header = "manifests", http.Header{"Accept": {d.MediaType}}
	}
	resp, err := r.h.do(ctx, &request{method: http.MethodHead, path: r.path(kind, string(d.Digest)), scopes: scopes, header: header},
		http.StatusOK, http.StatusNotFound)
	if err != nil {
		return false, r.pushWords(err)
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}

// Open implements content.Source. The reader goes on by itself where the
// connection breaks.
func (r *Repository) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, err
	}
	if isManifest(d) {
		return r.openManifest(ctx, d)
	}
	return r.OpenAt(ctx, d, 0, -1)
}

// OpenAt implements content.RangeOpener. From a registry that knows no ranges
// it reads all and leaves out what was not asked for.
func (r *Repository) OpenAt(ctx context.Context, d oci.Descriptor, offset, length int64) (io.ReadCloser, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, err
	}
	end := d.Size
	if length >= 0 && length < end-offset {
		end = offset + length
	}
	if offset < 0 || offset > d.Size || d.Size < 0 {
		return nil, fmt.Errorf("offset %d of %s, which has %d bytes: %w", offset, d.Digest, d.Size, oci.ErrInvalid)
	}
	if isManifest(d) {
		rc, err := r.openManifest(ctx, d)
		if err == nil {
			_, err = io.CopyN(io.Discard, rc, offset)
		}
		if err != nil {
			return nil, err
		}
		return io.NopCloser(io.LimitReader(rc, end-offset)), nil
	}
	b := &blobReader{ctx: ctx, r: r, d: d, at: offset, end: end}
	if offset == end && offset > 0 {
		return b, nil
	}
	if err := b.connect(); err != nil {
		return nil, err
	}
	return b, nil
}

// blobReader reads one blob, or a part of it, over as many connections as it
// takes. It hands out no byte beyond end.
type blobReader struct {
	ctx     context.Context // of one transfer: the reader does not outlive it
	r       *Repository
	d       oci.Descriptor
	at, end int64
	body    io.ReadCloser
	broken  int   // breaks in a row without progress
	mark    int64 // where the last break was
	err     error
}

// progress is what must arrive between two breaks for them not to count as in
// a row; less would let a hostile registry hold us with a byte at a time.
const progress = 1 << 10

// connect asks for the bytes from at on.
func (b *blobReader) connect() error {
	// What has begun is tried again by the reader, which counts.
	rq := &request{method: http.MethodGet, path: b.r.path("blobs", string(b.d.Digest)), scopes: b.r.pullScope(), once: b.broken > 0}
	whole := b.at == 0 && b.end == b.d.Size
	if !whole {
		rq.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", b.at, b.end-1)}}
	}
	resp, err := b.r.h.do(b.ctx, rq, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.d.Digest, err)
	}
	if resp.StatusCode == http.StatusPartialContent && !whole {
		start, total, ok := contentRange(resp.Header.Get("Content-Range"))
		switch {
		case !ok || start != b.at:
			resp.Body.Close()
			return fmt.Errorf("blob %s: asked for bytes from %d on, the registry answers with %q: %w", b.d.Digest, b.at, oneLine(resp.Header.Get("Content-Range"), 100), oci.ErrInvalid)
		case total >= 0 && total != b.d.Size:
			resp.Body.Close()
			return &oci.SizeError{Digest: b.d.Digest, Want: b.d.Size, Got: total}
		}
		b.body = resp.Body
		return nil
	}
	// A wrong length is known before anything is read.
	if resp.ContentLength >= 0 && resp.ContentLength != b.d.Size {
		resp.Body.Close()
		return &oci.SizeError{Digest: b.d.Digest, Want: b.d.Size, Got: resp.ContentLength}
	}
	b.body = resp.Body
	if b.at > 0 {
		if _, err := io.CopyN(io.Discard, b.body, b.at); err != nil {
			b.body.Close()
			b.body = nil
			return &networkError{method: http.MethodGet, url: redact(resp.Request.URL), err: notEOF(err)}
		}
	}
	return nil
}

// contentRange reads "bytes 5-9/10"; total is -1 for "*".
func contentRange(s string) (start, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, all, ok := strings.Cut(s, "/")
	if !ok {
		return 0, 0, false
	}
	from, _, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, false
	}
	start, err := strconv.ParseInt(from, 10, 64)
	if err != nil || start < 0 {
		return 0, 0, false
	}
	if all == "*" {
		return start, -1, true
	}
	total, err = strconv.ParseInt(all, 10, 64)
	return start, total, err == nil && total >= 0
}

func notEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (b *blobReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	for {
		if b.at == b.end {
			return 0, b.finish()
		}
		if b.body == nil {
			if err := b.connect(); err != nil {
				if b.err = b.again(err); b.err != nil {
					return 0, b.err
				}
				continue
			}
		}
		n, err := b.body.Read(p[:min(int64(len(p)), b.end-b.at)])
		b.at += int64(n)
		if err != nil && b.at < b.end {
			// An early end counts as a break too: a body without a length ends
			// when its connection does.
			b.body.Close()
			b.body = nil
			b.err = b.again(&networkError{method: http.MethodGet, url: b.r.h.addr + b.r.path("blobs", string(b.d.Digest)), err: notEOF(err)})
			if b.err != nil || n > 0 {
				return n, b.err
			}
			continue
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
}

// again decides whether to go on after a break, and waits.
func (b *blobReader) again(err error) error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if b.at-b.mark >= progress {
		b.broken = 0
	}
	b.mark = b.at
	b.broken++
	wait, ok := b.r.h.again(err, b.broken)
	if !ok {
		var network *networkError
		if !errors.As(err, &network) {
			return err
		}
		return fmt.Errorf("blob %s broke off after %d of %d bytes: %w", b.d.Digest, b.at, b.d.Size, err)
	}
	b.r.h.c.opt.Log.DebugContext(b.ctx, "going on with a broken download", "digest", b.d.Digest, "offset", b.at, "after", err)
	return sleep(b.ctx, wait)
}

// finish looks past the end: a longer body is an error, and having seen the end
// lets the connection be used again.
func (b *blobReader) finish() error {
	b.err = io.EOF
	if b.body == nil {
		return b.err
	}
	var one [1]byte
	if n, _ := io.ReadFull(b.body, one[:]); n > 0 && b.end == b.d.Size {
		b.err = &oci.SizeError{Digest: b.d.Digest, Want: b.d.Size, Got: -1}
	}
	return b.err
}

// Close implements io.Closer.
func (b *blobReader) Close() error {
	if b.err == nil {
		b.err = errors.New("read of a closed blob")
	}
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
