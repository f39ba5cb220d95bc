package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/strake-project/strake/internal/oci"
)

// Bounds of unfinished uploads: they hold disk for clients that may be gone.
const (
	maxUploads = 1000
	uploadIdle = time.Hour
)

// uploads are the open sessions, each a file in a scratch directory of the
// store. They end with the process: a client whose session is gone starts
// again, as the specification has it.
type uploads struct {
	store Store

	mu      sync.Mutex
	open    map[string]*upload
	dir     string
	release func()
}

// upload is a session. Its mutex is held by the request that writes.
type upload struct {
	mu   sync.Mutex
	repo string
	file *os.File
	size int64
	used time.Time // guarded by uploads.mu
}

func (u *uploads) start(repo string) (string, *upload, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.release == nil {
		ctx, release, err := u.store.Lease(context.Background())
		if err != nil {
			return "", nil, err
		}
		if u.dir, err = u.store.Scratch(ctx); err != nil {
			release()
			return "", nil, err
		}
		u.release = release
	}
	for id, up := range u.open {
		if time.Since(up.used) > uploadIdle && up.mu.TryLock() {
			up.drop()
			up.mu.Unlock()
			delete(u.open, id)
		}
	}
	if len(u.open) >= maxUploads {
		return "", nil, fault(codeTooManyRequests, http.StatusTooManyRequests, "%d uploads are under way", len(u.open))
	}
	f, err := os.CreateTemp(u.dir, "upload-*")
	if err != nil {
		return "", nil, err
	}
	id := newID()
	up := &upload{repo: repo, file: f, used: time.Now()}
	u.open[id] = up
	return id, up, nil
}

// newID is a random (version 4) UUID.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

func (u *uploads) find(id, repo string) *upload {
	u.mu.Lock()
	defer u.mu.Unlock()
	up := u.open[id]
	if up == nil || up.repo != repo {
		return nil
	}
	up.used = time.Now()
	return up
}

// end forgets a session. The caller holds up.mu.
func (u *uploads) end(id string, up *upload) {
	u.mu.Lock()
	delete(u.open, id)
	u.mu.Unlock()
	up.drop()
}

func (u *uploads) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, up := range u.open {
		up.mu.Lock()
		up.drop()
		up.mu.Unlock()
		delete(u.open, id)
	}
	if u.release != nil {
		u.release()
		u.release = nil
	}
}

// drop closes and removes the file; a request that waited for the session then
// finds none.
func (up *upload) drop() {
	if up.file != nil {
		up.file.Close()
		os.Remove(up.file.Name())
		up.file = nil
	}
}

// startUpload answers POST: a mount, a blob in one request, or a new session.
func (g *Registry) startUpload(q query) error {
	args := q.r.URL.Query()
	if m := args.Get("mount"); m != "" {
		d, err := parseDigest(m)
		if err != nil {
			return err
		}
		if done, err := g.mount(q, d, args.Get("from")); done || err != nil {
			return err
		}
	} else if s := args.Get("digest"); s != "" {
		d, err := parseDigest(s)
		if err != nil {
			return err
		}
		return g.putWhole(q, d)
	}
	id, _, err := g.uploads.start(q.name)
	if err != nil {
		return err
	}
	g.accepted(q, id, 0, http.StatusAccepted)
	return nil
}

// putWhole stores a blob that comes in one request. Where the client does not
// say how long it is, it goes through a session.
func (g *Registry) putWhole(q query, d oci.Digest) error {
	if n := q.r.ContentLength; n >= 0 {
		return g.created(q, d, g.store.Put(q.ctx(), oci.Descriptor{MediaType: octets, Digest: d, Size: n}, q.r.Body))
	}
	id, up, err := g.uploads.start(q.name)
	if err != nil {
		return err
	}
	up.mu.Lock()
	defer up.mu.Unlock()
	defer g.uploads.end(id, up)
	if err := up.append(q.r.Body); err != nil {
		return err
	}
	return g.finish(q, up, d)
}

// octets is what a blob is until a manifest says more.
const octets = "application/octet-stream"

// created answers for a blob that the store took, or did not.
func (g *Registry) created(q query, d oci.Digest, err error) error {
	var wrong *oci.DigestError
	var size *oci.SizeError
	if errors.As(err, &wrong) || errors.As(err, &size) {
		e := fault(codeDigestInvalid, http.StatusBadRequest, "provided digest did not match uploaded content")
		e.Detail = map[string]string{"reason": err.Error()}
		return e
	}
	if err != nil {
		return err
	}
	return g.blobCreated(q, d)
}

