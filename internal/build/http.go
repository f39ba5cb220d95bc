package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source/util/pathutil"
	"github.com/moby/buildkit/util/urlutil"
	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// An http source is one file. It becomes a layer of that file, and the layer is
// remembered with what the server said of it, so that an unchanged file is
// asked for and not sent.

const (
	bucketHTTP = "build.http" // request → webRecord

	// maxDownload bounds a file: a server that never stops would fill the disk.
	maxDownload = 64 << 30
	// stall is how long a server may send nothing before it is given up.
	stall = 2 * time.Minute
	// strongAfter is how old a file must be, by its server's own clock, for
	// Last-Modified to tell its next version from this one (RFC 9110, 8.8.2.2).
	strongAfter = time.Minute
)

// UploadURL is the URL under which an http source reads the stream that
// Options.Uploads has under id.
func UploadURL(id string) string { return "http://" + uploadHost + "/" + id }

// uploadHost is BuildKit's name for the client that the build comes from. No
// connection is ever made to it.
const uploadHost = "buildkit-session"

// webFile is what an http source asks for.
type webFile struct {
	URL        string
	Filename   string            `json:",omitempty"`
	Perm       uint32            `json:",omitempty"`
	UID, GID   int               `json:",omitempty"`
	AuthSecret string            `json:",omitempty"`
	Header     map[string]string `json:",omitempty"`
	Checksum   oci.Digest        `json:"-"`
}

// WebFile is what is known of an http source before it is used.
type WebFile struct {
	Digest       oci.Digest
	Name         string
	LastModified *time.Time
}

// webRecord is a file that was fetched.
type webRecord struct {
	Digest       oci.Digest `json:"digest"`
	Name         string     `json:"name"`
	ETag         string     `json:"etag,omitempty"`
	LastModified string     `json:"last_modified,omitempty"`
	// Strong tells that LastModified may be asked with.
	Strong bool  `json:"strong,omitempty"`
	Layer  Layer `json:"layer"`
}

