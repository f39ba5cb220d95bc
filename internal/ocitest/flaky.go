package ocitest

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Flaky is a small registry in memory that behaves well until Faults are put
// before it: it is there to be misused, and to remember what it was asked.
type Flaky struct {
	*httptest.Server
	// Referrers switches the referrers API on, and OCI-Subject.
	Referrers bool
	// ChunkMin is sent as OCI-Chunk-Min-Length and enforced.
	ChunkMin int64
	// BodyMax is the longest body of one request; longer ones get 413.
	BodyMax int64
	// NoMount declines every mount.
	NoMount bool
	// PageSize bounds a page of tags.
	PageSize int

	mu      sync.Mutex
	faults  []Fault
	repos   map[string]*flakyRepo
	uploads map[string]*flakyUpload
	asked   []Asked
}

// Asked is one request that came in.
type Asked struct {
	Method, Path, Query, Authorization, Range, ContentRange, UserAgent string
}

type flakyRepo struct {
	blobs     map[oci.Digest][]byte
	manifests map[oci.Digest]Blob
	tags      map[string]oci.Digest
}

type flakyUpload struct {
	repo string
	body []byte
}

// Fault stands before the registry, or before further faults.
type Fault func(next http.Handler) http.Handler

// NewFlaky starts a registry on a loopback port, over plain http.
func NewFlaky(t testing.TB, faults ...Fault) *Flaky {
	f := newFlaky(faults)
	f.Start()
	t.Cleanup(f.stop)
	return f
}

// NewFlakyTLS is NewFlaky over https, with httptest's certificate; it asks for
// the client's.
func NewFlakyTLS(t testing.TB, faults ...Fault) *Flaky {
	f := newFlaky(faults)
	f.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	f.StartTLS()
	t.Cleanup(f.stop)
	return f
}

func newFlaky(faults []Fault) *Flaky {
	f := &Flaky{faults: faults, repos: map[string]*flakyRepo{}, uploads: map[string]*flakyUpload{}}
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ErrorLog = log.New(io.Discard, "", 0) // broken handshakes are part of the game
	return f
}

// stop does not wait for handlers that a fault keeps busy.
func (f *Flaky) stop() {
	f.CloseClientConnections()
	f.Close()
}

// Host is the registry's name in references.
func (f *Flaky) Host() string { return f.Listener.Addr().String() }

// Fault puts more faults before the registry.
func (f *Flaky) Fault(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, faults...)
}

// Asked returns the requests so far.
func (f *Flaky) Asked() []Asked {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// Count tells how many requests with that method had a path that contains part.
func (f *Flaky) Count(method, part string) int {
	n := 0
	for _, a := range f.Asked() {
		if a.Method == method && strings.Contains(a.Path, part) {
			n++
		}
	}
	return n
}

// Add stores im in r's repository, tagged as r.
func (f *Flaky) Add(r ref.Ref, im *Image) {
	f.mu.Lock()
	defer f.mu.Unlock()
	repo := f.repo(r.Path)
	for _, b := range im.Blobs {
		if oci.IsManifest(b.MediaType) || oci.IsIndex(b.MediaType) {
			repo.manifests[b.Digest] = b
		} else {
			repo.blobs[b.Digest] = b.Body
		}
	}
	if r.Tag != "" {
		repo.tags[r.Tag] = im.Target.Digest
	}
}

// AddRaw stores a manifest whose bytes and media type may be any.
func (f *Flaky) AddRaw(r ref.Ref, mediaType string, body []byte) oci.Descriptor {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := oci.DescriptorOf(mediaType, body)
	f.repo(r.Path).manifests[d.Digest] = Blob{d, body}
	f.repo(r.Path).tags[r.Tag] = d.Digest
	return d
}

// Blob returns what was stored; nil if nothing was.
func (f *Flaky) Blob(path string, d oci.Digest) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.repo(path).blobs[d]
}

// Uploads is the number of uploads that are still open.
func (f *Flaky) Uploads() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.uploads)
}

