package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

// api is a client that does exactly what it is told. Its tests are the MUSTs of
// the distribution specification v1.1; section names are in brackets.
type api struct {
	*testing.T
	srv    *httptest.Server
	client *http.Client
}

func newAPI(t *testing.T) api {
	srv, _ := serve(t)
	return api{t, srv, srv.Client()}
}

// answer is a response with its body read.
type answer struct {
	*http.Response
	body []byte
}

// do sends a request; headers are "Name: value" lines.
func (a api) do(method, path string, body []byte, headers ...string) answer {
	a.Helper()
	if !strings.HasPrefix(path, "http") {
		path = a.srv.URL + path
	}
	r, err := http.NewRequestWithContext(a.Context(), method, path, bytes.NewReader(body))
	if err != nil {
		a.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	resp, err := a.client.Do(r)
	if err != nil {
		a.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		a.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{resp, got}
}

// want checks a status and, of an error, its code and the form of its JSON.
func (a api) want(got answer, status int, code string) answer {
	a.Helper()
	what := got.Request.Method + " " + got.Request.URL.RequestURI()
	if got.StatusCode != status {
		a.Errorf("%s: status %d, want %d: %s", what, got.StatusCode, status, got.body)
		return got
	}
	if code == "" || got.Request.Method == http.MethodHead {
		return got
	}
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(got.body, &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code != code || e.Errors[0].Message == "" {
		a.Errorf("%s: body %s, want the error code %s", what, got.body, code)
	}
	return got
}

func (a api) header(got answer, name, want string) {
	a.Helper()
	if h := got.Header.Get(name); h != want {
		a.Errorf("%s %s: %s is %q, want %q", got.Request.Method, got.Request.URL.RequestURI(), name, h, want)
	}
}

// push puts an image by the API.
func (a api) push(name, tag string, im *ocitest.Image) {
	a.Helper()
	for _, b := range im.Blobs {
		if oci.IsManifest(b.MediaType) || oci.IsIndex(b.MediaType) {
			at := string(b.Digest)
			if b.Digest == im.Target.Digest && tag != "" {
				at = tag
			}
			a.want(a.do("PUT", "/v2/"+name+"/manifests/"+at, b.Body, "Content-Type: "+b.MediaType), 201, "")
			continue
		}
		a.want(a.do("POST", "/v2/"+name+"/blobs/uploads/?digest="+string(b.Digest), b.Body), 201, "")
	}
}

func TestPull(t *testing.T) {
	a := newAPI(t)
	for tag, im := range map[string]*ocitest.Image{"oci": ocitest.Two(), "docker": ocitest.Docker(), "index": ocitest.TwoPlatforms(), "list": ocitest.DockerList(), "zstd": ocitest.Zstd()} {
		a.push("x/y", tag, im)
		for _, at := range []string{tag, string(im.Target.Digest)} {
			for _, method := range []string{"GET", "HEAD"} {
				got := a.want(a.do(method, "/v2/x/y/manifests/"+at, nil), 200, "")
				a.header(got, "Docker-Content-Digest", string(im.Target.Digest)) // [Pulling manifests]
				a.header(got, "Content-Type", im.Target.MediaType)
				a.header(got, "Content-Length", fmt.Sprint(im.Target.Size)) // [Checking if content exists]
				if method == "GET" && !bytes.Equal(got.body, im.Body(im.Target.Digest)) {
					t.Error("the manifest's bytes differ from those pushed")
				}
			}
		}
	}
	layer := ocitest.Two().Layers()[1]
	path := "/v2/x/y/blobs/" + string(layer.Digest)
	for _, method := range []string{"GET", "HEAD"} {
		got := a.want(a.do(method, path, nil), 200, "")
		a.header(got, "Docker-Content-Digest", string(layer.Digest))
		a.header(got, "Content-Length", fmt.Sprint(layer.Size))
		if method == "GET" && !bytes.Equal(got.body, layer.Body) {
			t.Error("the blob's bytes differ from those pushed")
		}
	}
	absent := string(ocitest.Plain().Target.Digest)
	for _, method := range []string{"GET", "HEAD"} {
		a.want(a.do(method, "/v2/x/y/manifests/absent", nil), 404, codeManifestUnknown)
		a.want(a.do(method, "/v2/x/y/manifests/"+absent, nil), 404, codeManifestUnknown)
		a.want(a.do(method, "/v2/none/manifests/v1", nil), 404, codeManifestUnknown)
		a.want(a.do(method, "/v2/x/y/blobs/"+absent, nil), 404, codeBlobUnknown)
		// A layer is no manifest, whatever knows its digest.
		a.want(a.do(method, "/v2/x/y/manifests/"+string(layer.Digest), nil), 404, codeManifestUnknown)
	}
	a.want(a.do("GET", path, nil, `If-None-Match: "`+string(layer.Digest)+`"`), 304, "")
}

func TestRanges(t *testing.T) {
	a := newAPI(t)
	a.push("r", "v1", ocitest.Plain())
	layer := ocitest.Plain().Layers()[1]
	n := len(layer.Body)
	for header, want := range map[string][2]int{
		"bytes=0-0": {0, 1}, "bytes=0-": {0, n}, "bytes=5-9": {5, 10}, "bytes=100-": {100, n},
		"bytes=-7": {n - 7, n}, fmt.Sprintf("bytes=%d-%d", n-1, n+5): {n - 1, n}, fmt.Sprintf("bytes=-%d", n*2): {0, n},
	} {
		got := a.want(a.do("GET", "/v2/r/blobs/"+string(layer.Digest), nil, "Range: "+header), 206, "")
		a.header(got, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", want[0], want[1]-1, n))
		if !bytes.Equal(got.body, layer.Body[want[0]:want[1]]) {
			t.Errorf("Range %s: %d bytes differ", header, len(got.body))
		}
	}
	for _, header := range []string{"bytes=0-1,3-4", "bytes=x-", "lines=1-2", "bytes=9-5", "bytes=", "bytes=-"} {
		if got := a.want(a.do("GET", "/v2/r/blobs/"+string(layer.Digest), nil, "Range: "+header), 200, ""); len(got.body) != n {
			t.Errorf("Range %s, to be ignored: %d bytes", header, len(got.body))
		}
	}
	got := a.want(a.do("GET", "/v2/r/blobs/"+string(layer.Digest), nil, fmt.Sprintf("Range: bytes=%d-", n)), 416, codeSizeInvalid)
	a.header(got, "Content-Range", fmt.Sprintf("bytes */%d", n))
}

// [Pushing a blob in chunks]
func TestChunkedUpload(t *testing.T) {
	a := newAPI(t)
	b := ocitest.Plain().Layers()[1]
	got := a.want(a.do("POST", "/v2/c/blobs/uploads/", nil, "Content-Length: 0"), 202, "")
	at := got.Header.Get("Location")
	status := func(want int) {
		t.Helper()
		got := a.want(a.do("GET", at, nil), 204, "")
		a.header(got, "Range", fmt.Sprintf("0-%d", max(want-1, 0)))
		if got.Header.Get("Location") == "" {
			t.Error("the status has no Location")
		}
	}
	status(0)
	chunk := func(from, to int) answer {
		return a.do("PATCH", at, b.Body[from:to], fmt.Sprintf("Content-Range: %d-%d", from, to-1), "Content-Type: application/octet-stream")
	}
	a.want(chunk(10, 20), 416, codeBlobUploadInvalid) // the first chunk begins with 0
	got = a.want(chunk(0, 1000), 202, "")
	a.header(got, "Range", "0-999")
	a.want(chunk(0, 1000), 416, codeBlobUploadInvalid) // out of order
	got = a.want(chunk(2000, 3000), 416, codeBlobUploadInvalid)
	a.header(got, "Range", "0-999")
	status(1000)
	a.want(a.do("PATCH", at, b.Body[1000:2000], "Content-Range: 1000-1500"), 400, codeSizeInvalid)
	a.want(a.do("PATCH", at, b.Body[1000:2000], "Content-Range: bananas"), 400, codeBlobUploadInvalid)
	status(1000)
	a.want(chunk(1000, 2000), 202, "")
	got = a.do("PUT", at+"?digest="+string(b.Digest), b.Body[3000:], fmt.Sprintf("Content-Range: 3000-%d", len(b.Body)-1))
	a.want(got, 416, codeBlobUploadInvalid) // the last chunk out of order
	got = a.want(a.do("PUT", at+"?digest="+string(b.Digest), b.Body[2000:], fmt.Sprintf("Content-Range: 2000-%d", len(b.Body)-1)), 201, "")
	if got := a.want(a.do("GET", got.Header.Get("Location"), nil), 200, ""); !bytes.Equal(got.body, b.Body) {
		t.Error("the blob differs from its chunks")
	}
	a.want(a.do("GET", at, nil), 404, codeBlobUploadUnknown) // the session is closed
}

func TestUploads(t *testing.T) {
	a := newAPI(t)
	b := ocitest.Plain().Layers()[1]
	start := func() string {
		return a.want(a.do("POST", "/v2/u/blobs/uploads/", nil), 202, "").Header.Get("Location")
	}
	// [POST then PUT]
	got := a.want(a.do("PUT", start()+"?digest="+string(b.Digest), b.Body), 201, "")
	a.header(got, "Location", "/v2/u/blobs/"+string(b.Digest))
	// one PATCH without a range, then PUT without a body
	at := start()
	a.want(a.do("PATCH", at, b.Body), 202, "")
	a.want(a.do("PUT", at+"?digest="+string(b.Digest), nil), 201, "")
	// an empty blob
	empty := oci.DescriptorOf("", nil)
	a.want(a.do("PUT", start()+"?digest="+string(empty.Digest), nil), 201, "")
	if got := a.want(a.do("GET", "/v2/u/blobs/"+string(empty.Digest), nil), 200, ""); len(got.body) != 0 {
		t.Error("the empty blob is not empty")
	}
	// what is wrong is refused and invisible
	other := ocitest.Two().Layers()[1]
	a.want(a.do("PUT", start()+"?digest="+string(other.Digest), b.Body), 400, codeDigestInvalid)
	a.want(a.do("POST", "/v2/u/blobs/uploads/?digest="+string(other.Digest), b.Body), 400, codeDigestInvalid)
	a.want(a.do("GET", "/v2/u/blobs/"+string(other.Digest), nil), 404, codeBlobUnknown)
	for _, d := range []string{"", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:../../../etc/passwd"} {
		a.want(a.do("PUT", start()+"?digest="+d, b.Body), 400, codeDigestInvalid)
	}
	// [Cancel]
	at = start()
	a.want(a.do("DELETE", at, nil), 204, "")
	for _, method := range []string{"GET", "PATCH", "PUT", "DELETE"} {
		a.want(a.do(method, at+"?digest="+string(b.Digest), b.Body), 404, codeBlobUploadUnknown)
	}
	// a session belongs to its repository
	at = start()
	a.want(a.do("GET", strings.Replace(at, "/u/", "/v/", 1), nil), 404, codeBlobUploadUnknown)
}

// [Mounting a blob from another repository]
func TestMount(t *testing.T) {
	a := newAPI(t)
	a.push("one", "v1", ocitest.Two())
	d := string(ocitest.Two().Layers()[0].Digest)
	got := a.want(a.do("POST", "/v2/two/blobs/uploads/?mount="+d+"&from=one", nil), 201, "")
	a.header(got, "Location", "/v2/two/blobs/"+d)
	a.want(a.do("POST", "/v2/three/blobs/uploads/?mount="+d, nil), 201, "")
	absent := string(ocitest.Zstd().Layers()[0].Digest)
	got = a.want(a.do("POST", "/v2/two/blobs/uploads/?mount="+absent+"&from=one", nil), 202, "")
	if !strings.HasPrefix(got.Header.Get("Location"), "/v2/two/blobs/uploads/") {
		t.Error("a mount that cannot be is no upload either")
	}
}

// [Pushing manifests]
func TestManifests(t *testing.T) {
	a := newAPI(t)
	two := ocitest.Two()
	body := two.Body(two.Target.Digest)
	manifest := func(at string, body []byte, mediaType string) answer {
		return a.do("PUT", "/v2/m/manifests/"+at, body, "Content-Type: "+mediaType)
	}
	a.want(manifest("v1", body, two.Target.MediaType), 404, codeManifestBlobUnknown)
	a.push("m", "v1", two)
	got := a.want(manifest("v2", body, two.Target.MediaType), 201, "")
	a.header(got, "Location", "/v2/m/manifests/"+string(two.Target.Digest))
	a.header(got, "Docker-Content-Digest", string(two.Target.Digest))
	a.want(manifest(string(two.Target.Digest), body, two.Target.MediaType), 201, "")
	a.want(manifest(string(ocitest.One().Target.Digest), body, two.Target.MediaType), 400, codeDigestInvalid)
	a.want(manifest("v3", body, oci.MediaTypeDockerMani), 400, codeManifestInvalid) // the body says another type
	a.want(manifest("v3", body, oci.MediaTypeIndex), 400, codeManifestInvalid)
	a.want(manifest("v3", body, "text/html"), 400, codeManifestInvalid)
	a.want(manifest("v3", []byte("{"), two.Target.MediaType), 400, codeManifestInvalid)
	a.want(manifest("v3", []byte(`{"schemaVersion":1,"fsLayers":[]}`), oci.MediaTypeDockerSigned1), 400, codeManifestInvalid)
	a.want(manifest("v3", []byte(`{"manifests":[],"layers":[]}`), oci.MediaTypeIndex), 400, codeManifestInvalid)
	big := append(body[:len(body)-1:len(body)-1], bytes.Repeat([]byte(" "), oci.MaxManifestSize)...)
	a.want(manifest("v3", append(big, '}'), two.Target.MediaType), 413, codeSizeInvalid)
	a.want(a.do("GET", "/v2/m/manifests/v3", nil), 404, codeManifestUnknown) // none of these is visible
	wrong := bytes.Replace(body, []byte(fmt.Sprintf(`"size":%d`, two.Layers()[0].Size)), []byte(`"size":1`), 1)
	a.want(manifest("v3", wrong, two.Target.MediaType), 400, codeManifestInvalid)
	// [Pushing by digest with tags]
	got = a.want(manifest(string(two.Target.Digest)+"?tag=t1&tag=t2", body, two.Target.MediaType), 201, "")
	if tags := got.Header.Values("OCI-Tag"); !slices.Equal(tags, []string{"t1", "t2"}) {
		t.Errorf("OCI-Tag: %v", tags)
	}
	a.want(a.do("GET", "/v2/m/manifests/t2", nil), 200, "")
}

// [Listing tags]
func TestTags(t *testing.T) {
	a := newAPI(t)
	a.want(a.do("GET", "/v2/none/tags/list", nil), 404, codeNameUnknown)
	for _, tag := range []string{"b", "a", "C", "d.1"} {
		a.push("t", tag, ocitest.One())
	}
	list := func(path string) ([]string, string) {
		t.Helper()
		got := a.want(a.do("GET", path, nil), 200, "")
		var l struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal(got.body, &l); err != nil || l.Name != "t" || l.Tags == nil {
			t.Errorf("%s: %s", path, got.body)
		}
		link, _, _ := strings.Cut(strings.TrimPrefix(got.Header.Get("Link"), "<"), `>; rel="next"`)
		return l.Tags, link
	}
	for path, want := range map[string][]string{
		"/v2/t/tags/list":             {"C", "a", "b", "d.1"},
		"/v2/t/tags/list?n=0":         {},
		"/v2/t/tags/list?n=9":         {"C", "a", "b", "d.1"},
		"/v2/t/tags/list?last=a":      {"b", "d.1"},
		"/v2/t/tags/list?last=aa&n=4": {"b", "d.1"},
	} {
		if got, link := list(path); !slices.Equal(got, want) || link != "" {
			t.Errorf("%s: %v, Link %q; want %v", path, got, link, want)
		}
	}
	var all []string
	for next, pages := "/v2/t/tags/list?n=3", 0; next != "" && pages < 5; pages++ {
		var tags []string
		tags, next = list(next)
		all = append(all, tags...)
	}
	if !slices.Equal(all, []string{"C", "a", "b", "d.1"}) {
		t.Errorf("page by page: %v", all)
	}
	a.want(a.do("GET", "/v2/t/tags/list?n=-1", nil), 400, codePageInvalid)
	got := a.want(a.do("GET", "/v2/_catalog", nil), 200, "")
	if string(got.body) != `{"repositories":["t"]}` {
		t.Errorf("catalog: %s", got.body)
	}
}

// [Listing referrers]
func TestReferrers(t *testing.T) {
	a := newAPI(t)
	one := ocitest.One()
	list := func(query string) answer {
		got := a.want(a.do("GET", "/v2/r/referrers/"+string(one.Target.Digest)+query, nil), 200, "")
		a.header(got, "Content-Type", oci.MediaTypeIndex)
		return got
	}
	var ix oci.Index
	if err := json.Unmarshal(list("").body, &ix); err != nil || ix.Manifests == nil || ix.SchemaVersion != 2 {
		t.Errorf("referrers of nothing: %v", err)
	}
	sbom := ocitest.Artifact(one.Target, "application/vnd.example.sbom", "x")
	for _, b := range sbom.Blobs[:2] {
		a.want(a.do("POST", "/v2/r/blobs/uploads/?digest="+string(b.Digest), b.Body), 201, "")
	}
	// The subject is not there yet.
	got := a.want(a.do("PUT", "/v2/r/manifests/"+string(sbom.Target.Digest), sbom.Body(sbom.Target.Digest), "Content-Type: "+oci.MediaTypeManifest), 201, "")
	a.header(got, "OCI-Subject", string(one.Target.Digest))
	a.push("r", "v1", one)
	got = list("?artifactType=application/vnd.example.sbom")
	a.header(got, "OCI-Filters-Applied", "artifactType")
	if err := json.Unmarshal(got.body, &ix); err != nil || len(ix.Manifests) != 1 || ix.Manifests[0].Digest != sbom.Target.Digest ||
		ix.Manifests[0].ArtifactType != "application/vnd.example.sbom" || ix.Manifests[0].Annotations["org.example.note"] != "x" {
		t.Errorf("referrers: %s", got.body)
	}
	if err := json.Unmarshal(list("?artifactType=other").body, &ix); err != nil || len(ix.Manifests) != 0 {
		t.Error("the filter lets another type through")
	}
	a.want(a.do("GET", "/v2/r/referrers/sha256:abc", nil), 400, codeDigestInvalid)
}

// [Content management]
func TestDelete(t *testing.T) {
	a := newAPI(t)
	two := ocitest.Two()
	a.push("d", "v1", two)
	a.push("d", "v2", two)
	a.push("e", "v1", two)
	a.want(a.do("DELETE", "/v2/d/manifests/v1", nil), 202, "")
	a.want(a.do("DELETE", "/v2/d/manifests/v1", nil), 404, codeManifestUnknown)
	a.want(a.do("GET", "/v2/d/manifests/v1", nil), 404, codeManifestUnknown)
	a.want(a.do("GET", "/v2/d/manifests/v2", nil), 200, "")
	digest := "/v2/d/manifests/" + string(two.Target.Digest)
	a.want(a.do("DELETE", digest, nil), 202, "")
	a.want(a.do("GET", digest, nil), 404, codeManifestUnknown)
	a.want(a.do("GET", "/v2/d/manifests/v2", nil), 404, codeManifestUnknown)
	a.want(a.do("DELETE", digest, nil), 404, codeManifestUnknown)
	blob := "/v2/d/blobs/" + string(two.Layers()[0].Digest)
	a.want(a.do("DELETE", blob, nil), 202, "")
	a.want(a.do("GET", blob, nil), 404, codeBlobUnknown)
	a.want(a.do("DELETE", blob, nil), 404, codeBlobUnknown)
	// The other repository has it all.
	a.want(a.do("GET", "/v2/e/manifests/v1", nil), 200, "")
	a.want(a.do("GET", strings.Replace(blob, "/d/", "/e/", 1), nil), 200, "")
	a.push("d", "v3", two) // and it can come back
	a.want(a.do("GET", digest, nil), 200, "")
	a.want(a.do("GET", blob, nil), 200, "")
}

func TestNamesAndPaths(t *testing.T) {
	a := newAPI(t)
	for _, name := range []string{"UPPER", "a//b", "-a", "a-", "a/.b", "a___b", "a..b", "a/_b", "a%20b", strings.Repeat("a", 256), strings.Repeat("f", 64)} {
		a.want(a.do("GET", "/v2/"+name+"/tags/list", nil), 400, codeNameInvalid)
		a.want(a.do("POST", "/v2/"+name+"/blobs/uploads/", nil), 400, codeNameInvalid)
	}
	a.want(a.do("GET", "/v2/x/manifests/-bad", nil), 400, codeTagInvalid)
	a.want(a.do("PUT", "/v2/x/manifests/"+strings.Repeat("t", 129), nil), 400, codeTagInvalid)
	a.want(a.do("GET", "/v2/x/blobs/sha256:zz", nil), 400, codeDigestInvalid)
	a.want(a.do("GET", "/v2/x/what", nil), 404, codeNotFound)
	a.want(a.do("GET", "/etc/passwd", nil), 404, codeNotFound)
	a.want(a.do("POST", "/v2/x/tags/list", nil), 405, codeUnsupported)
	for _, name := range []string{"blobs", "manifests/blobs", "a/blobs/uploads", "tags/list", "a/manifests/b", "example.com/a", "a__b/c--d.e"} {
		a.push(name, "v1", ocitest.One())
		a.want(a.do("GET", "/v2/"+name+"/manifests/v1", nil), 200, "")
	}
	got := a.want(a.do("GET", "/v2/", nil), 200, "")
	a.header(got, "Docker-Distribution-Api-Version", "registry/2.0")
}

func TestImagesOfTheStoreAreServed(t *testing.T) {
	srv, s := serve(t)
	a := api{t, srv, srv.Client()}
	im := ocitest.Plain()
	for name, path := range map[string]string{"app:v1": "app", "library/app2:v1": "app2", "team/app:v1": "team/app", "ghcr.io/a/b:v1": "ghcr.io/a/b"} {
		r, err := ref.ParseTag(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := content.Copy(t.Context(), s, r, ocitest.Fill(r, im), r, content.CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		a.want(a.do("GET", "/v2/"+path+"/manifests/v1", nil), 200, "")
	}
	a.push("team/pushed", "v1", ocitest.Two())
	got, err := s.Find(t.Context(), "team/pushed:v1")
	if err != nil || got.Manifest.Digest != ocitest.Two().Target.Digest {
		t.Errorf("what was pushed is no image of the store: %v", err)
	}
	// The children of an index were pushed by digest; they are no images of
	// their own in a list.
	a.push("team/both", "v1", ocitest.TwoPlatforms())
	images, err := s.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		if len(i.Names) == 0 {
			t.Errorf("a nameless image %s is listed", i.Manifest.Digest)
		}
	}
}

func TestUploadsSurviveCollection(t *testing.T) {
	srv, s := serve(t)
	a := api{t, srv, srv.Client()}
	two := ocitest.Two()
	for _, b := range two.Blobs[:3] {
		a.want(a.do("POST", "/v2/g/blobs/uploads/?digest="+string(b.Digest), b.Body), 201, "")
		if _, err := s.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.want(a.do("PUT", "/v2/g/manifests/v1", two.Body(two.Target.Digest), "Content-Type: "+two.Target.MediaType), 201, "")
}