// parseWebFile reads a source operation.
func parseWebFile(op *pb.SourceOp) (*webFile, error) {
	f := &webFile{URL: op.Identifier}
	number := func(v string, most int64) (int64, error) {
		n, err := strconv.ParseInt(v, 0, 64)
		if err != nil || n < 0 || n > most {
			return 0, fmt.Errorf("http source: %q is no number from 0 to %d: %w", v, most, oci.ErrInvalid)
		}
		return n, nil
	}
	for _, k := range sortedKeys(op.Attrs) {
		v := op.Attrs[k]
		var n int64
		var err error
		switch k {
		case pb.AttrHTTPChecksum:
			f.Checksum, err = digest.Parse(v)
		case pb.AttrHTTPFilename:
			f.Filename = v
		case pb.AttrHTTPPerm:
			n, err = number(v, 0o7777)
			f.Perm = uint32(n)
		case pb.AttrHTTPUID:
			n, err = number(v, 1<<32-2)
			f.UID = int(n)
		case pb.AttrHTTPGID:
			n, err = number(v, 1<<32-2)
			f.GID = int(n)
		case pb.AttrHTTPAuthHeaderSecret:
			f.AuthSecret = v
		case pb.AttrHTTPSignatureVerify, pb.AttrHTTPSignatureVerifyPubKey:
			err = fmt.Errorf("signatures of downloads are %w", oci.ErrUnsupported)
		default:
			name, ok := strings.CutPrefix(k, pb.AttrHTTPHeaderPrefix)
			if name = http.CanonicalHeaderKey(name); ok && (name == "Accept" || name == "User-Agent") {
				if f.Header == nil {
					f.Header = map[string]string{}
				}
				f.Header[name] = v
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return f, nil
}

// download is a file being fetched by this build, or fetched: at most once,
// so that all of the build sees the same.
type download struct {
	url    string
	once   sync.Once
	rec    *webRecord
	cached bool
	err    error
}

// http solves an http source.
func (s *step) http(ctx context.Context, op *pb.SourceOp) (*Snapshot, bool, error) {
	f, err := parseWebFile(op)
	if err != nil {
		return nil, false, err
	}
	rec, cached, err := s.download(ctx, f)
	if err != nil {
		return nil, false, err
	}
	key := digestOf("http", rec.Name, string(rec.Digest), fmt.Sprint(f.Perm, " ", f.UID, " ", f.GID))
	l := rec.Layer
	l.CreatedBy, l.Created = s.v.Name, s.now()
	return newSnapshot(s.opt.Store, []Layer{l}, key), cached, nil
}

// ResolveHTTP tells what an http source is, as far as that is known without
// fetching it where a checksum is given.
func (e *Engine) ResolveHTTP(ctx context.Context, op *pb.SourceOp) (*WebFile, error) {
	f, err := parseWebFile(op)
	if err != nil {
		return nil, err
	}
	if f.Checksum != "" {
		return &WebFile{Digest: f.Checksum, Name: fileName(f, nil)}, nil
	}
	rec, _, err := e.download(ctx, f)
	if err != nil {
		return nil, err
	}
	w := &WebFile{Digest: rec.Digest, Name: rec.Name}
	if t, err := http.ParseTime(rec.LastModified); err == nil {
		w.LastModified = &t
	}
	return w, nil
}

func (e *Engine) download(ctx context.Context, f *webFile) (*webRecord, bool, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, false, err
	}
	request := string(digestOf("request", string(b)))
	e.mu.Lock()
	d := e.downloads[request+string(f.Checksum)]
	if d == nil {
		d = &download{url: f.URL}
		e.downloads[request+string(f.Checksum)] = d
	}
	e.mu.Unlock()
	d.once.Do(func() {
		d.rec, d.cached, d.err = e.get(ctx, f, request)
		if d.err != nil && f.Checksum == "" {
			d.err = fmt.Errorf("failed to load cache key: %w", d.err)
		}
	})
	return d.rec, d.cached, d.err
}

// get returns f's file from the store if that is what the server has, or
// fetches it.
func (e *Engine) get(ctx context.Context, f *webFile, request string) (*webRecord, bool, error) {
	if id, ok := strings.CutPrefix(f.URL, UploadURL("")); ok {
		return e.upload(ctx, f, id)
	}
	old, err := e.fetched(ctx, request)
	if err != nil {
		return nil, false, err
	}
	if old != nil && f.Checksum != "" && old.Digest == f.Checksum {
		return old, true, nil // pinned, and here: nobody needs to be asked
	}
	if f.Checksum != "" {
		old = nil // not what is wanted
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := e.request(ctx, f, old)
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	if unchanged(resp, old) {
		return old, true, nil
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 300 {
		return nil, false, fmt.Errorf("invalid response status %d", resp.StatusCode)
	}
	rec := &webRecord{
		Name:         fileName(f, resp),
		ETag:         resp.Header.Get("ETag"),
		LastModified: resp.Header.Get("Last-Modified"),
	}
	rec.Strong = strong(resp)
	body := &watched{r: resp.Body, timer: time.AfterFunc(stall, func() {
		cancel(fmt.Errorf("%s: nothing came for %s: %w", urlutil.RedactCredentials(f.URL), stall, os.ErrDeadlineExceeded))
	})}
	defer body.timer.Stop()
	size := resp.ContentLength
	if resp.Uncompressed {
		size = -1
	}
	if err := e.keepFile(ctx, f, rec, body, size); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, false, err
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return nil, false, err
	}
	return rec, false, e.opt.Store.PutRecord(ctx, store.Record{
		Bucket: bucketHTTP, Key: request, Value: b, Holds: []oci.Digest{rec.Layer.DiffID},
	})
}

// upload is a file that comes from the client, such as a context on stdin. A
// stream can be read once, so there is nothing to look up.
func (e *Engine) upload(ctx context.Context, f *webFile, id string) (*webRecord, bool, error) {
	r, ok := e.opt.Uploads[id]
	if !ok {
		return nil, false, fmt.Errorf("upload %q: %w", id, oci.ErrNotFound)
	}
	rec := &webRecord{Name: fileName(f, nil)}
	return rec, false, e.keepFile(ctx, f, rec, r, -1)
}

// fetched is what an earlier build got for the same request, if it is all there.
func (e *Engine) fetched(ctx context.Context, request string) (*webRecord, error) {
	r, err := e.opt.Store.GetRecord(ctx, bucketHTTP, request)
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rec webRecord
	if json.Unmarshal(r.Value, &rec) != nil {
		return nil, nil
	}
	if ok, err := e.opt.Store.Has(ctx, rec.Layer.Descriptor); err != nil || !ok {
		return nil, err
	}
	return &rec, nil
}

// request asks for f, unless it is still what old is.
func (e *Engine) request(ctx context.Context, f *webFile, old *webRecord) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL, nil)
	if err != nil {
		return nil, redacted(err)
	}
	req.Header.Set("User-Agent", "strake")
	for k, v := range f.Header {
		req.Header.Set(k, v)
	}
	if err := e.authorize(ctx, f, req); err != nil {
		return nil, err
	}
	if old != nil && old.ETag != "" {
		req.Header.Set("If-None-Match", old.ETag)
	} else if old != nil && old.Strong {
		req.Header.Set("If-Modified-Since", old.LastModified)
	}
	client := &http.Client{Transport: e.transport, CheckRedirect: redirect}
	resp, err := client.Do(req)
	if err != nil {
		return nil, redacted(err)
	}
	return resp, nil
}

// newTransport is Go's own, but that a server must begin to answer some day.
func newTransport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 5 * time.Minute // archives are made while one waits
	return t
}

