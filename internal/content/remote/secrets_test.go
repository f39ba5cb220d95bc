package remote_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/ocitest"
)

// somebody has these credentials, for any host; asked counts the look-ups.
func somebody(c auth.Credentials, asked *[]string) auth.Lookup {
	var mu sync.Mutex
	return func(_ context.Context, host string) (auth.Credentials, error) {
		mu.Lock()
		defer mu.Unlock()
		if asked != nil {
			*asked = append(*asked, host)
		}
		return c, nil
	}
}

// logged is a client whose log, at its most talkative, is checked for secrets.
func logged(t *testing.T, c auth.Credentials, asked *[]string) *remote.Client {
	var log bytes.Buffer
	t.Cleanup(func() { noSecret(t, log.String()) })
	return client(remote.Options{
		Credentials: somebody(c, asked),
		Log:         slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
}

var user = auth.Credentials{Username: "user", Password: "hunter2"}

func noSecret(t *testing.T, s string) {
	t.Helper()
	for _, secret := range []string{"hunter2", "dXNlcjpodW50ZXIy", "token-1", "refresh-me", "secret"} {
		if strings.Contains(s, secret) {
			t.Errorf("a secret is in %q", s)
		}
	}
}

// TestBasic: credentials are asked for once, by the first challenge.
func TestBasic(t *testing.T) {
	f := ocitest.NewFlaky(t, ocitest.BasicAuth("user", "hunter2"))
	r := at(t, f.Host())
	var asked []string
	c := logged(t, user, &asked)
	if err := push(t, c, r, ocitest.Two()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pull(t, c, r); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 1 || asked[0] != f.Host() {
		t.Errorf("credentials were asked for %v", asked)
	}
	if f.Asked()[0].Authorization != "" {
		t.Error("credentials were sent before the registry asked for them")
	}
	_, _, err := pull(t, client(remote.Options{Credentials: somebody(auth.Credentials{Username: "user", Password: "wrong"}, nil)}), r)
	if !errors.Is(err, oci.ErrUnauthorized) || !strings.Contains(err.Error(), "401 Unauthorized") {
		t.Errorf("wrong password: %v", err)
	}
	noSecret(t, err.Error())
}

// TestNoCredentialsUnasked: a public registry never makes us look.
func TestNoCredentialsUnasked(t *testing.T) {
	f := ocitest.NewFlaky(t)
	r := at(t, f.Host())
	f.Add(r, ocitest.One())
	var asked []string
	if _, _, err := pull(t, logged(t, user, &asked), r); err != nil || len(asked) != 0 {
		t.Errorf("%v, asked for %v", err, asked)
	}
}

// TestBearer goes through a token server on another port.
func TestBearer(t *testing.T) {
	for _, c := range []struct {
		name  string
		creds auth.Credentials
		set   func(*ocitest.Tokens)
		want  error
		say   string
	}{
		{name: "anonymous", creds: auth.Credentials{}},
		{name: "user and password", creds: user, set: func(s *ocitest.Tokens) { s.User, s.Password = "user", "hunter2" }},
		{name: "an identity token", creds: auth.Credentials{IdentityToken: "refresh-me"}, set: func(s *ocitest.Tokens) { s.Refresh = "refresh-me" }},
		{name: "wrong password", creds: user, set: func(s *ocitest.Tokens) { s.User, s.Password = "user", "other" }, want: oci.ErrUnauthorized,
			say: "failed to fetch oauth token: unexpected status from GET request to http://127.0.0.1:"},
		{name: "nobody is let in", set: func(s *ocitest.Tokens) { s.Refuse = 403 }, want: oci.ErrDenied, say: "failed to fetch anonymous token"},
		{name: "too many", set: func(s *ocitest.Tokens) { s.Refuse = 429 }, want: oci.ErrTooMany},
		{name: "down", set: func(s *ocitest.Tokens) { s.Refuse = 502 }, want: errAny, say: "502 Bad Gateway"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := ocitest.NewTokens(t)
			if c.set != nil {
				c.set(s)
			}
			f := ocitest.NewFlaky(t, s.Bearer())
			r := at(t, f.Host())
			cl := logged(t, c.creds, nil)
			err := push(t, cl, r, ocitest.Two())
			if c.want != nil {
				if err == nil || c.want != errAny && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.say) {
					t.Fatalf("error is %v, want %v with %q", err, c.want, c.say)
				}
				noSecret(t, err.Error())
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := len(s.Asked()); n != 1 {
				t.Errorf("a push fetched %d tokens, want 1: %v", n, s.Asked())
			}
			if _, _, err := pull(t, cl, r); err != nil {
				t.Fatal(err)
			}
			if n := len(s.Asked()); n != 2 {
				t.Errorf("push and pull fetched %d tokens, want 2: %v", n, s.Asked())
			}
			for _, a := range f.Asked() {
				if strings.HasPrefix(a.Authorization, "Basic") {
					t.Error("the password went to the registry, which wants a token")
				}
			}
			s.Revoke() // a token that ended early is replaced
			if _, _, err := pull(t, cl, r); err != nil {
				t.Errorf("after the tokens ended: %v", err)
			}
			if n := len(s.Asked()); n != 3 {
				t.Errorf("%d tokens, want 3", n)
			}
		})
	}
}

// TestInsufficientScope: a token that is not enough ends the matter.
func TestInsufficientScope(t *testing.T) {
	f := ocitest.NewFlaky(t, ocitest.Answer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			_, _ = io.WriteString(w, `{"access_token":"token-1"}`)
			return
		}
		e := ""
		if r.Header.Get("Authorization") != "" {
			e = `,error="insufficient_scope"`
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`+e)
		ocitest.WriteError(w, 401, "UNAUTHORIZED", "authentication required")
	}))
	r := at(t, f.Host())
	_, err := logged(t, auth.Credentials{}, nil).Repository(r).Resolve(context.Background(), r)
	want := `failed to resolve reference "` + r.String() + `": pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed`
	if !errors.Is(err, oci.ErrUnauthorized) || err.Error() != want {
		t.Errorf("error is  %v\nwant %s", err, want)
	}
}

// TestRedirectElsewhere: another host gets the request, and no credentials; nor
// does the registry, where the other host sends us back.
func TestRedirectElsewhere(t *testing.T) {
	im := ocitest.Two()
	for _, status := range []int{301, 302, 303, 307, 308} {
		f := ocitest.NewFlaky(t, ocitest.BasicAuth("user", "hunter2"))
		r := at(t, f.Host())
		f.Add(r, im)
		other := ocitest.NewElsewhere(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d := oci.Digest(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
			_, _ = w.Write(im.Body(d))
		}))
		f.Fault(ocitest.On("GET", "/blobs/", ocitest.Redirects(status, other.URL+"{path}?X-Signature=secret")))
		if _, _, err := pull(t, logged(t, user, nil), r); err != nil {
			t.Fatal(err)
		}
		if len(other.Asked()) != 3 {
			t.Errorf("%d: %d requests elsewhere, want 3", status, len(other.Asked()))
		}
		for _, a := range other.Asked() {
			if a.Authorization != "" {
				t.Errorf("%d: credentials were sent elsewhere", status)
			}
		}
	}
	f := ocitest.NewFlaky(t, ocitest.BasicAuth("user", "hunter2"))
	r := at(t, f.Host())
	back := ocitest.NewElsewhere(t, http.RedirectHandler(f.URL+"/v2/some/image/tags/list", http.StatusFound))
	f.Fault(ocitest.On("GET", "/manifests/", ocitest.Redirects(302, back.URL+"/")))
	_, err := logged(t, user, nil).Repository(r).Resolve(context.Background(), r)
	if err == nil {
		t.Error("resolved")
	}
	last := f.Asked()[len(f.Asked())-1]
	if !strings.HasSuffix(last.Path, "/tags/list") || last.Authorization != "" {
		t.Errorf("last request, after the way back: %+v", last)
	}
}

// TestUploadElsewhere: an upload's Location on another host gets the bytes, and
// no credentials.
func TestUploadElsewhere(t *testing.T) {
	f := ocitest.NewFlaky(t, ocitest.BasicAuth("user", "hunter2"))
	r := at(t, f.Host())
	layer := ocitest.Two().Layers()[0]
	var got []byte
	other := ocitest.NewElsewhere(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, _ = io.ReadAll(r.Body)
		w.WriteHeader(http.StatusCreated)
	}))
	f.Fault(ocitest.On("POST", "", ocitest.WithHeader("Location", other.URL+"/up?X-Signature=secret")))
	if err := logged(t, user, nil).Repository(r).Put(context.Background(), layer.Descriptor, bytes.NewReader(layer.Body)); err != nil {
		t.Fatal(err)
	}
	if len(other.Asked()) != 1 || other.Asked()[0].Authorization != "" || !bytes.Equal(got, layer.Body) {
		t.Errorf("elsewhere: %+v, %d bytes", other.Asked(), len(got))
	}
	if q := other.Asked()[0].Query; !strings.HasPrefix(q, "X-Signature=secret&digest=sha256") {
		t.Errorf("query %q", q)
	}
}

// TestHTTPSStaysHTTPS: a registry spoken to over https may not lead to plain
// http: neither by redirect nor to a token server.
func TestHTTPSStaysHTTPS(t *testing.T) {
	other := ocitest.NewElsewhere(t, http.NotFoundHandler())
	f := ocitest.NewFlakyTLS(t)
	// registry.test is no loopback name; the dialler finds it anyway.
	c := client(remote.Options{Credentials: somebody(user, nil), Transport: transport(func(req *http.Request) (*http.Response, error) {
		if req.URL.Scheme == "http" {
			t.Errorf("plain http to %s", req.URL.Host)
		}
		req = req.Clone(req.Context())
		if req.URL.Host == "registry.test" {
			req.URL.Host = f.Host()
		}
		return f.Client().Transport.RoundTrip(req)
	})})
	r := mustRef(t, "registry.test/some/image:v1")
	f.Add(r, ocitest.One())
	if _, _, err := pull(t, c, r); err != nil {
		t.Fatal(err)
	}
	f.Fault(ocitest.On("GET", "/blobs/", ocitest.Redirects(302, other.URL+"/x?secret=1")))
	_, _, err := pull(t, c, r)
	if !errors.Is(err, oci.ErrInvalid) || !strings.Contains(err.Error(), "not https") {
		t.Errorf("redirect: %v", err)
	}
	noSecret(t, err.Error())
	f.Fault(ocitest.Answer(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+other.URL+`/token",service="x"`)
		w.WriteHeader(401)
	}))
	if err := c.Ping(context.Background(), "registry.test"); !errors.Is(err, oci.ErrUnauthorized) || !strings.Contains(err.Error(), "not https") {
		t.Errorf("token server: %v", err)
	}
	if len(other.Asked()) != 0 {
		t.Errorf("asked elsewhere: %v", other.Asked())
	}
}

