package remote_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/ocitest"
)

// TestWords: what docker prints after "Error response from daemon: ".
func TestWords(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nowhere := l.Addr().String()
	l.Close()
	empty := ocitest.NewFlaky(t)
	closed := ocitest.NewFlaky(t, ocitest.BasicAuth("user", "hunter2"))
	limited := ocitest.NewFlaky(t, ocitest.Fails(403, "DENIED", "requested access to the resource is denied"))
	for _, c := range []struct {
		name, image, want string
		kind              error
	}{
		{"no such repository", empty.Host() + "/nosuch/image:latest",
			`failed to resolve reference "REF": REF: not found`, oci.ErrNotFound},
		{"no such digest", empty.Host() + "/x@" + string(ocitest.One().Target.Digest),
			`failed to resolve reference "REF": REF: not found`, oci.ErrNotFound},
		{"nobody listens", nowhere + "/x:latest",
			`failed to resolve reference "REF": failed to do request: Head "https://HOST/v2/x/manifests/latest": dial tcp HOST: connect: connection refused`, errAny},
		{"no credentials", closed.Host() + "/private/x:latest",
			`failed to resolve reference "REF": pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials`, oci.ErrUnauthorized},
		{"denied", limited.Host() + "/private/x:latest",
			`failed to resolve reference "REF": pull access denied, repository does not exist or may require authorization: unexpected status from HEAD request to http://HOST/v2/private/x/manifests/latest: 403 Forbidden: denied: requested access to the resource is denied`, oci.ErrDenied},
	} {
		r := mustRef(t, c.image)
		_, err := client(remote.Options{}).Repository(r).Resolve(context.Background(), r)
		want := strings.ReplaceAll(strings.ReplaceAll(c.want, "REF", r.String()), "HOST", r.Domain)
		if err == nil || err.Error() != want || c.kind != errAny && !errors.Is(err, c.kind) {
			t.Errorf("%s:\n got %v\nwant %s", c.name, err, want)
		}
	}

	// Login.
	err = client(remote.Options{}).Ping(context.Background(), nowhere)
	if want := `Get "http://` + nowhere + `/v2/": dial tcp ` + nowhere + `: connect: connection refused`; err == nil || err.Error() != want {
		t.Errorf("login, nobody listens: %v", err)
	}
	wrong := auth.Credentials{Username: "a", Password: "b"}
	err = client(remote.Options{Credentials: somebody(wrong, nil)}).Ping(context.Background(), closed.Host())
	var said *remote.Error
	if !errors.As(err, &said) || said.Status != 401 || said.URL != "http://"+closed.Host()+"/v2/" {
		t.Errorf("login, wrong password: %v", err)
	}
	if err := client(remote.Options{Credentials: somebody(user, nil)}).Ping(context.Background(), closed.Host()); err != nil {
		t.Errorf("login: %v", err)
	}
	// Push.
	r := at(t, limited.Host())
	err = push(t, client(remote.Options{}), r, ocitest.One())
	if !errors.Is(err, oci.ErrDenied) {
		t.Errorf("push: %v", err)
	}
	said = nil
	if !errors.As(err, &said) {
		t.Errorf("push: %v is no *Error", err)
	}
}

