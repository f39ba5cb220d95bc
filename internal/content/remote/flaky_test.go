package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

// hasty repeats without long pauses.
var hasty = remote.Timing{Backoff: time.Millisecond, Stall: 300 * time.Millisecond, MaxWait: time.Second}

func client(opt remote.Options) *remote.Client {
	if opt.Credentials == nil {
		opt.Credentials = nobody
	}
	opt.Timing = hasty
	opt.CertDirs = []string{}
	return remote.New(opt)
}

// large is an image with one layer of that many random bytes.
func large(size int) *ocitest.Image {
	body := make([]byte, size)
	chacha := rand.NewChaCha8([32]byte{1})
	_, _ = chacha.Read(body)
	return ocitest.Make(ocitest.Spec{Layers: [][]byte{ocitest.Layer("big", string(body))}})
}

func at(t testing.TB, host string) ref.Ref { return mustRef(t, host+"/some/image:v1") }

func pull(t testing.TB, c *remote.Client, r ref.Ref) (*ocitest.Memory, oci.Descriptor, error) {
	t.Helper()
	mem := ocitest.NewMemory()
	d, err := content.Copy(context.Background(), mem, r, c.Repository(r), r, content.CopyOptions{})
	return mem, d, err
}

// TestPullFromFlaky pulls from registries that misbehave. What can be overcome
// is; what can't leaves no image and says why.
func TestPullFromFlaky(t *testing.T) {
	const size = 300_000
	layer := "/blobs/" + string(large(size).Layers()[0].Digest)
	for _, c := range []struct {
		name   string
		faults []ocitest.Fault
		want   error  // nil: the pull succeeds
		say    string // in the error
	}{
		{name: "a registry that behaves"},
		{name: "503 twice, then fine", faults: []ocitest.Fault{ocitest.Times(2, ocitest.Fails(503, "", ""))}},
		{name: "429 with Retry-After, then fine", faults: []ocitest.Fault{ocitest.Times(2, ocitest.Answer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "0")
			ocitest.WriteError(w, 429, "TOOMANYREQUESTS", "slow down")
		}))}},
		{name: "429 for an hour", faults: []ocitest.Fault{ocitest.Answer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "3600")
			ocitest.WriteError(w, 429, "TOOMANYREQUESTS", "You have reached your pull rate limit.")
		})}, want: oci.ErrTooMany, say: "toomanyrequests: You have reached your pull rate limit."},
		{name: "503 for ever", faults: []ocitest.Fault{ocitest.Fails(503, "UNAVAILABLE", "down for today")}, want: errAny, say: "503 Service Unavailable: unavailable: down for today"},
		{name: "the layer's connection breaks four times", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Times(4, ocitest.Cut(50_000)))}},
		{name: "the layer's connection breaks each time, but moves on", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Cut(20_000))}},
		{name: "it breaks, and the registry knows no ranges", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.NoRange()), ocitest.On("GET", layer, ocitest.Times(2, ocitest.Cut(100_000)))}},
		{name: "it breaks before the first byte each time", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Cut(0))}, want: errAny, say: "broke off after 0 of"},
		{name: "it breaks at the same byte for ever", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.NoRange()), ocitest.On("GET", layer, ocitest.Cut(100_000))}, want: errAny, say: "broke off after 100000 of"},
		{name: "the server falls silent in the middle", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Times(2, ocitest.Silent(70_000)))}},
		{name: "the server never answers", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Answer(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))}, want: errAny, say: "the server sends nothing"},
		{name: "another byte in the layer", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Flip())}, want: oci.ErrCorrupt, say: "content digest mismatch"},
		{name: "another byte in a layer that is gone on with", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Flip()), ocitest.On("GET", layer, ocitest.Times(1, ocitest.Cut(1000)))}, want: oci.ErrCorrupt},
		{name: "a layer that says it is longer", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Answer(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(make([]byte, size*2)) }))}, want: oci.ErrCorrupt},
		{name: "a layer that says it is shorter", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Answer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(make([]byte, 1000))
		}))}, want: oci.ErrCorrupt},
		{name: "a layer without end", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Endless("application/octet-stream"))}, want: oci.ErrCorrupt},
		{name: "a range that is not the one asked for", faults: []ocitest.Fault{ocitest.On("GET", layer, ocitest.Times(1, ocitest.Cut(1000))), ocitest.On("GET", layer, ocitest.WithHeader("Content-Range", "bytes 0-5/300000"))}, want: oci.ErrInvalid, say: "asked for bytes from 1000 on"},
		{name: "a manifest without end", faults: []ocitest.Fault{ocitest.On("GET", "/manifests/", ocitest.Endless(oci.MediaTypeManifest))}, want: oci.ErrInvalid, say: "longer than"},
		{name: "another byte in the manifest", faults: []ocitest.Fault{ocitest.On("GET", "/manifests/", ocitest.Flip())}, want: oci.ErrCorrupt, say: "content digest mismatch"},
		{name: "a wrong Docker-Content-Digest", faults: []ocitest.Fault{ocitest.On("GET", "/manifests/", ocitest.WithHeader("Docker-Content-Digest", string(ocitest.One().Target.Digest)))}, want: oci.ErrCorrupt},
		{name: "no Docker-Content-Digest", faults: []ocitest.Fault{ocitest.On("GET", "/manifests/", ocitest.WithHeader("Docker-Content-Digest", ""))}},
		{name: "no useful Content-Type", faults: []ocitest.Fault{ocitest.On("GET", "/manifests/", ocitest.WithHeader("Content-Type", "text/plain"))}},
		{name: "an HTML page in place of a manifest", faults: []ocitest.Fault{ocitest.On("GET", "/manifests/", ocitest.Answer(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "<html>hello") }))}, want: oci.ErrInvalid},
		{name: "an error body without end", faults: []ocitest.Fault{ocitest.Answer(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(403)
			ocitest.Endless("application/json")(nil).ServeHTTP(w, r)
		})}, want: oci.ErrDenied},
		{name: "redirects in a circle", faults: []ocitest.Fault{ocitest.On("GET", "", ocitest.Redirects(307, "{path}"))}, want: oci.ErrInvalid, say: "stopped after 10 redirects"},
		{name: "a redirect to nowhere", faults: []ocitest.Fault{ocitest.On("GET", "", ocitest.Redirects(302, ""))}, want: oci.ErrInvalid, say: "without a Location"},
		{name: "a redirect to a file", faults: []ocitest.Fault{ocitest.On("GET", "", ocitest.Redirects(302, "file:///etc/passwd"))}, want: oci.ErrInvalid},
		{name: "a registry that can't be understood", faults: []ocitest.Fault{ocitest.Fails(418, "", "")}, want: errAny, say: "418 I'm a teapot"},
		{name: "words that would steer the terminal", faults: []ocitest.Fault{ocitest.Fails(403, "DENIED", "go \x1b[2Jaway\r\nnow")}, want: oci.ErrDenied, say: "denied: go [2Jaway now"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := ocitest.NewFlaky(t, c.faults...)
			r := at(t, f.Host())
			im := large(size)
			f.Add(r, im)
			mem, d, err := pull(t, client(remote.Options{}), r)
			if c.want == nil {
				if err != nil || d.Digest != im.Target.Digest {
					t.Fatalf("pull: %v, %v", d, err)
				}
				return
			}
			if err == nil || c.want != errAny && !errors.Is(err, c.want) {
				t.Fatalf("error is %v, want %v", err, c.want)
			}
			if !strings.Contains(err.Error(), c.say) || strings.ContainsAny(err.Error(), "\n\r\x1b") {
				t.Errorf("error is %q, want it to say %q on one line", err, c.say)
			}
			if _, err := mem.Resolve(context.Background(), r); err == nil {
				t.Error("the tag was made all the same")
			}
			if n := len(f.Asked()); n > 60 {
				t.Errorf("%d requests were made", n)
			}
		})
	}
}