// session finds the upload of a request and locks it.
func (g *Registry) session(q query) (*upload, error) {
	up := g.uploads.find(q.upload, q.name)
	if up == nil {
		return nil, uploadUnknown()
	}
	if !up.mu.TryLock() {
		return nil, fault(codeBlobUploadInvalid, http.StatusConflict, "another request is writing this upload")
	}
	if up.file == nil {
		up.mu.Unlock()
		return nil, uploadUnknown()
	}
	return up, nil
}

func uploadUnknown() *apiError {
	return fault(codeBlobUploadUnknown, http.StatusNotFound, "blob upload unknown to registry")
}

// accepted answers with a session's place and how far it is.
func (g *Registry) accepted(q query, id string, size int64, status int) {
	where(q, id, size)
	if status != http.StatusNoContent {
		q.w.Header().Set("Content-Length", "0")
	}
	q.w.WriteHeader(status)
}

func (g *Registry) uploadStatus(q query) error {
	up, err := g.session(q)
	if err != nil {
		return err
	}
	defer up.mu.Unlock()
	g.accepted(q, q.upload, up.size, http.StatusNoContent)
	return nil
}

func (g *Registry) cancelUpload(q query) error {
	up, err := g.session(q)
	if err != nil {
		return err
	}
	defer up.mu.Unlock()
	g.uploads.end(q.upload, up)
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// patchUpload takes a chunk, which says where it belongs, or a stream. What
// arrived of a body that broke off stays: the client asks how far it got.
func (g *Registry) patchUpload(q query) error {
	up, err := g.session(q)
	if err != nil {
		return err
	}
	defer up.mu.Unlock()
	if err := g.receive(q, up); err != nil {
		return err
	}
	g.accepted(q, q.upload, up.size, http.StatusAccepted)
	return nil
}

func (g *Registry) receive(q query, up *upload) error {
	if header := q.r.Header.Get("Content-Range"); header != "" {
		part, ok := parseContentRange(header)
		if !ok {
			return fault(codeBlobUploadInvalid, http.StatusBadRequest, "Content-Range %q must be START-END", header)
		}
		if part.start != up.size {
			where(q, q.upload, up.size)
			return fault(codeBlobUploadInvalid, http.StatusRequestedRangeNotSatisfiable, "the chunk begins at %d, the upload is at %d", part.start, up.size)
		}
		if n := q.r.ContentLength; n >= 0 && n != part.length {
			where(q, q.upload, up.size)
			return fault(codeSizeInvalid, http.StatusBadRequest, "the chunk has %d bytes, its Content-Range says %d", n, part.length)
		}
		return up.append(io.LimitReader(q.r.Body, part.length))
	}
	return up.append(q.r.Body)
}

// where sets the headers that say where a session is and how far.
func where(q query, id string, size int64) {
	h := q.w.Header()
	h.Set("Location", "/v2/"+q.name+"/blobs/uploads/"+id)
	h.Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
	h.Set("Docker-Upload-UUID", id)
}

// append writes a body to the end of the file.
func (up *upload) append(body io.Reader) error {
	n, err := io.CopyBuffer(struct{ io.Writer }{up.file}, body, make([]byte, 256<<10))
	up.size += n
	return err
}

// finishUpload answers PUT: the last chunk, or everything, or nothing more.
func (g *Registry) finishUpload(q query) error {
	up, err := g.session(q)
	if err != nil {
		return err
	}
	defer up.mu.Unlock()
	d, err := parseDigest(q.r.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	if up.size == 0 && q.r.ContentLength > 0 && q.r.Header.Get("Content-Range") == "" {
		// All of it comes at once: no file between. A body that breaks off
		// leaves the session as it was.
		err := g.putWhole(q, d)
		if err == nil || errors.Is(err, oci.ErrCorrupt) {
			g.uploads.end(q.upload, up)
		}
		return err
	}
	if q.r.ContentLength != 0 || q.r.Header.Get("Content-Range") != "" {
		if err := g.receive(q, up); err != nil {
			return err
		}
	}
	// Whether it is right or wrong, no byte of it is of use any more.
	defer g.uploads.end(q.upload, up)
	return g.finish(q, up, d)
}

// finish makes the session's file the blob, by rename.
func (g *Registry) finish(q query, up *upload, d oci.Digest) error {
	return g.created(q, d, g.store.TakeFile(q.ctx(), oci.Descriptor{MediaType: octets, Digest: d, Size: up.size}, up.file.Name()))
}
