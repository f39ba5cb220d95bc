package build

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// web is an engine over a store of its own, and a server that it asks.
type web struct {
	testing.TB
	ctx   context.Context
	store *store.Store
	url   string
}

func newWeb(t testing.TB, h http.HandlerFunc) *web {
	t.Helper()
	st, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, release, err := st.Lease(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(func() { srv.Close(); release(); st.Close() })
	return &web{TB: t, ctx: ctx, store: st, url: srv.URL}
}

// get solves an http source in a build of its own.
func (w *web) get(opt Options, url string, attrs map[string]string) (*layer.Entry, string, error) {
	w.Helper()
	opt.Store = w.store
	e := New(opt)
	defer e.Close()
	e.maxDownload = 1 << 20
	op := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: url, Attrs: attrs}}}
	snap, err := e.Solve(w.ctx, Edge{Vertex: &Node{Digest: digestOf(url), Op: op}})
	if err != nil {
		return nil, "", err
	}
	v, err := snap.View(w.ctx)
	if err != nil {
		w.Fatal(err)
	}
	all, err := v.ReadDir(".")
	if err != nil || len(all) != 1 {
		w.Fatalf("%d files, error %v; want one file", len(all), err)
	}
	f, err := v.Open(w.ctx, all[0].Path)
	if err != nil {
		w.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		w.Fatal(err)
	}
	return all[0], string(b), nil
}

func TestHTTPFile(t *testing.T) {
	w := newWeb(t, func(rw http.ResponseWriter, r *http.Request) {
		if n := r.URL.Query().Get("name"); n != "" {
			rw.Header().Set("Content-Disposition", `attachment; filename="`+n+`"`)
		}
		if r.URL.Query().Has("old") {
			rw.Header().Set("Last-Modified", "Thu, 02 Jan 2003 04:05:06 GMT")
		}
		if r.URL.Query().Has("chunked") {
			rw.(http.Flusher).Flush()
		}
		io.WriteString(rw, "hello")
	})
	for _, c := range []struct {
		what, url string
		attrs     map[string]string
		want      string // name mode owner time
	}{
		{"the URL's last component is the name; nobody but the owner may read it; it is from 1970", "/a/b.txt", nil, "b.txt 600 0:0 0"},
		{"a query is no part of the name", "/a/b.txt?x=/y", nil, "b.txt 600 0:0 0"},
		{"a URL without a path has no name to give", "/", nil, "download 600 0:0 0"},
		{"the server may name it", "/x?name=real.tgz", nil, "real.tgz 600 0:0 0"},
		{"but no directory", "/x?name=../../etc/passwd", nil, "passwd 600 0:0 0"},
		{"nor its parent", "/x?name=..", nil, "download 600 0:0 0"},
		{"an escaped path is one name", "/a/%2e%2e%2f%2e%2e%2fb", nil, "b 600 0:0 0"},
		{"a control character is no name", "/a/%0a", nil, "download 600 0:0 0"},
		{"the build has the last word", "/x?name=real.tgz", map[string]string{pb.AttrHTTPFilename: "mine"}, "mine 600 0:0 0"},
		{"Last-Modified is its time", "/f?old", nil, "f 600 0:0 1041480306"},
		{"mode and owner are the build's", "/f", map[string]string{pb.AttrHTTPPerm: "0755", pb.AttrHTTPUID: "1000", pb.AttrHTTPGID: "7"}, "f 755 1000:7 0"},
		{"a body without a length is a body", "/f?chunked", nil, "f 600 0:0 0"},
	} {
		e, body, err := w.get(Options{}, w.url+c.url, c.attrs)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		got := fmt.Sprintf("%s %o %d:%d %d", e.Path, e.Mode, e.UID, e.GID, e.ModTime.Unix())
		if got != c.want || body != "hello" {
			t.Errorf("%s: got %s with %q, want %s", c.what, got, body, c.want)
		}
	}
}

func TestHTTPRefusals(t *testing.T) {
	w := newWeb(t, func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/loop":
			http.Redirect(rw, r, "/loop", http.StatusFound)
		case "/file":
			http.Redirect(rw, r, "file:///etc/passwd", http.StatusFound)
		case "/session":
			http.Redirect(rw, r, "http://buildkit-session/stdin", http.StatusFound)
		case "/endless":
			b := make([]byte, 64<<10)
			for {
				if _, err := rw.Write(b); err != nil {
					return
				}
			}
		case "/huge":
			rw.Header().Set("Content-Length", strconv.Itoa(2<<20))
		case "/short":
			rw.Header().Set("Content-Length", "100")
			io.WriteString(rw, "short")
		case "/ok":
			io.WriteString(rw, "hello")
		default:
			http.NotFound(rw, r)
		}
	})
	wrong := digest.FromString("something else")
	for _, c := range []struct {
		what, url string
		attrs     map[string]string
		want      string
	}{
		{"what is not there", "/none", nil, "failed to load cache key: invalid response status 404"},
		{"a redirect to itself", "/loop", nil, "stopped after 10 redirects"},
		{"a redirect to the disk", "/file", nil, `scheme "file"`},
		{"a redirect to the client's streams", "/session", nil, "buildkit-session"},
		{"a body without end", "/endless", nil, "more than 1048576 bytes"},
		{"a length above the bound", "/huge", nil, "more than 1048576 bytes"},
		{"a body that breaks off", "/short", nil, "unexpected EOF"},
		{"another content than pinned", "/ok", map[string]string{pb.AttrHTTPChecksum: string(wrong)}, "digest mismatch " + string(digest.FromString("hello")) + ": " + string(wrong)},
		{"a checksum that is none", "/ok", map[string]string{pb.AttrHTTPChecksum: "sha256:zz"}, "invalid checksum digest"},
		{"an owner that is none", "/ok", map[string]string{pb.AttrHTTPUID: "-1"}, "is no number"},
	} {
		_, _, err := w.get(Options{Uploads: map[string]io.Reader{"stdin": strings.NewReader("secret")}}, w.url+c.url, c.attrs)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line with %q", c.what, err, c.want)
		}
	}
	if _, _, err := w.get(Options{}, "http://user:hunter2@127.0.0.1:1/x", nil); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %v, want one without the password", err)
	}
}

