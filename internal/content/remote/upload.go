package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Put implements content.Sink. A blob goes up in one request; where that breaks
// it goes on where the registry stopped, if from is a content.Rewinder or an
// io.Seeker. The registry verifies blobs, and shows none before.
func (r *Repository) Put(ctx context.Context, d oci.Descriptor, from io.Reader) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return fmt.Errorf("%s has the size %d: %w", d.Digest, d.Size, oci.ErrInvalid)
	}
	r.mu.Lock()
	missing := r.missing[d.Digest]
	delete(r.missing, d.Digest)
	r.mu.Unlock()
	if !missing {
		// Copy has asked just before; others have not.
		if ok, err := r.exists(ctx, d); err != nil || ok {
			return err
		}
	}
	if isManifest(d) {
		return r.putManifest(ctx, d, from)
	}
	up := &upload{r: r, d: d, src: newRestartable(from)}
	if err := up.run(ctx); err != nil {
		if said := r.pushWords(err); said != err {
			return said // that is about the repository
		}
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	return nil
}

// Mount implements content.Mounter. Where the registry declines it has begun an
// upload, which the Put that follows uses.
func (r *Repository) Mount(ctx context.Context, d oci.Descriptor, from ref.Ref) (bool, error) {
	if err := checkDigest(d.Digest); err != nil {
		return false, err
	}
	if from.Domain != r.name.Domain {
		return false, nil
	}
	q := url.Values{"mount": {string(d.Digest)}, "from": {from.Path}}
	resp, err := r.h.do(ctx, &request{
		method: http.MethodPost, path: r.path("blobs", "uploads", "?"+q.Encode()),
		scopes: append(r.pushScope(), "repository:"+from.Path+":pull"),
	}, http.StatusCreated, http.StatusAccepted)
	if err != nil {
		return false, r.pushWords(err)
	}
	drain(resp.Body)
	if resp.StatusCode == http.StatusCreated {
		got := oci.Digest(resp.Header.Get("Docker-Content-Digest"))
		return got == "" || got == d.Digest, nil
	}
	loc, err := r.h.location(resp)
	if err != nil {
		return false, nil
	}
	r.mu.Lock()
	old := r.sessions[d.Digest]
	r.sessions[d.Digest] = loc
	r.mu.Unlock()
	if old != nil {
		r.abandon(ctx, old)
	}
	return false, nil
}

// abandon tells the registry that an upload will not go on; it would find out
// by itself.
func (r *Repository) abandon(ctx context.Context, loc *url.URL) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // it may be because it is silent
	defer cancel()
	resp, err := r.h.do(ctx, &request{method: http.MethodDelete, url: loc, scopes: r.pushScope(), once: true}, http.StatusNoContent, http.StatusOK, http.StatusAccepted)
	if err == nil {
		drain(resp.Body)
	}
}

// upload is one blob on its way up.
type upload struct {
	r   *Repository
	d   oci.Descriptor
	src *restartable

	loc *url.URL
	at  int64 // what the registry has of it
	// chunk bounds one request's body; 0 is all at once.
	chunk int64
	// least is the smallest chunk that the registry takes, but for the last.
	least int64
}

// Chunks for registries, or proxies before them, that refuse a body for its
// length: Cloudflare takes 100 MB, nginx's default is 1 MB.
const (
	firstChunk = 64 << 20
	lastChunk  = 512 << 10
)