// TestPlainHTTP: who may be spoken to without TLS.
func TestPlainHTTP(t *testing.T) {
	f := ocitest.NewFlaky(t)
	_, port, _ := strings.Cut(f.Host(), ":")
	for _, c := range []struct {
		host     string
		insecure []string
		plain    bool
	}{
		{"127.0.0.1:" + port, nil, true},
		{"127.9.9.9:" + port, nil, true},
		{"localhost:" + port, nil, true},
		{"[::1]:" + port, nil, true},
		{"registry.test:" + port, nil, false},
		{"localhost.evil.test:" + port, nil, false},
		{"127.0.0.1.evil.test:" + port, nil, false},
		{"registry.test:" + port, []string{"registry.test"}, true},
		{"registry.test:" + port, []string{"registry.test:" + port}, true},
		{"registry.test:" + port, []string{"registry.test:1"}, false},
		{"10.1.2.3:" + port, []string{"10.0.0.0/8"}, true},
		{"11.1.2.3:" + port, []string{"10.0.0.0/8"}, false},
	} {
		c2 := client(remote.Options{Insecure: c.insecure, Transport: transport(func(req *http.Request) (*http.Response, error) {
			if req.URL.Scheme == "https" {
				return nil, http.ErrSchemeMismatch
			}
			req = req.Clone(req.Context())
			req.URL.Host = f.Host()
			return http.DefaultTransport.RoundTrip(req)
		})})
		if err := c2.Ping(context.Background(), c.host); (err == nil) != c.plain {
			t.Errorf("%s with insecure %v: %v", c.host, c.insecure, err)
		}
	}
}