// redirect lets a download be sent elsewhere ten times, without the credentials
// as soon as that is another host or another scheme: what they open there is
// not ours to give.
func redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if s := req.URL.Scheme; s != "http" && s != "https" {
		return fmt.Errorf("redirected to a URL of scheme %q: %w", s, oci.ErrUnsupported)
	}
	first := via[0].URL
	for _, r := range append(via[1:len(via):len(via)], req) {
		if r.URL.Host != first.Host || r.URL.Scheme != first.Scheme {
			req.Header.Del("Authorization")
			req.Header.Del("Referer") // a URL may be a secret itself
		}
	}
	return nil
}

// authorize adds the secret that the client has for the host, if it has one.
func (e *Engine) authorize(ctx context.Context, f *webFile, req *http.Request) error {
	if f.AuthSecret != "" {
		b, ok, err := e.optionalSecret(ctx, f.AuthSecret)
		if err == nil && !ok {
			err = oci.ErrNotFound
		}
		if err != nil {
			return fmt.Errorf("failed to retrieve HTTP auth secret %s: %w", f.AuthSecret, err)
		}
		req.Header.Set("Authorization", b)
		return nil
	}
	host := req.URL.Hostname()
	for _, kind := range []struct{ name, scheme string }{{"HTTP_AUTH_TOKEN_", "Bearer "}, {"HTTP_AUTH_HEADER_", ""}} {
		b, ok, err := e.optionalSecret(ctx, kind.name+host)
		if err != nil {
			return err
		}
		if ok {
			req.Header.Set("Authorization", kind.scheme+b)
			return nil
		}
	}
	return nil
}

// optionalSecret is the client's secret id, without the line end that a file
// has, or false.
func (e *Engine) optionalSecret(ctx context.Context, id string) (string, bool, error) {
	if e.opt.Secret == nil {
		return "", false, nil
	}
	b, err := e.opt.Secret(ctx, id)
	if errors.Is(err, oci.ErrNotFound) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("secret %s: %w", id, err)
	}
	return strings.TrimRight(string(b), "\r\n"), true, nil
}