func (u *upload) run(ctx context.Context) error {
	if u.d.Size == 0 {
		var one [1]byte
		if n, _ := io.ReadFull(u.src.r, one[:]); n > 0 {
			return &oci.SizeError{Digest: u.d.Digest, Got: -1}
		}
	}
	broken, mark := 0, int64(0)
	for {
		err := u.step(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if u.src.err != nil {
			u.giveUp(ctx)
			return u.src.err
		}
		var said *Error
		if errors.As(err, &said) && said.Status == http.StatusRequestEntityTooLarge && u.shrink() {
			continue
		}
		if errors.Is(err, oci.ErrCorrupt) {
			return u.mismatch(err)
		}
		unknown := said != nil && (said.Status == http.StatusNotFound || said.Status == http.StatusRequestedRangeNotSatisfiable)
		if u.at-mark >= progress {
			broken = 0
		}
		mark = u.at
		broken++
		wait, again := u.r.h.again(err, broken)
		if !again && !(unknown && u.loc != nil && broken < u.r.h.c.opt.Timing.Attempts) {
			u.giveUp(ctx)
			return err
		}
		if !u.src.can() {
			u.giveUp(ctx)
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		u.r.h.c.opt.Log.DebugContext(ctx, "going on with a broken upload", "digest", u.d.Digest, "after", err)
		if unknown {
			u.loc = nil // forgotten, or never heard of: from the start
		} else if u.loc != nil {
			u.ask(ctx)
		}
	}
}

// shrink makes the chunks smaller after the registry called one too large.
func (u *upload) shrink() bool {
	switch {
	case !u.src.can():
		return false
	case u.chunk == 0:
		u.chunk = firstChunk
		for u.chunk >= u.d.Size && u.chunk > lastChunk {
			u.chunk /= 2
		}
	default:
		u.chunk /= 2
	}
	u.chunk = max(u.chunk, u.least)
	return u.chunk >= lastChunk && u.chunk < u.d.Size
}

// step sends what the registry lacks. It returns nil when the blob is there.
func (u *upload) step(ctx context.Context) error {
	if u.loc == nil {
		if err := u.begin(ctx); err != nil {
			return err
		}
	}
	if u.at == 0 && u.chunk == 0 {
		return u.put(ctx, u.d.Size)
	}
	for u.at < u.d.Size {
		n := u.d.Size - u.at
		if u.chunk > 0 {
			n = min(n, u.chunk)
		}
		if n < u.least {
			return u.put(ctx, n) // only the last chunk may be so small, and this says that it is
		}
		if err := u.patch(ctx, n); err != nil {
			return err
		}
	}
	return u.put(ctx, 0)
}

// begin opens an upload, or takes the one that a declined mount left.
func (u *upload) begin(ctx context.Context) error {
	u.at = 0
	u.r.mu.Lock()
	u.loc = u.r.sessions[u.d.Digest]
	delete(u.r.sessions, u.d.Digest)
	u.r.mu.Unlock()
	if u.loc != nil {
		return nil
	}
	resp, err := u.r.h.do(ctx, &request{method: http.MethodPost, path: u.r.path("blobs", "uploads", ""), scopes: u.r.pushScope(), once: true}, http.StatusAccepted)
	if err != nil {
		return err
	}
	drain(resp.Body)
	if n, err := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64); err == nil && n > 0 {
		u.least = n
	}
	u.loc, err = u.r.h.location(resp)
	return err
}

// put closes the upload, with its last n bytes.
func (u *upload) put(ctx context.Context, n int64) error {
	loc := *u.loc
	q := "digest=" + url.QueryEscape(string(u.d.Digest))
	if loc.RawQuery != "" {
		// What is there stays as it is: it may be signed.
		q = loc.RawQuery + "&" + q
	}
	loc.RawQuery = q
	resp, err := u.send(ctx, http.MethodPut, &loc, n, nil, http.StatusCreated, http.StatusOK, http.StatusNoContent)
	if err != nil {
		return err
	}
	if got := oci.Digest(resp.Header.Get("Docker-Content-Digest")); got != "" && got != u.d.Digest && got.Algorithm() == u.d.Digest.Algorithm() {
		return &oci.DigestError{Want: u.d.Digest, Got: got}
	}
	return nil
}

// patch sends the next n bytes.
func (u *upload) patch(ctx context.Context, n int64) error {
	header := http.Header{"Content-Range": {fmt.Sprintf("%d-%d", u.at, u.at+n-1)}}
	resp, err := u.send(ctx, http.MethodPatch, u.loc, n, header, http.StatusAccepted, http.StatusNoContent, http.StatusCreated)
	if err != nil {
		return err
	}
	u.at += n
	if resp.Header.Get("Location") != "" {
		u.loc, err = u.r.h.location(resp)
	}
	return err
}

// send sends n bytes of the blob, from u.at on.
func (u *upload) send(ctx context.Context, method string, loc *url.URL, n int64, header http.Header, ok ...int) (*http.Response, error) {
	if header == nil {
		header = http.Header{}
	}
	header.Set("Content-Type", "application/octet-stream")
	resp, err := u.r.h.do(ctx, &request{
		method: method, url: loc, header: header, scopes: u.r.pushScope(),
		body: func() (io.ReadCloser, error) { return u.src.part(u.d, u.at, n) },
		size: n, once: true, busy: u.d.Size,
	}, ok...)
	if err != nil {
		return nil, err
	}
	drain(resp.Body)
	return resp, nil
}

// ask finds out how much the registry has. Where it can't be found out the
// upload starts again.
func (u *upload) ask(ctx context.Context) {
	resp, err := u.r.h.do(ctx, &request{method: http.MethodGet, url: u.loc, scopes: u.r.pushScope(), once: true}, http.StatusNoContent, http.StatusOK, http.StatusAccepted)
	if err != nil {
		u.loc = nil
		return
	}
	drain(resp.Body)
	at, ok := int64(0), true
	// "0-0" is one byte by the specification; registries mean none by it.
	if span := resp.Header.Get("Range"); span != "" && span != "0-0" {
		from, to, _ := strings.Cut(strings.TrimPrefix(span, "bytes="), "-")
		last, err := strconv.ParseInt(to, 10, 64)
		ok = err == nil && from == "0" && last >= 0 && last < u.d.Size
		at = last + 1
	}
	if !ok {
		u.loc = nil
		return
	}
	u.at = at
	if resp.Header.Get("Location") != "" {
		if loc, err := u.r.h.location(resp); err == nil {
			u.loc = loc
		}
	}
}

func (u *upload) giveUp(ctx context.Context) {
	if u.loc != nil {
		u.r.abandon(ctx, u.loc)
	}
}

// mismatch names the digest that the registry only says is another one.
func (u *upload) mismatch(err error) error {
	var typed *oci.DigestError
	if errors.As(err, &typed) {
		return err
	}
	if u.src.can() {
		body, perr := u.src.part(u.d, 0, u.d.Size)
		if perr == nil {
			defer body.Close()
			h := u.d.Digest.Algorithm().Hash()
			if _, cerr := io.Copy(h, body); cerr == nil {
				if got := digest.NewDigest(u.d.Digest.Algorithm(), h); got != u.d.Digest {
					return worded{(&oci.DigestError{Want: u.d.Digest, Got: got}).Error(), &oci.DigestError{Want: u.d.Digest, Got: got}}
				}
			}
		}
	}
	return err
}

// restartable is a reader for one blob that several requests, one after
// another, read parts of.
type restartable struct {
	r   io.Reader
	at  int64 // where r is
	err error // r's own failure, or that it was too short or too long
	cur *part
}

func newRestartable(r io.Reader) *restartable { return &restartable{r: r} }

// can tells whether r can go back.
func (s *restartable) can() bool {
	switch s.r.(type) {
	case content.Rewinder, io.Seeker:
		return true
	}
	return false
}

// part gives n bytes from offset on. It waits until the request before has let
// go of r: net/http may still read a body when it has returned already.
func (s *restartable) part(d oci.Descriptor, offset, n int64) (io.ReadCloser, error) {
	if s.cur != nil {
		_ = s.cur.Close()
		s.at = s.cur.at
		s.cur = nil
	}
	if s.at != offset {
		var err error
		switch r := s.r.(type) {
		case content.Rewinder:
			err = r.Rewind(offset)
		case io.Seeker:
			_, err = r.Seek(offset, io.SeekStart)
		default:
			err = fmt.Errorf("can't be read again: %w", oci.ErrUnsupported)
		}
		if err != nil {
			s.err = err
			return nil, err
		}
		s.at = offset
	}
	s.cur = &part{s: s, d: d, at: offset, end: offset + n}
	return s.cur, nil
}

// part is one request's body.
type part struct {
	s       *restartable
	d       oci.Descriptor
	at, end int64

	mu     sync.Mutex // held while reading
	closed bool
}

var errClosed = errors.New("the request is over")

func (p *part) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, errClosed
	}
	if p.at == p.end {
		return 0, io.EOF
	}
	n, err := p.s.r.Read(b[:min(int64(len(b)), p.end-p.at)])
	p.at += int64(n)
	switch {
	case err == io.EOF && p.at < p.d.Size:
		p.s.err = &oci.SizeError{Digest: p.d.Digest, Want: p.d.Size, Got: p.at}
		return n, p.s.err
	case err != nil && err != io.EOF:
		p.s.err = err
		return n, err
	}
	if p.at == p.d.Size && err == nil {
		// The last bytes are held back until it is sure that they are the last:
		// otherwise too long a blob would look right to the registry.
		var one [1]byte
		if m, err := io.ReadFull(p.s.r, one[:]); m > 0 {
			p.s.err = &oci.SizeError{Digest: p.d.Digest, Want: p.d.Size, Got: -1}
			return 0, p.s.err
		} else if err != io.EOF {
			p.s.err = err
			return 0, err
		}
	}
	return n, nil
}

func (p *part) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}