// TestTokenServerWords: what a registry and its token server say when they let
// nobody in, at a pull and at login.
func TestTokenServerWords(t *testing.T) {
	for _, c := range []struct {
		name        string
		status      int
		body        string
		pull, login string
	}{
		{"wrong password at Docker Hub", 401, `{"details":"incorrect username or password"}`,
			`failed to fetch anonymous token: unexpected status from GET request to TOKEN: 401 Unauthorized: unauthorized: incorrect username or password`,
			`Get "http://HOST/v2/": unauthorized: incorrect username or password`},
		{"denied", 403, `{"errors":[{"code":"DENIED","message":"token\ndenied"}]}`,
			`pull access denied, repository does not exist or may require authorization: failed to fetch anonymous token: unexpected status from GET request to TOKEN: 403 Forbidden: denied: tokendenied`,
			`Get "http://HOST/v2/": denied: tokendenied`},
		{"no JSON", 403, `<html>`,
			`pull access denied, repository does not exist or may require authorization: failed to fetch anonymous token: unexpected status from GET request to TOKEN: 403 Forbidden`,
			`Get "http://HOST/v2/": received unexpected HTTP status: 403 Forbidden`},
		{"garbage", 200, `{garbage hunter2`, `failed to fetch anonymous token: unable to decode token response of TOKEN`,
			`Get "http://HOST/v2/": unable to decode token response of TOKEN`},
		{"no token", 200, `{}`, `failed to fetch anonymous token: authorization server did not include a token in the response of TOKEN`,
			`Get "http://HOST/v2/": authorization server did not include a token in the response of TOKEN`},
		{"no challenge", 0, ``,
			`pull access denied, repository does not exist or may require authorization: unexpected status from HEAD request to http://HOST/v2/a/b/manifests/v1: 401 Unauthorized: unauthorized: authentication required`,
			`unexpected status from GET request to http://HOST/v2/: 401 Unauthorized: unauthorized: authentication required`},
	} {
		f := ocitest.NewFlaky(t, ocitest.Answer(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
				return
			}
			if c.status != 0 {
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s"`)
			}
			ocitest.WriteError(w, 401, "UNAUTHORIZED", "authentication required")
		}))
		words := strings.NewReplacer("HOST", f.Host(), "TOKEN", "http://"+f.Host()+"/token")
		r := mustRef(t, f.Host()+"/a/b:v1")
		_, err := client(remote.Options{}).Repository(r).Resolve(context.Background(), r)
		if want := `failed to resolve reference "` + r.String() + `": ` + words.Replace(c.pull); err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", c.name, err, want)
		}
		if c.status == 200 && errors.Is(err, oci.ErrUnauthorized) {
			t.Errorf("%s: that says nothing about who may enter", c.name)
		}
		err = client(remote.Options{}).Ping(context.Background(), f.Host())
		if want := words.Replace(c.login); err == nil || err.Error() != want {
			t.Errorf("%s, login:\n got %v\nwant %s", c.name, err, want)
		}
	}
	closed := ocitest.NewFlaky(t, ocitest.BasicAuth("user", "hunter2"))
	err := push(t, client(remote.Options{}), at(t, closed.Host()), ocitest.One())
	if want := "push access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials"; err == nil || err.Error() != want {
		t.Errorf("push: %v", err)
	}
}

// TestDockerConfig reads docker's own file, and only when a challenge asks.
func TestDockerConfig(t *testing.T) {
	f := ocitest.NewFlaky(t, ocitest.BasicAuth("user", "hunter2"))
	r := at(t, f.Host())
	f.Add(r, ocitest.One())
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.json")
	write := func(s string) {
		if err := os.WriteFile(conf, []byte(strings.ReplaceAll(s, "HOST", f.Host())), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	try := func() error {
		_, _, err := pull(t, client(remote.Options{Credentials: auth.Docker(dir)}), r)
		return err
	}
	if err := try(); !errors.Is(err, oci.ErrUnauthorized) {
		t.Errorf("without a file: %v", err)
	}
	write(`{"auths":{"HOST":{"auth":"dXNlcjpodW50ZXIy"}}}`)
	if err := try(); err != nil {
		t.Errorf("auths: %v", err)
	}
	write(`{`)
	if err := try(); !errors.Is(err, oci.ErrInvalid) || !strings.Contains(err.Error(), conf) {
		t.Errorf("a broken file: %v", err)
	}
	noSecret(t, try().Error())
	// A helper: a program that answers for this host only.
	helper := "#!/bin/sh\nread host\n[ \"$1 $host\" = \"get " + f.Host() + "\" ] && echo '{\"ServerURL\":\"x\",\"Username\":\"user\",\"Secret\":\"hunter2\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-strake-test"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, s := range []string{`{"credsStore":"strake-test"}`, `{"credHelpers":{"HOST":"strake-test"}}`} {
		write(s)
		if err := try(); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	write(`{"credHelpers":{"other.test":"strake-test"}}`)
	if err := try(); !errors.Is(err, oci.ErrUnauthorized) {
		t.Errorf("a helper for another host: %v", err)
	}
}

// TestReferrersTag: where the registry keeps no referrers, the client does, as
// the specification asks; a second push adds nothing.
func TestReferrersTag(t *testing.T) {
	f := ocitest.NewFlaky(t)
	r := at(t, f.Host())
	one := ocitest.One()
	f.Add(r, one)
	for _, body := range []string{"a", "b", "a"} {
		im := ocitest.Artifact(one.Target, "application/vnd.example.sbom", body)
		if err := push(t, client(remote.Options{}), r.WithTag("sbom-"+body), im); err != nil {
			t.Fatal(err)
		}
	}
	repo := client(remote.Options{}).Repository(r)
	got, err := repo.Referrers(context.Background(), one.Target, "application/vnd.example.sbom")
	if err != nil || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	tag := "sha256-" + one.Target.Digest.Encoded()
	if d, err := repo.Resolve(context.Background(), r.WithTag(tag)); err != nil || d.MediaType != oci.MediaTypeIndex {
		t.Errorf("%s: %v, %v", tag, d, err)
	}
}
