package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

func blobUnknown(d oci.Digest) *apiError {
	e := fault(codeBlobUnknown, http.StatusNotFound, "blob unknown to registry")
	e.Detail = map[string]string{"digest": string(d)}
	return e
}

// getBlob answers GET and HEAD. A layer whose digest is its diffID may exist
// only unpacked: its tar is streamed out of the tree.
func (g *Registry) getBlob(q query) error {
	d, err := g.find(q.ctx(), q.repo, q.digest)
	if errors.Is(err, oci.ErrNotFound) {
		return blobUnknown(q.digest)
	}
	if err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("Docker-Content-Digest", string(d.Digest))
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Type", "application/octet-stream")
	if notModified(q, d.Digest) {
		return nil
	}
	part, whole, ok := parseRange(q.r.Header.Get("Range"), d.Size)
	if cond := q.r.Header.Get("If-Range"); cond != "" && cond != etag(d.Digest) {
		part, whole, ok = span{0, d.Size}, true, true
	}
	if !ok {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", d.Size))
		return fault(codeSizeInvalid, http.StatusRequestedRangeNotSatisfiable, "blob %s has %d bytes", d.Digest, d.Size)
	}
	h.Set("Content-Length", strconv.FormatInt(part.length, 10))
	status := http.StatusOK
	if !whole {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", part.start, part.start+part.length-1, d.Size))
		status = http.StatusPartialContent
	}
	if q.r.Method == http.MethodHead {
		q.w.WriteHeader(status)
		return nil
	}
	body, err := g.open(q.ctx(), d, part)
	if errors.Is(err, oci.ErrNotFound) {
		return blobUnknown(q.digest)
	}
	if err != nil {
		return err
	}
	defer body.Close()
	q.w.WriteHeader(status)
	return send(q.w, body, part.length)
}

// open opens a part of a blob, by skipping what precedes it where the store
// cannot start in the middle.
func (g *Registry) open(ctx context.Context, d oci.Descriptor, part span) (io.ReadCloser, error) {
	if part.start > 0 {
		r, err := g.store.OpenAt(ctx, d, part.start, -1)
		if !errors.Is(err, oci.ErrUnsupported) {
			return r, err
		}
	}
	r, err := g.store.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, part.start); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// send writes n bytes of body. Each piece has its own deadline, so that a
// client that stopped reading does not hold a connection for ever; from a file
// to a TCP connection the kernel copies the piece (sendfile).
func send(w http.ResponseWriter, body io.Reader, n int64) error {
	const piece = 16 << 20
	control := http.NewResponseController(w)
	defer control.SetWriteDeadline(time.Time{})
	for n > 0 {
		control.SetWriteDeadline(time.Now().Add(patience)) // not every writer can
		sent, err := io.CopyN(w, body, min(n, piece))
		n -= sent
		if err != nil {
			return fmt.Errorf("%w: %w", errAnswered, err)
		}
	}
	// A verified stream says only at its end that it was wrong.
	if _, err := io.CopyN(io.Discard, body, 1); err != nil && err != io.EOF {
		return fmt.Errorf("%w: %w", errAnswered, err)
	}
	return nil
}

func etag(d oci.Digest) string { return `"` + string(d) + `"` }

// notModified answers 304 where the client has the content already.
func notModified(q query, d oci.Digest) bool {
	q.w.Header().Set("ETag", etag(d))
	if q.r.Header.Get("If-None-Match") != etag(d) {
		return false
	}
	q.w.WriteHeader(http.StatusNotModified)
	return true
}

func (g *Registry) deleteBlob(q query) error {
	if _, err := g.find(q.ctx(), q.repo, q.digest); errors.Is(err, oci.ErrNotFound) {
		return blobUnknown(q.digest)
	} else if err != nil {
		return err
	}
	if err := g.hide(q.ctx(), q.repo, q.digest); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

// blobCreated answers 201 for a blob that is there now.
func (g *Registry) blobCreated(q query, d oci.Digest) error {
	if err := g.show(q.ctx(), q.repo, d); err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("Location", "/v2/"+q.name+"/blobs/"+string(d))
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

// mount answers a request to mount d, and tells whether it did. From may be
// empty: then any repository will do.
func (g *Registry) mount(q query, d oci.Digest, from string) (bool, error) {
	source := ref.Ref{}
	if from != "" {
		var err error
		if source, err = target(from); err != nil {
			return false, nil // what cannot exist cannot be mounted from
		}
		if hidden, err := g.hidden(q.ctx(), source, d); err != nil || hidden {
			return false, err
		}
	} else if hidden, err := g.hidden(q.ctx(), q.repo, d); err != nil || hidden {
		return false, err
	}
	_, err := g.store.Resolve(q.ctx(), q.repo.WithDigest(d))
	if errors.Is(err, oci.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, g.blobCreated(q, d)
}
