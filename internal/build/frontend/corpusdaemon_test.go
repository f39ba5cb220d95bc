package frontend_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/build/remote"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

var (
	buildkitAddr   = flag.String("buildkit", "", "build each case on this BuildKit daemon too, and hold strake's image against its")
	updateBuildKit = flag.Bool("update-buildkit", false, "record anew, from the daemon of -buildkit, the goldens that a case says are BuildKit's")
)

// corpusMore is what only the cases recorded from BuildKit need.
type corpusMore struct {
	by     string   // who made the golden, where it is not docker 20.10
	mtimes []string // paths whose times are part of the golden
	web    string   // a directory of the context that is served
	addr   string   // where it is
}

func (m *corpusMore) more(key, value string) bool {
	switch key {
	case "by":
		m.by = value
	case "mtimes":
		m.mtimes = append(m.mtimes, strings.Fields(value)...)
	case "web":
		m.web = value
	default:
		return false
	}
	return true
}

// listMore are the lines of the golden about times.
func (m *corpusMore) listMore(fs map[string]*file) string {
	var b strings.Builder
	for _, p := range m.mtimes {
		if f := fs[p]; f != nil {
			fmt.Fprintf(&b, "mtime %q %s\n", p, f.mtime.UTC().Format(time.RFC3339Nano))
		}
	}
	return b.String()
}

// serve serves the case's web directory as the build argument WEB. A query sets
// what a server may say: last-modified (seconds), etag, name, status.
func (c *corpusCase) serve(t *testing.T, dir string) {
	if c.web == "" {
		return
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		body, err := os.ReadFile(filepath.Join(dir, c.web, filepath.Base(r.URL.Path)))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		if s := q.Get("last-modified"); s != "" {
			n, _ := strconv.ParseInt(s, 10, 64)
			w.Header().Set("Last-Modified", time.Unix(n, 0).UTC().Format(http.TimeFormat))
		}
		if s := q.Get("etag"); s != "" {
			w.Header().Set("ETag", strconv.Quote(s))
		}
		if s := q.Get("name"); s != "" {
			w.Header().Set("Content-Disposition", "attachment; filename="+s)
		}
		if to := q.Get("to"); to != "" {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		if n, _ := strconv.Atoi(q.Get("status")); n != 0 {
			w.WriteHeader(n)
		}
		w.Write(body)
	}))
	t.Cleanup(srv.Close)
	c.addr = srv.URL
	c.args = append(c.args, "build-arg:WEB="+srv.URL)
}

// plain is a golden without the address that only this run has.
func (m *corpusMore) plain(golden string) string {
	if m.addr == "" {
		return golden
	}
	return strings.ReplaceAll(golden, m.addr, "http://web")
}

// buildKit builds cases on a daemon, through the same door as build --builder.
type buildKit struct {
	conn *remote.Conn
	lab  *lab
	base memory
	at   oci.Descriptor
}

func newBuildKit(t *testing.T, l *lab) *buildKit {
	if *buildkitAddr == "" {
		return nil
	}
	ctx := context.Background()
	b, err := remote.NewBuilder(*buildkitAddr, remote.TLS{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := b.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	k := &buildKit{conn: conn, lab: l, base: memory{}}
	r, _ := ref.ParseTag("base")
	if k.at, err = l.store.Resolve(ctx, r); err != nil {
		t.Fatal(err)
	}
	body, err := content.ReadAll(ctx, l.store, k.at)
	if err != nil {
		t.Fatal(err)
	}
	children, err := oci.Children(k.at.MediaType, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range append(children, k.at) {
		in, err := l.store.Open(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		if k.base[d.Digest], err = io.ReadAll(in); err != nil {
			t.Fatal(err)
		}
		in.Close()
	}
	return k
}

// memory is an image for the daemon to read.
type memory map[oci.Digest][]byte

func (m memory) Resolve(context.Context, ref.Ref) (oci.Descriptor, error) {
	return oci.Descriptor{}, oci.ErrNotFound
}

func (m memory) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	return m.OpenAt(ctx, d, 0, -1)
}

func (m memory) OpenAt(_ context.Context, d oci.Descriptor, _, _ int64) (io.ReadCloser, error) {
	b, ok := m[d.Digest]
	if !ok {
		return nil, oci.ErrNotFound
	}
	return struct {
		*bytes.Reader
		io.Closer
	}{bytes.NewReader(b), io.NopCloser(nil)}, nil
}

// hold builds the case and reports where strake differs, or records it.
func (k *buildKit) hold(t *testing.T, c *corpusCase, dir string, lower map[string]*file, got string) {
	want := merge(c.plain(k.build(t, c, dir, lower)), got, c.ours)
	if *updateBuildKit && c.by != "" {
		c.record(t, want)
	}
	if want != got {
		t.Errorf("image differs from BuildKit's (- BuildKit, + strake):\n%s", lineDiff(want, got))
	}
}

func (k *buildKit) build(t *testing.T, c *corpusCase, dir string, lower map[string]*file) string {
	ctx, release, err := k.lab.store.Lease(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	o := remote.Options{
		Store: k.lab.store,
		Load:  true,
		Frontend: map[string]string{
			"no-cache": "", "filename": "Dockerfile", "context:base": "oci-layout://base@" + string(k.at.Digest),
		},
		Locals:  map[string]string{"context": dir, "dockerfile": dir},
		Layouts: map[string]content.Source{"base": k.base},
		Secret: func(_ context.Context, id string) ([]byte, error) {
			if s, ok := c.secrets[id]; ok {
				return s, nil
			}
			return nil, oci.ErrNotFound
		},
	}
	maps.Copy(o.Frontend, c.options())
	for _, nc := range c.contexts {
		name, sub, _ := strings.Cut(nc, "=")
		o.Locals[name] = filepath.Join(dir, sub)
		o.Frontend["context:"+name] = "local:" + name
	}
	res, err := k.conn.Build(ctx, o)
	if err != nil {
		t.Logf("BuildKit: %v", err)
		return failedGolden
	}
	out := &build.Assembly{Exported: res.Exported}
	return golden(t, c, k.lab.config(out), k.lab.layers(out), lower)
}

// options are the case's frontend options.
func (c *corpusCase) options() map[string]string {
	o := map[string]string{}
	for _, kv := range c.args {
		k, v, _ := strings.Cut(kv, "=")
		o[k] = v
	}
	return o
}

func unbase64(t testing.TB, text []byte) []byte {
	b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return plainTar(t, b)
}

func with(m map[string]string, k, v string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}

// parseTime reads seconds since 1970, with a fraction and a sign.
func parseTime(t testing.TB, s string) time.Time {
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		t.Fatalf("spec: time %q", s)
	}
	ns := new(big.Int).Div(new(big.Int).Mul(r.Num(), big.NewInt(1e9)), r.Denom()).Int64()
	return time.Unix(0, ns)
}
