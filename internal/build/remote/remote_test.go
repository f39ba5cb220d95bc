package remote_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	solvererr "github.com/moby/buildkit/solver/errdefs"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/build/remote"
	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// bench is a store, a context and a daemon.
type bench struct {
	*testing.T
	daemon *daemon
	url    string
	tls    remote.TLS
	store  *store.Store
	opt    remote.Options
	events []build.Event
}

func newBench(t *testing.T) *bench {
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	b := &bench{T: t, store: s}
	b.daemon, b.url = startDaemon(t, nil)
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM scratch\nCOPY . /\n", "a": "one\n", "ignored": "no\n", "big": strings.Repeat("0123456789abcdef", 1<<18)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name, err := ref.ParseTag("made:1")
	if err != nil {
		t.Fatal(err)
	}
	b.opt = remote.Options{
		Store: s, Load: true, Names: []ref.Ref{name},
		Frontend: map[string]string{"filename": "Dockerfile", "build-arg:X": "y"},
		Locals:   map[string]string{"context": dir, "dockerfile": dir},
		Events:   func(e build.Event) { b.events = append(b.events, e) },
		Secret:   func(context.Context, string) ([]byte, error) { return []byte("sesame"), nil },
		Credentials: func(_ context.Context, host string) (auth.Credentials, error) {
			return auth.Credentials{Username: "me@" + host, Password: "pw"}, nil
		},
		Entitlements: []string{"network.host"},
	}
	return b
}

func (b *bench) build() (*remote.Result, error) {
	b.Helper()
	builder, err := remote.NewBuilder(b.url, b.tls)
	if err != nil {
		b.Fatal(err)
	}
	ctx, release, err := b.store.Lease(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer release()
	c, err := builder.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Build(ctx, b.opt)
}

func TestBuild(t *testing.T) {
	b := newBench(t)
	res, err := b.build()
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.store.Resolve(t.Context(), b.opt.Names[0])
	if err != nil || got.Digest != res.Target.Digest {
		t.Fatalf("the tag names %v (%v), not %v", got, err, res.Target)
	}
	img, err := b.store.Find(t.Context(), "made:1")
	if err != nil || img.ID != res.ID {
		t.Errorf("image %+v (%v), not %s", img, err, res.ID)
	}
	if problems, err := b.store.Examine(t.Context(), true, nil); err != nil || len(problems) > 0 {
		t.Errorf("the store is damaged: %v, %v", problems, err)
	}
	d := b.daemon
	if d.asked["build-arg:X"] != "y" || d.secret != "sesame" || d.user != "me@registry.example:pw" || !slices.Equal(d.entitle, []string{"network.host"}) {
		t.Errorf("the daemon was told %v, %q, %q, %v", d.asked, d.secret, d.user, d.entitle)
	}
	if len(d.sent) != 3 {
		t.Errorf("sent %v, want a layer, a config and a manifest", d.sent)
	}
	d.sent = nil
	if _, err := b.build(); err != nil {
		t.Fatal(err)
	}
	if len(d.sent) > 0 {
		t.Errorf("sent %v again, which the store has", d.sent)
	}
}

// A step ends once, after all that it says.
func TestProgress(t *testing.T) {
	b := newBench(t)
	if _, err := b.build(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range b.events {
		switch {
		case e.Log != nil:
			got = append(got, string(e.Log.Data))
		case e.Vertex != nil && e.Vertex.Completed != nil:
			got = append(got, "end of "+e.Vertex.Name)
		}
	}
	want := []string{"copied\n", "end of [1/1] COPY . /", "end of importing to the store"}
	if !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestAFailureHasItsLine(t *testing.T) {
	b := newBench(t)
	if err := os.WriteFile(filepath.Join(b.opt.Locals["dockerfile"], "Dockerfile"), []byte("FROM scratch\nRUN false\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := b.build()
	if err == nil || err.Error() != `process "false" did not complete successfully: exit code: 1` {
		t.Fatalf("error %v", err)
	}
	src := solvererr.Sources(err)
	var text bytes.Buffer
	if len(src) != 1 || src[0].Print(&text) != nil || !strings.Contains(text.String(), ">>> RUN false") {
		t.Errorf("source %v %q", src, &text)
	}
}

// What is wrong in transfer does not become an image.
func TestCorruptContent(t *testing.T) {
	b := newBench(t)
	b.opt.Frontend["build-arg:CORRUPT"] = "1"
	if _, err := b.build(); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Fatalf("error %v", err)
	}
	if _, err := b.store.Resolve(t.Context(), b.opt.Names[0]); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("the tag is there: %v", err)
	}
}

func TestSubrequest(t *testing.T) {
	b := newBench(t)
	b.opt.Frontend["requestid"] = "frontend.targets"
	res, err := b.build()
	if err != nil || string(res.Metadata["result.txt"]) != "TARGET\n" {
		t.Fatalf("%+v, %v", res, err)
	}
}

func TestUnreachable(t *testing.T) {
	b := newBench(t)
	b.url = "unix://" + filepath.Join(t.TempDir(), "none")
	if _, err := b.build(); err == nil || !strings.Contains(err.Error(), b.url+" cannot be reached") {
		t.Errorf("error %v", err)
	}
}

func TestNewBuilder(t *testing.T) {
	for _, spec := range []string{
		"", "name", "tcp://host", "unix://relative", "http://host:1",
		"ssh://", "ssh://u:pw@h", "kube-pod://", "kube-pod://UPPER", "kube-pod://p?namespace=$(x)",
	} {
		if b, err := remote.NewBuilder(spec, remote.TLS{}); err == nil {
			t.Errorf("%q is %+v", spec, b)
		}
	}
	for _, spec := range []string{"tcp://h:1", "unix:///s", "ssh://u@h:22/run/bk.sock", "kube-pod://p?namespace=n&container=c", "docker-container://n", "podman-container://n"} {
		if _, err := remote.NewBuilder(spec, remote.TLS{}); err != nil {
			t.Errorf("%q: %v", spec, err)
		}
	}
	for address, bad := range map[string]remote.TLS{"tcp://h:1": {Cert: "c"}, "unix:///s": {CACert: "x"}} {
		if b, err := remote.NewBuilder(address, bad); err == nil {
			t.Errorf("%s with %v is %+v", address, bad, b)
		}
	}
}

// The client shows its certificate and checks the daemon's.
func TestTLS(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	pool := x509.NewCertPool()
	cert := certificate(t, dir, pool)
	_, b.url = startDaemon(t, &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
	good := remote.TLS{CACert: filepath.Join(dir, "cert.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	b.tls = good
	if _, err := b.build(); err != nil {
		t.Fatal(err)
	}
	other := good
	other.ServerName = "other"
	for want, bad := range map[string]remote.TLS{
		"if it wants TLS: --builder " + b.url + ",cacert=FILE,cert=FILE,key=FILE": {},
		"certificate required; name ours":                                         {CACert: good.CACert},
		"failed to verify certificate":                                            other,
	} {
		b.tls = bad
		if _, err := b.build(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %v: %v", bad, err)
		}
	}
}

func certificate(t *testing.T, dir string, pool *x509.CertPool) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: k})
	for name, b := range map[string][]byte{"cert.pem": certPEM, "key.pem": keyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool.AppendCertsFromPEM(certPEM)
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