func TestHTTPIsAskedForOnce(t *testing.T) {
	var sent, asked atomic.Int64
	body, etag := "one", `"1"`
	modified := "" // Last-Modified
	w := newWeb(t, func(rw http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if etag != "" {
			rw.Header().Set("ETag", etag)
		}
		if modified != "" {
			rw.Header().Set("Last-Modified", modified)
		}
		if r.URL.Path != "/stubborn" && (etag != "" && r.Header.Get("If-None-Match") == etag || modified != "" && r.Header.Get("If-Modified-Since") == modified) {
			rw.WriteHeader(http.StatusNotModified)
			return
		}
		sent.Add(1)
		io.WriteString(rw, body)
	})
	want := func(what, path, content string, n, m int64) {
		t.Helper()
		sent.Store(0)
		asked.Store(0)
		_, got, err := w.get(Options{}, w.url+path, nil)
		if err != nil || got != content || sent.Load() != n || asked.Load() != m {
			t.Errorf("%s: %q, %v, sent %d times of %d; want %q sent %d times of %d", what, got, err, sent.Load(), asked.Load(), content, n, m)
		}
	}
	want("the first time", "/f", "one", 1, 1)
	want("unchanged", "/f", "one", 0, 1)
	body, etag = "two", `"2"`
	want("changed", "/f", "two", 1, 1)
	want("a server that ignores the question", "/stubborn", "two", 1, 1)
	body = "not read: it has the ETag of what is here"
	want("is believed when it repeats the ETag", "/stubborn", "two", 1, 1)

	etag, body, modified = "", "three", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)
	want("the first time, by time", "/t", "three", 1, 1)
	want("an old file is known by its time", "/t", "three", 0, 1)
	body, modified = "four", time.Now().UTC().Format(http.TimeFormat)
	want("a new one", "/t", "four", 1, 1)
	body = "five" // within the same second
	want("is not", "/t", "five", 1, 1)

	pin := map[string]string{pb.AttrHTTPChecksum: string(digest.FromString("five"))}
	asked.Store(0)
	if _, got, err := w.get(Options{}, w.url+"/t", pin); err != nil || got != "five" || asked.Load() != 0 {
		t.Errorf("pinned and here: %q, %v, asked %d times; want no question", got, err, asked.Load())
	}
	sum := sha512.Sum512([]byte("five"))
	pin[pb.AttrHTTPChecksum] = "sha512:" + hex.EncodeToString(sum[:])
	if _, got, err := w.get(Options{}, w.url+"/t", pin); err != nil || got != "five" {
		t.Errorf("pinned by another algorithm: %q, %v", got, err)
	}
}

func TestHTTPCredentialsStayWithTheirHost(t *testing.T) {
	var seen []string
	other := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		seen = append(seen, "other: "+r.Header.Get("Authorization")+r.Header.Get("Referer"))
		io.WriteString(rw, "x")
	}))
	defer other.Close()
	w := newWeb(t, func(rw http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("Authorization"))
		switch r.URL.Path {
		case "/away":
			http.Redirect(rw, r, other.URL, http.StatusFound)
		case "/here":
			http.Redirect(rw, r, "/end", http.StatusFound)
		default:
			io.WriteString(rw, "x")
		}
	})
	opt := Options{Secret: func(_ context.Context, id string) ([]byte, error) {
		if id == "HTTP_AUTH_TOKEN_127.0.0.1" {
			return []byte("t0ken\n"), nil
		}
		return nil, oci.ErrNotFound
	}}
	for _, c := range []struct{ what, path, want string }{
		{"on the same host it stays", "/here", "[Bearer t0ken Bearer t0ken]"},
		{"to another it is not sent, even on the same machine", "/away", "[Bearer t0ken other: ]"},
	} {
		seen = nil
		if _, _, err := w.get(opt, w.url+c.path, nil); err != nil || fmt.Sprint(seen) != c.want {
			t.Errorf("%s: %v, %v; want %s", c.what, seen, err, c.want)
		}
	}
	_, _, err := w.get(opt, w.url+"/here", map[string]string{pb.AttrHTTPAuthHeaderSecret: "none"})
	if !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a secret that is asked for by name must be there; got %v", err)
	}
}
