package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

func push(t testing.TB, c *remote.Client, r ref.Ref, im *ocitest.Image) error {
	t.Helper()
	_, err := content.Copy(context.Background(), c.Repository(r), r, ocitest.Fill(r, im), r, content.CopyOptions{})
	return err
}

// TestPushToFlaky pushes to registries that misbehave.
func TestPushToFlaky(t *testing.T) {
	const size = 3 << 20
	im := large(size)
	layer := im.Layers()[0]
	const uploads = "/blobs/uploads/"
	for _, c := range []struct {
		name   string
		faults []ocitest.Fault
		set    func(*ocitest.Flaky)
		want   error
		say    string
		check  func(t *testing.T, f *ocitest.Flaky)
	}{
		{name: "a registry that behaves", check: func(t *testing.T, f *ocitest.Flaky) {
			if n := f.Count("PATCH", ""); n != 0 {
				t.Errorf("%d PATCH where one PUT is enough", n)
			}
			if n := f.Count("HEAD", "/blobs/"); n != 2 {
				t.Errorf("%d HEADs for two blobs", n)
			}
		}},
		{name: "the upload breaks twice, and goes on", faults: []ocitest.Fault{
			ocitest.Longer(1<<20, ocitest.On("PUT", uploads, ocitest.Times(1, ocitest.CutRequest(1<<20)))), ocitest.Longer(1<<20, ocitest.On("PATCH", uploads, ocitest.Times(1, ocitest.CutRequest(1<<20)))),
		}, check: func(t *testing.T, f *ocitest.Flaky) {
			if n := f.Count("PATCH", ""); n != 2 {
				t.Errorf("%d PATCH: it started again", n)
			}
			if n := f.Count("POST", ""); n != 2 {
				t.Errorf("%d POST for two blobs", n)
			}
		}},
		{name: "it breaks before the registry takes a byte, for ever", faults: []ocitest.Fault{
			ocitest.On("PUT", uploads, ocitest.CutRequest(0)), ocitest.On("PATCH", uploads, ocitest.CutRequest(0)),
		}, want: errAny},
		{name: "the registry forgets a broken upload", faults: []ocitest.Fault{
			ocitest.Longer(1<<20, ocitest.On("PUT", uploads, ocitest.Times(1, ocitest.CutRequest(1<<20)))), ocitest.On("GET", uploads, ocitest.Fails(404, "BLOB_UPLOAD_UNKNOWN", "gone")),
		}},
		{name: "503 at the first PUT", faults: []ocitest.Fault{ocitest.On("PUT", uploads, ocitest.Times(1, ocitest.Fails(503, "", "")))}},
		{name: "429 at each step once", faults: []ocitest.Fault{
			ocitest.On("POST", "", ocitest.Times(1, ocitest.Fails(429, "", ""))), ocitest.On("PUT", uploads, ocitest.Times(1, ocitest.Fails(429, "", ""))), ocitest.On("PUT", "/manifests/", ocitest.Times(1, ocitest.Fails(429, "", ""))),
		}},
		{name: "a proxy that takes 1 MB at most", set: func(f *ocitest.Flaky) { f.BodyMax = 1 << 20 }, check: func(t *testing.T, f *ocitest.Flaky) {
			if n := f.Count("PATCH", ""); n < 3 {
				t.Errorf("%d PATCH", n)
			}
		}},
		{name: "chunks of at least 2 MB", set: func(f *ocitest.Flaky) { f.ChunkMin, f.BodyMax = 2<<20, 5<<19 }},
		{name: "a proxy that takes nothing", set: func(f *ocitest.Flaky) { f.BodyMax = 100 }, want: oci.ErrInvalid, say: "413"},
		{name: "push denied", faults: []ocitest.Fault{ocitest.On("POST", "", ocitest.Fails(403, "DENIED", "requested access to the resource is denied"))}, want: oci.ErrDenied, say: "denied: requested access to the resource is denied"},
		{name: "no space", faults: []ocitest.Fault{ocitest.On("PUT", uploads, ocitest.Fails(507, "", ""))}, want: oci.ErrNoSpace},
		{name: "the registry stores something else", faults: []ocitest.Fault{ocitest.On("PUT", uploads, ocitest.WithHeader("Docker-Content-Digest", string(im.Target.Digest)))}, want: oci.ErrCorrupt},
		{name: "no Location", faults: []ocitest.Fault{ocitest.On("POST", uploads, ocitest.WithHeader("Location", ""))}, want: oci.ErrInvalid, say: "Location"},
		{name: "manifests are refused", faults: []ocitest.Fault{ocitest.On("PUT", "/manifests/", ocitest.Fails(400, "MANIFEST_INVALID", "manifest invalid"))}, want: oci.ErrInvalid, say: "manifest invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := ocitest.NewFlaky(t, c.faults...)
			if c.set != nil {
				c.set(f)
			}
			r := at(t, f.Host())
			err := push(t, client(remote.Options{}), r, im)
			if c.want != nil {
				if err == nil || c.want != errAny && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.say) {
					t.Errorf("error is %v, want %v with %q", err, c.want, c.say)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(f.Blob(r.Path, layer.Digest), layer.Body) {
				t.Error("the layer differs")
			}
			if n := f.Uploads(); n > 1 { // one may be forgotten by the fault's own doing
				t.Errorf("%d uploads were left open", n)
			}
			if _, _, err := pull(t, client(remote.Options{}), r); err != nil {
				t.Error(err)
			}
			if c.check != nil {
				c.check(t, f)
			}
		})
	}
}