func (f *Flaky) repo(path string) *flakyRepo {
	r := f.repos[path]
	if r == nil {
		r = &flakyRepo{map[oci.Digest][]byte{}, map[oci.Digest]Blob{}, map[string]oci.Digest{}}
		f.repos[path] = r
	}
	return r
}

// ServeHTTP implements http.Handler.
func (f *Flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, Asked{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Get("Authorization"), r.Header.Get("Range"), r.Header.Get("Content-Range"), r.UserAgent()})
	h := http.Handler(http.HandlerFunc(f.serve))
	for _, fault := range slices.Backward(f.faults) {
		h = fault(h)
	}
	f.mu.Unlock()
	h.ServeHTTP(w, r)
}

// WriteError answers with an error body of the distribution specification.
func WriteError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

func (f *Flaky) serve(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	switch {
	case !ok:
		http.NotFound(w, r)
		return
	case path == "":
		_, _ = io.WriteString(w, "{}")
		return
	}
	for _, kind := range []string{"/manifests/", "/blobs/uploads/", "/blobs/", "/tags/list", "/referrers/"} {
		name, what, ok := strings.Cut(path, kind)
		if !ok {
			continue
		}
		switch kind {
		case "/manifests/":
			f.manifests(w, r, name, what)
		case "/blobs/uploads/":
			f.upload(w, r, name, what)
		case "/blobs/":
			f.blob(w, r, name, oci.Digest(what))
		case "/tags/list":
			f.tagList(w, r, name)
		default:
			f.referrers(w, r, name, oci.Digest(what))
		}
		return
	}
	http.NotFound(w, r)
}