var errAny = errors.New("any error")

// TestHostileManifests: what a manifest says is not believed.
func TestHostileManifests(t *testing.T) {
	self := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":"%%s","size":%%d}]}`, oci.MediaTypeIndex, oci.MediaTypeIndex)
	some := ocitest.One().Target
	for _, c := range []struct {
		name, mediaType, body string
		want                  error
		say                   string
	}{
		{"docker schema 1", oci.MediaTypeDockerSigned1, `{"schemaVersion":1,"fsLayers":[]}`, oci.ErrUnsupported, "schema 1"},
		{"docker schema 1 under another type", "application/json", `{"schemaVersion":1,"fsLayers":[]}`, oci.ErrUnsupported, "schema 1"},
		{"an index that names itself as far as that goes", oci.MediaTypeIndex, fmt.Sprintf(self, some.Digest, some.Size), oci.ErrNotFound, ""},
		{"an image that is an index too", oci.MediaTypeIndex, `{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}`, oci.ErrInvalid, ""},
		{"another media type inside than outside", oci.MediaTypeIndex, fmt.Sprintf(`{"mediaType":%q,"layers":[]}`, oci.MediaTypeManifest), oci.ErrInvalid, ""},
		{"a path in place of a digest", oci.MediaTypeManifest, `{"config":{"digest":"sha256:../../../x","size":1},"layers":[]}`, oci.ErrInvalid, ""},
		{"a negative size", oci.MediaTypeManifest, fmt.Sprintf(`{"config":{"digest":%q,"size":-1},"layers":[]}`, some.Digest), oci.ErrInvalid, ""},
		{"a helm chart's neighbour", "application/vnd.cncf.something+json", `{"a":1}`, oci.ErrUnsupported, "no image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := ocitest.NewFlaky(t)
			r := at(t, f.Host())
			f.AddRaw(r, c.mediaType, []byte(c.body))
			_, _, err := pull(t, client(remote.Options{}), r)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.say) {
				t.Errorf("error is %v, want %v with %q", err, c.want, c.say)
			}
		})
	}
}

