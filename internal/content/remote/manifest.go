package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// held is a manifest that was read or put.
type held struct {
	d    oci.Descriptor
	body []byte
}

// maxHeld is how many manifests a Repository keeps. A pull reads each once or
// twice in a row; a push tags the last one.
const maxHeld = 8

// accepted are the media types asked for. Registries convert, or refuse, what
// a client does not name; schema 1 is not named, so what still comes as such is
// refused with a clear word.
var accepted = strings.Join([]string{oci.MediaTypeIndex, oci.MediaTypeManifest, oci.MediaTypeDockerList, oci.MediaTypeDockerMani, "*/*"}, ", ")

// Resolve implements content.Source. Its errors are docker's words.
func (r *Repository) Resolve(ctx context.Context, to ref.Ref) (oci.Descriptor, error) {
	if err := r.check(to); err != nil {
		return oci.Descriptor{}, err
	}
	r.reading.Store(true)
	to = to.WithDefaultTag()
	d, err := r.resolve(ctx, to)
	if err == nil {
		return d, nil
	}
	if ctx.Err() != nil {
		return oci.Descriptor{}, err
	}
	return oci.Descriptor{}, worded{fmt.Sprintf("failed to resolve reference %q: %s", to, resolveWords(to, err)), err}
}

// resolveWords says err as docker does.
func resolveWords(to ref.Ref, err error) string {
	var said *Error
	var unauthorized *auth.Error
	switch {
	case errors.As(err, &said) && said.Status == http.StatusNotFound:
		return to.String() + ": not found"
	case errors.As(err, &said) && said.Status == http.StatusUnauthorized && said.Words() != "", errors.Is(err, oci.ErrDenied):
		return "pull access denied, repository does not exist or may require authorization: " + err.Error()
	case errors.As(err, &unauthorized) && unauthorized.Status == 0:
		return "pull access denied, repository does not exist or may require authorization: " + strings.TrimPrefix(err.Error(), "failed to authorize: ")
	}
	return err.Error()
}

func (r *Repository) resolve(ctx context.Context, to ref.Ref) (oci.Descriptor, error) {
	name := to.Tag
	if to.Digest != "" {
		if err := checkDigest(to.Digest); err != nil {
			return oci.Descriptor{}, err
		}
		name = string(to.Digest)
		if h := r.held(to.Digest); h != nil {
			return h.d, nil
		}
	}
	if r.h.domain == "docker.io" {
		// Docker Hub counts GETs of manifests and no HEADs, so looking whether
		// an image is up to date should cost nothing. Elsewhere the GET that a
		// pull needs anyway saves this request.
		if d, ok, err := r.head(ctx, name, to.Digest); ok || err != nil {
			return d, err
		}
	}
	h, err := r.getManifest(ctx, name, to.Digest)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return h.d, nil
}

// head resolves name without its body. It returns false where the answer says
// too little, which the specification permits.
func (r *Repository) head(ctx context.Context, name string, want oci.Digest) (oci.Descriptor, bool, error) {
	resp, err := r.h.do(ctx, &request{
		method: http.MethodHead, path: r.path("manifests", name),
		header: http.Header{"Accept": {accepted}}, scopes: r.pullScope(),
	}, http.StatusOK)
	if err != nil {
		return oci.Descriptor{}, false, err
	}
	resp.Body.Close()
	got := oci.Digest(resp.Header.Get("Docker-Content-Digest"))
	mediaType := contentType(resp.Header)
	if want != "" && got != "" && got != want {
		return oci.Descriptor{}, false, &oci.DigestError{Want: want, Got: got}
	}
	if resp.ContentLength <= 0 || checkDigest(got) != nil || !oci.IsManifest(mediaType) && !oci.IsIndex(mediaType) {
		return oci.Descriptor{}, false, nil
	}
	return oci.Descriptor{MediaType: mediaType, Digest: got, Size: resp.ContentLength}, true, nil
}

// getManifest reads the manifest that name, a tag or digest, names; want is its
// digest where it is known. The body is verified and kept.
func (r *Repository) getManifest(ctx context.Context, name string, want oci.Digest) (*held, error) {
	resp, err := r.h.do(ctx, &request{
		method: http.MethodGet, path: r.path("manifests", name),
		header: http.Header{"Accept": {accepted}}, scopes: r.pullScope(), called: http.MethodHead,
	}, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.ContentLength > oci.MaxManifestSize {
		return nil, tooLong(name)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, oci.MaxManifestSize+1))
	if err != nil {
		return nil, &networkError{method: http.MethodGet, url: redact(resp.Request.URL), err: err}
	}
	if len(body) > oci.MaxManifestSize {
		return nil, tooLong(name)
	}
	said := oci.Digest(resp.Header.Get("Docker-Content-Digest"))
	if said != "" && said.Validate() != nil {
		said = ""
	}
	if want == "" {
		want = said
	}
	if want == "" {
		want = digest.FromBytes(body)
	}
	if !want.Algorithm().Available() {
		return nil, fmt.Errorf("digest algorithm %q: %w", want.Algorithm(), oci.ErrUnsupported)
	}
	if got := want.Algorithm().FromBytes(body); got != want {
		return nil, &oci.DigestError{Want: want, Got: got}
	}
	if said != "" && said != want && said.Algorithm() == want.Algorithm() {
		return nil, &oci.DigestError{Want: want, Got: said}
	}
	mediaType, err := manifestType(contentType(resp.Header), body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", want, err)
	}
	return r.hold(oci.Descriptor{MediaType: mediaType, Digest: want, Size: int64(len(body))}, body), nil
}

func tooLong(name string) error {
	return fmt.Errorf("manifest %s is longer than the %d bytes that strake reads: %w", name, oci.MaxManifestSize, oci.ErrInvalid)
}