// redacted is an error of net/http without the URL's credentials.
func redacted(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return &url.Error{Op: ue.Op, URL: urlutil.RedactCredentials(ue.URL), Err: ue.Err}
	}
	return err
}

// unchanged tells whether the server says that old is what it has. Some
// ignore the question and answer with the whole file under the same ETag.
func unchanged(resp *http.Response, old *webRecord) bool {
	if old == nil {
		return false
	}
	if resp.StatusCode == http.StatusNotModified {
		return true
	}
	weak := func(s string) string { return strings.TrimPrefix(s, "W/") }
	return resp.StatusCode == http.StatusOK && old.ETag != "" && weak(resp.Header.Get("ETag")) == weak(old.ETag)
}

func strong(resp *http.Response) bool {
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return false
	}
	mod, err := http.ParseTime(resp.Header.Get("Last-Modified"))
	return err == nil && date.Sub(mod) >= strongAfter
}

// fileName is what f is called: as the build says, as the server says, or as
// the URL ends. It is one component of a path.
func fileName(f *webFile, resp *http.Response) string {
	if f.Filename != "" {
		return pathutil.SafeFileName(f.Filename)
	}
	if resp != nil {
		if _, p, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition")); err == nil {
			if n := p["filename"]; n != "" && !strings.HasSuffix(n, "/") {
				return pathutil.SafeFileName(n)
			}
		}
	}
	if u, err := url.Parse(f.URL); err == nil && path.Base(u.Path) != "/" {
		return pathutil.SafeFileName(path.Base(u.Path))
	}
	return pathutil.SafeFileName("")
}

func mismatch(got, want oci.Digest) error {
	return fmt.Errorf("digest mismatch %s: %s: %w", got, want, oci.ErrCorrupt)
}

// keepFile stores r as the one file of a layer. A size of -1 is unknown: a tar
// has the size in front, so the bytes wait in a file then.
func (e *Engine) keepFile(ctx context.Context, f *webFile, rec *webRecord, r io.Reader, size int64) error {
	tooBig := fmt.Errorf("%s: more than %d bytes: %w", urlutil.RedactCredentials(f.URL), e.maxDownload, oci.ErrInvalid)
	if size > e.maxDownload {
		return tooBig
	}
	algorithm := digest.SHA256
	if f.Checksum != "" {
		algorithm = f.Checksum.Algorithm()
	}
	sum := algorithm.Hash()
	in := io.TeeReader(r, sum)
	if size < 0 {
		dir, err := e.opt.Store.Scratch(ctx)
		if err != nil {
			return err
		}
		spool, err := os.Create(filepath.Join(dir, "download"))
		if err != nil {
			return err
		}
		defer func() { spool.Close(); os.RemoveAll(dir) }()
		if size, err = io.Copy(spool, io.LimitReader(in, e.maxDownload+1)); err != nil {
			return err
		}
		if size > e.maxDownload {
			return tooBig
		}
		if _, err := spool.Seek(0, io.SeekStart); err != nil {
			return err
		}
		in = spool
	}
	entry := layer.Entry{Path: rec.Name, Type: layer.Regular, Mode: 0o600, UID: f.UID, GID: f.GID, Size: size, ModTime: time.Unix(0, 0)}
	if f.Perm != 0 {
		entry.Mode = f.Perm
	}
	if t, err := http.ParseTime(rec.LastModified); err == nil {
		entry.ModTime = t
	}
	w, err := e.opt.Store.NewLayer(ctx)
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := w.Write(entry, in); err != nil {
		return err
	}
	rec.Digest = digest.NewDigest(algorithm, sum)
	if f.Checksum != "" && rec.Digest != f.Checksum {
		return mismatch(rec.Digest, f.Checksum)
	}
	toc, err := w.Commit(ctx)
	if err != nil {
		return err
	}
	rec.Layer = *plainLayer(toc)
	return nil
}

// watched restarts its timer with every byte that comes.
type watched struct {
	r     io.Reader
	timer *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.timer.Reset(stall)
	}
	return n, err
}