// TestBrokenUploadOfAStream: what can't be read again can't go on, and says so
// by the break's own cause.
func TestBrokenUploadOfAStream(t *testing.T) {
	f := ocitest.NewFlaky(t, ocitest.On("PUT", "/blobs/uploads/", ocitest.CutRequest(1000)))
	r := at(t, f.Host())
	layer := large(1 << 20).Layers()[0]
	err := client(remote.Options{}).Repository(r).Put(context.Background(), layer.Descriptor, io.MultiReader(bytes.NewReader(layer.Body)))
	if err == nil || f.Blob(r.Path, layer.Digest) != nil {
		t.Errorf("error is %v", err)
	}
}

// TestMount: a neighbour's blob moves without a byte; a registry that declines
// has its offered upload used.
func TestMount(t *testing.T) {
	for _, decline := range []bool{false, true} {
		f := ocitest.NewFlaky(t)
		f.NoMount = decline
		from, to := mustRef(t, f.Host()+"/a/base:1"), mustRef(t, f.Host()+"/b/derived:1")
		im := ocitest.Two()
		f.Add(from, im)
		mounted := 0
		c := client(remote.Options{})
		_, err := content.Copy(context.Background(), c.Repository(to), to, c.Repository(from), from, content.CopyOptions{Progress: func(e content.Event) {
			if e.Kind == content.Mounted {
				mounted++
			}
		}, Parallel: 1})
		if err != nil {
			t.Fatal(err)
		}
		want, puts := 3, 0
		if decline {
			want, puts = 0, 3
		}
		if mounted != want || f.Count("PUT", "/blobs/uploads/") != puts || f.Count("POST", "") != 3 || f.Uploads() != 0 {
			t.Errorf("decline %v: %d mounted, %d PUT, %d POST, %d uploads open", decline, mounted, f.Count("PUT", "/blobs/uploads/"), f.Count("POST", ""), f.Uploads())
		}
		if _, _, err := pull(t, c, to); err != nil {
			t.Error(err)
		}
	}
}

// TestTagPages: lists that lead nowhere end.
func TestTagPages(t *testing.T) {
	for _, c := range []struct {
		name, link string
		want       error
	}{
		{"the next page is this one", `</v2/some/image/tags/list?n=1000>; rel="next"`, oci.ErrInvalid},
		{"the next page is elsewhere: only its path counts", `<http://192.0.2.1/v2/some/image/tags/list?x=1>; rel=next`, oci.ErrInvalid},
		{"two slashes are no host", `<////evil.example/v2/>; rel="next"`, errAny},
		{"a link that is not to the next page", `</v2/x>; rel="prev"`, nil},
		{"rubbish", `<<<;;;>,,"`, nil},
	} {
		f := ocitest.NewFlaky(t, ocitest.On("GET", "/tags/", ocitest.WithHeader("Link", c.link)))
		r := at(t, f.Host())
		f.Add(r, ocitest.One())
		tags, err := client(remote.Options{}).Repository(r).Tags(context.Background(), r)
		switch {
		case c.want == nil && (err != nil || len(tags) != 1):
			t.Errorf("%s: %v, %v", c.name, tags, err)
		case c.want != nil && (err == nil || c.want != errAny && !errors.Is(err, c.want)):
			t.Errorf("%s: error is %v", c.name, err)
		}
	}
	f := ocitest.NewFlaky(t, ocitest.On("GET", "/tags/", ocitest.Endless("application/json")))
	r := at(t, f.Host())
	if _, err := client(remote.Options{}).Repository(r).Tags(context.Background(), r); !errors.Is(err, oci.ErrInvalid) {
		t.Errorf("a list without end: %v", err)
	}
	f = ocitest.NewFlaky(t, ocitest.On("GET", "/tags/", ocitest.Answer(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"tags":["b","a","b","../x","\u001b[2J"]}`)
	})))
	r = at(t, f.Host())
	if tags, err := client(remote.Options{}).Repository(r).Tags(context.Background(), r); err != nil || strings.Join(tags, " ") != "a b" {
		t.Errorf("tags that are none: %q, %v", tags, err)
	}
}

// TestOtherRepository: a Repository is not used for another one by mistake.
func TestOtherRepository(t *testing.T) {
	repo := client(remote.Options{}).Repository(mustRef(t, "example.com/a/b:1"))
	other := mustRef(t, "example.com/a/c:1")
	if _, err := repo.Resolve(context.Background(), other); !errors.Is(err, oci.ErrInvalid) {
		t.Error(err)
	}
	if err := repo.Tag(context.Background(), other, ocitest.One().Target); !errors.Is(err, oci.ErrInvalid) {
		t.Error(err)
	}
	if _, err := repo.Tags(context.Background(), other); !errors.Is(err, oci.ErrInvalid) {
		t.Error(err)
	}
}