func contentType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// manifestType is what a manifest is: what the registry says, or, where that is
// too general (a plain file server, or an object store), what it itself says.
func manifestType(said string, body []byte) (string, error) {
	var probe struct {
		MediaType     string          `json:"mediaType"`
		SchemaVersion int             `json:"schemaVersion"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	parsed := json.Unmarshal(body, &probe) == nil
	switch {
	case said == oci.MediaTypeDockerSchema1, said == oci.MediaTypeDockerSigned1, parsed && (probe.SchemaVersion == 1 || probe.FSLayers != nil):
		return "", fmt.Errorf("docker schema 1 manifest: %w; push the image again with a docker newer than 1.10", oci.ErrUnsupported)
	case oci.IsManifest(said), oci.IsIndex(said):
		return said, nil
	case !parsed:
		return "", fmt.Errorf("content type %q is no manifest: %w", oneLine(said, 100), oci.ErrInvalid)
	case oci.IsManifest(probe.MediaType), oci.IsIndex(probe.MediaType):
		return probe.MediaType, nil
	case probe.MediaType == "" && probe.Manifests != nil && probe.Layers == nil:
		return oci.MediaTypeIndex, nil
	case probe.MediaType == "" && probe.Layers != nil && probe.Manifests == nil:
		return oci.MediaTypeManifest, nil
	}
	return "", fmt.Errorf("content type %q is no image: %w", oneLine(said, 100), oci.ErrUnsupported)
}

func (r *Repository) hold(d oci.Descriptor, body []byte) *held {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.recent) == maxHeld {
		r.recent = append(r.recent[:0], r.recent[1:]...)
	}
	r.recent = append(r.recent, held{d, body})
	return &held{d, body}
}

func (r *Repository) held(d oci.Digest) *held {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.recent {
		if r.recent[i].d.Digest == d {
			h := r.recent[i]
			return &h
		}
	}
	return nil
}

func isManifest(d oci.Descriptor) bool {
	return oci.IsManifest(d.MediaType) || oci.IsIndex(d.MediaType)
}

// openManifest is Open for manifests and indexes. The bytes are verified, and
// are those that Resolve saw.
func (r *Repository) openManifest(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	h := r.held(d.Digest)
	if h == nil {
		var err error
		if h, err = r.getManifest(ctx, string(d.Digest), d.Digest); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
	}
	if int64(len(h.body)) != d.Size {
		return nil, &oci.SizeError{Digest: d.Digest, Want: d.Size, Got: int64(len(h.body))}
	}
	return io.NopCloser(bytes.NewReader(h.body)), nil
}

// putManifest is Put for manifests and indexes.
func (r *Repository) putManifest(ctx context.Context, d oci.Descriptor, from io.Reader) error {
	body, err := oci.ReadAll(from, d)
	if err != nil {
		return err
	}
	subjectSeen, err := r.sendManifest(ctx, string(d.Digest), d, body)
	if err != nil {
		return err
	}
	r.hold(d, body)
	if !subjectSeen {
		return r.linkReferrer(ctx, d, body)
	}
	return nil
}

// sendManifest puts body under a tag or digest. It tells whether the registry
// keeps referrers itself.
//
// A registry that has just taken a blob may not know it yet: docker's own,
// where two upload the same one, and those on slow object stores. So a refusal
// for a missing blob is worth two more tries.
func (r *Repository) sendManifest(ctx context.Context, name string, d oci.Descriptor, body []byte) (bool, error) {
	for try := 1; ; try++ {
		subject, err := r.sendManifestOnce(ctx, name, d, body)
		var said *Error
		if try == 3 || !errors.As(err, &said) || !said.has("MANIFEST_BLOB_UNKNOWN") {
			return subject, err
		}
		if err := sleep(ctx, time.Duration(try)*r.h.c.opt.Timing.Backoff); err != nil {
			return false, err
		}
	}
}

func (r *Repository) sendManifestOnce(ctx context.Context, name string, d oci.Descriptor, body []byte) (bool, error) {
	resp, err := r.h.do(ctx, &request{
		method: http.MethodPut, path: r.path("manifests", name), scopes: r.pushScope(),
		header: http.Header{"Content-Type": {d.MediaType}},
		body:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
		size:   int64(len(body)),
	}, http.StatusCreated, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
	if err != nil {
		return false, r.pushWords(err)
	}
	drain(resp.Body)
	if got := oci.Digest(resp.Header.Get("Docker-Content-Digest")); got != "" && got != d.Digest && got.Algorithm() == d.Digest.Algorithm() {
		return false, &oci.DigestError{Want: d.Digest, Got: got}
	}
	return resp.Header.Get("OCI-Subject") != "", nil
}

// Tag implements content.Sink: the manifest is put once more under its tag,
// which is how the API says it.
func (r *Repository) Tag(ctx context.Context, as ref.Ref, d oci.Descriptor) error {
	if err := r.check(as); err != nil {
		return err
	}
	if as.Tag == "" {
		return nil
	}
	h := r.held(d.Digest)
	if h == nil {
		var err error
		if h, err = r.getManifest(ctx, string(d.Digest), d.Digest); err != nil {
			return fmt.Errorf("tag %s: %w", as.Familiar(), err)
		}
	}
	_, err := r.sendManifest(ctx, as.Tag, h.d, h.body)
	return err
}

// pushWords says err as docker does.
func (r *Repository) pushWords(err error) error {
	if errors.Is(err, oci.ErrUnauthorized) || errors.Is(err, oci.ErrDenied) {
		return worded{"push access denied, repository does not exist or may require authorization: " + strings.TrimPrefix(err.Error(), "failed to authorize: "), err}
	}
	return err
}