// TestPullAsksOnce: a pull costs a request for each manifest and blob, none twice.
func TestPullAsksOnce(t *testing.T) {
	f := ocitest.NewFlaky(t)
	r := at(t, f.Host())
	f.Add(r, ocitest.Two())
	if _, _, err := pull(t, client(remote.Options{UserAgent: "strake/1.2.3"}), r); err != nil {
		t.Fatal(err)
	}
	asked := f.Asked()
	if len(asked) != 4 {
		t.Errorf("%d requests, want 4: manifest, config, two layers: %v", len(asked), asked)
	}
	for _, a := range asked {
		if a.UserAgent != "strake/1.2.3" {
			t.Errorf("user agent %q", a.UserAgent)
		}
	}
}

// TestHub: Docker Hub is asked by HEAD first, which it does not count, at its
// own host.
func TestHub(t *testing.T) {
	f := ocitest.NewFlaky(t)
	r := mustRef(t, "busybox:v1")
	f.Add(r, ocitest.Two())
	var mu sync.Mutex
	var hosts []string
	c := client(remote.Options{Transport: transport(func(req *http.Request) (*http.Response, error) {
		mu.Lock()
		hosts = append(hosts, req.URL.Scheme+"://"+req.URL.Host)
		mu.Unlock()
		req = req.Clone(req.Context())
		req.URL.Scheme, req.URL.Host = "http", f.Host()
		return http.DefaultTransport.RoundTrip(req)
	})})
	d, err := c.Repository(r).Resolve(context.Background(), r)
	if err != nil || d.Digest != ocitest.Two().Target.Digest || d.Size != ocitest.Two().Target.Size || d.MediaType != ocitest.Two().Target.MediaType {
		t.Fatalf("%v, %v", d, err)
	}
	if f.Count("HEAD", "/v2/library/busybox/manifests/v1") != 1 || f.Count("GET", "") != 0 {
		t.Errorf("asked %v", f.Asked())
	}
	for _, h := range hosts {
		if h != "https://registry-1.docker.io" {
			t.Errorf("went to %s", h)
		}
	}
	if _, _, err := pull(t, c, r); err != nil {
		t.Error(err)
	}
}

type transport func(*http.Request) (*http.Response, error)

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

// TestOpenAt reads parts, with and without the registry's help.
func TestOpenAt(t *testing.T) {
	im := large(100_000)
	layer := im.Layers()[0]
	for name, faults := range map[string][]ocitest.Fault{
		"ranges":    nil,
		"no ranges": {ocitest.On("GET", "", ocitest.NoRange())},
		"breaks":    {ocitest.On("GET", "/blobs/", ocitest.Cut(9000))},
	} {
		t.Run(name, func(t *testing.T) {
			f := ocitest.NewFlaky(t, faults...)
			r := at(t, f.Host())
			f.Add(r, im)
			repo := client(remote.Options{}).Repository(r)
			for _, span := range [][2]int64{{0, -1}, {0, 10}, {5, 0}, {77, 40_000}, {90_000, -1}, {layer.Size, -1}, {layer.Size - 1, 99}} {
				rc, err := repo.OpenAt(context.Background(), layer.Descriptor, span[0], span[1])
				if err != nil {
					t.Fatalf("%v: %v", span, err)
				}
				got, err := io.ReadAll(rc)
				rc.Close()
				want := layer.Body[span[0]:]
				if span[1] >= 0 {
					want = want[:min(span[1], int64(len(want)))]
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%v: %d bytes, %v; want %d", span, len(got), err, len(want))
				}
			}
			if _, err := repo.OpenAt(context.Background(), layer.Descriptor, layer.Size+1, -1); !errors.Is(err, oci.ErrInvalid) {
				t.Errorf("beyond the end: %v", err)
			}
		})
	}
}

// TestCancelledPull ends at once, and as what it is.
func TestCancelledPull(t *testing.T) {
	f := ocitest.NewFlaky(t, ocitest.On("GET", "/blobs/", ocitest.Silent(1000)))
	r := at(t, f.Host())
	im := large(100_000)
	f.Add(r, im)
	ctx, cancel := context.WithCancel(context.Background())
	rc, err := client(remote.Options{}).Repository(r).Open(ctx, im.Layers()[0].Descriptor)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(rc, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := rc.Read(make([]byte, 10)); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
}