// TestCerts: certs.d is honoured, by roots and client certificates.
func TestCerts(t *testing.T) {
	f := ocitest.NewFlakyTLS(t)
	dir := t.TempDir()
	ping := func() error {
		return remote.New(remote.Options{Credentials: nobody, CertDirs: []string{dir}, Timing: hasty}).Ping(context.Background(), f.Host())
	}
	if err := ping(); err != nil {
		t.Errorf("a loopback registry with its own certificate: %v", err)
	}
	own := filepath.Join(dir, f.Host())
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(own, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.crt", "CERTIFICATE", f.Certificate().Raw)
	if err := ping(); err != nil {
		t.Errorf("with its certificate as root: %v", err)
	}
	var shown atomic.Int64
	f.Fault(ocitest.Answer(func(w http.ResponseWriter, r *http.Request) { shown.Store(int64(len(r.TLS.PeerCertificates))) }))
	key, err := x509.MarshalPKCS8PrivateKey(f.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write("client.cert", "CERTIFICATE", f.Certificate().Raw)
	write("client.key", "PRIVATE KEY", key)
	if err := ping(); err != nil || shown.Load() != 1 {
		t.Errorf("with a client certificate: %v, %d shown", err, shown.Load())
	}
	if err := os.WriteFile(filepath.Join(own, "client.cert"), []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ping(); !errors.Is(err, oci.ErrInvalid) || !strings.Contains(err.Error(), "client.cert") {
		t.Errorf("with a broken client certificate: %v", err)
	}
}