func (f *Flaky) manifests(w http.ResponseWriter, r *http.Request, name, what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	repo := f.repo(name)
	if r.Method == http.MethodPut {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		d := oci.DescriptorOf(r.Header.Get("Content-Type"), body)
		if oci.Digest(what).Validate() != nil {
			repo.tags[what] = d.Digest
		} else if oci.Digest(what) != d.Digest {
			WriteError(w, 400, "DIGEST_INVALID", "provided digest did not match uploaded content")
			return
		}
		repo.manifests[d.Digest] = Blob{d, body}
		var m oci.Manifest
		if json.Unmarshal(body, &m) == nil && m.Subject != nil && f.Referrers {
			w.Header().Set("OCI-Subject", string(m.Subject.Digest))
		}
		w.Header().Set("Docker-Content-Digest", string(d.Digest))
		w.WriteHeader(http.StatusCreated)
		return
	}
	d, ok := repo.tags[what]
	if !ok {
		d = oci.Digest(what)
	}
	b, ok := repo.manifests[d]
	if !ok {
		WriteError(w, 404, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	w.Header().Set("Content-Type", b.MediaType)
	w.Header().Set("Docker-Content-Digest", string(d))
	w.Header().Set("Content-Length", strconv.Itoa(len(b.Body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(b.Body)
	}
}

func (f *Flaky) blob(w http.ResponseWriter, r *http.Request, name string, d oci.Digest) {
	f.mu.Lock()
	body, ok := f.repo(name).blobs[d]
	f.mu.Unlock()
	if !ok {
		WriteError(w, 404, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	start, end := 0, len(body)
	if rng := r.Header.Get("Range"); rng != "" {
		if _, err := fmt.Sscanf(rng, "bytes=%d-%d", &start, &end); err != nil || start > len(body) || end >= len(body) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		end++
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end-1, len(body)))
	}
	w.Header().Set("Docker-Content-Digest", string(d))
	w.Header().Set("Content-Length", strconv.Itoa(end-start))
	if r.Header.Get("Range") != "" {
		w.WriteHeader(http.StatusPartialContent)
	}
	if r.Method != http.MethodHead {
		_, _ = w.Write(body[start:end])
	}
}

func (f *Flaky) upload(w http.ResponseWriter, r *http.Request, name, id string) {
	if f.BodyMax > 0 && r.ContentLength > f.BodyMax {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	if r.Method == http.MethodPost {
		f.begin(w, r, name)
		return
	}
	f.mu.Lock()
	up := f.uploads[id]
	f.mu.Unlock()
	if up == nil || up.repo != name {
		WriteError(w, 404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
		return
	}
	if r.Method == http.MethodPatch || r.Method == http.MethodPut {
		if from, _, ok := strings.Cut(r.Header.Get("Content-Range"), "-"); ok && from != strconv.Itoa(len(up.body)) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		// What arrives is kept also where the connection breaks.
		body, err := io.ReadAll(r.Body)
		f.mu.Lock()
		up.body = append(up.body, body...)
		f.mu.Unlock()
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if r.Method == http.MethodPatch && int64(len(body)) < f.ChunkMin {
			up.body = up.body[:len(up.body)-len(body)]
			WriteError(w, 416, "SIZE_INVALID", "chunk too small")
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Location", r.URL.Path+"?_state=secret")
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(len(up.body)-1, 0)))
	switch r.Method {
	case http.MethodGet:
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPatch:
		w.WriteHeader(http.StatusAccepted)
	case http.MethodDelete:
		delete(f.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPut:
		delete(f.uploads, id)
		d := oci.Digest(r.URL.Query().Get("digest"))
		if digest.FromBytes(up.body) != d {
			WriteError(w, 400, "DIGEST_INVALID", "provided digest did not match uploaded content")
			return
		}
		f.repo(name).blobs[d] = up.body
		w.Header().Set("Docker-Content-Digest", string(d))
		w.WriteHeader(http.StatusCreated)
	}
}

func (f *Flaky) begin(w http.ResponseWriter, r *http.Request, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := r.URL.Query()
	if d := oci.Digest(q.Get("mount")); d != "" && !f.NoMount {
		if body, ok := f.repo(q.Get("from")).blobs[d]; ok {
			f.repo(name).blobs[d] = body
			w.Header().Set("Docker-Content-Digest", string(d))
			w.WriteHeader(http.StatusCreated)
			return
		}
	}
	id := rand.Text()
	f.uploads[id] = &flakyUpload{repo: name}
	if f.ChunkMin > 0 {
		w.Header().Set("OCI-Chunk-Min-Length", strconv.FormatInt(f.ChunkMin, 10))
	}
	w.Header().Set("Location", "/v2/"+name+"/blobs/uploads/"+id+"?_state=secret")
	w.WriteHeader(http.StatusAccepted)
}

func (f *Flaky) tagList(w http.ResponseWriter, r *http.Request, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var tags []string
	for t := range f.repo(name).tags {
		if t > r.URL.Query().Get("last") {
			tags = append(tags, t)
		}
	}
	slices.Sort(tags)
	if f.PageSize > 0 && len(tags) > f.PageSize {
		tags = tags[:f.PageSize]
		w.Header().Set("Link", fmt.Sprintf(`</v2/%s/tags/list?last=%s&n=%d>; rel="next"`, name, tags[len(tags)-1], f.PageSize))
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"name": name, "tags": tags})
}

func (f *Flaky) referrers(w http.ResponseWriter, r *http.Request, name string, of oci.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.Referrers {
		http.NotFound(w, r)
		return
	}
	ix := oci.Index{MediaType: oci.MediaTypeIndex, Manifests: []oci.Descriptor{}}
	ix.SchemaVersion = 2
	for _, b := range f.repo(name).manifests {
		var m oci.Manifest
		if json.Unmarshal(b.Body, &m) == nil && m.Subject != nil && m.Subject.Digest == of {
			d := b.Descriptor
			d.ArtifactType, d.Annotations = m.ArtifactType, m.Annotations
			ix.Manifests = append(ix.Manifests, d)
		}
	}
	w.Header().Set("Content-Type", oci.MediaTypeIndex)
	_ = json.NewEncoder(w).Encode(ix)
}
