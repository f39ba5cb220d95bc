package frontend_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/build/frontend"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/oci/tree"
)

// lab is a store with the image busybox:latest in it, and a context directory.
type lab struct {
	testing.TB
	store *store.Store
	dir   string
	opt   build.Options
	mu    sync.Mutex
	logs  strings.Builder
	ran   []string // names of the steps that were not cached
}

// applets are the links to busybox that the tests' commands use.
const applets = "sh cat echo ls mkdir touch rm true false env id stat sleep ln chmod chown cp mv test sed grep find md5sum date hostname wc head tr"

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: commands run in namespaces over overlayfs")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox-static, the base image of these tests")
	}
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l := &lab{TB: t, store: s, dir: t.TempDir()}
	l.addImage("busybox", busyboxTar(t, busybox), nil)
	return l
}

func busyboxTar(t testing.TB, busybox string) []byte {
	bin, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	put := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "etc/", "root/", "proc/", "dev/", "sys/"} {
		put(tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}, nil)
	}
	put(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, bin)
	for _, a := range strings.Fields(applets) {
		put(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox"}, nil)
	}
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n"))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nuser:x:1000:\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// addImage puts an image of one plain layer into the store.
func (l *lab) addImage(name string, plain []byte, change func(*oci.Image)) {
	l.Helper()
	ctx := context.Background()
	var img oci.Image
	img.OS, img.Architecture = "linux", content.Host().Architecture
	img.RootFS.Type = "layers"
	img.RootFS.DiffIDs = []oci.Digest{digest.FromBytes(plain)}
	img.Config.Env = []string{"PATH=/bin"}
	img.History = []oci.History{{CreatedBy: "import"}}
	if change != nil {
		change(&img)
	}
	config, _ := json.Marshal(img)
	m := oci.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: oci.MediaTypeManifest,
		Config:    oci.DescriptorOf(oci.MediaTypeConfig, config),
		Layers:    []oci.Descriptor{oci.DescriptorOf(oci.MediaTypeLayer, plain)},
	}
	body, _ := json.Marshal(m)
	d := oci.DescriptorOf(oci.MediaTypeManifest, body)
	for _, p := range []struct {
		d oci.Descriptor
		b []byte
	}{{m.Layers[0], plain}, {m.Config, config}, {d, body}} {
		if err := l.store.Put(ctx, p.d, bytes.NewReader(p.b)); err != nil {
			l.Fatal(err)
		}
	}
	r, err := ref.ParseTag(name)
	if err != nil {
		l.Fatal(err)
	}
	if err := l.store.Tag(ctx, r, d); err != nil {
		l.Fatal(err)
	}
}

// write makes a file of the context.
func (l *lab) write(name, text string) {
	l.Helper()
	p := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		l.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		l.Fatal(err)
	}
}

// try builds dockerfile; opts are frontend options "k=v".
func (l *lab) try(dockerfile string, opts ...string) (*build.Assembly, error) {
	l.write("Dockerfile", dockerfile)
	o := map[string]string{"filename": "Dockerfile"}
	for _, kv := range opts {
		k, v, _ := strings.Cut(kv, "=")
		o[k] = v
	}
	return l.run(o)
}

// run builds the Dockerfile of the context with these frontend options.
func (l *lab) run(o map[string]string) (*build.Assembly, error) {
	ctx, release, err := l.store.Lease(context.Background())
	if err != nil {
		l.Fatal(err)
	}
	defer release()
	l.logs.Reset()
	l.ran = nil
	opt := l.opt
	opt.Store = l.store
	if opt.Locals == nil {
		opt.Locals = map[string]string{}
	}
	opt.Locals["context"], opt.Locals["dockerfile"] = l.dir, l.dir
	opt.Find = func(ctx context.Context, r ref.Ref, p oci.Platform, _ bool) (*content.Found, error) {
		return content.Locate(ctx, l.store, nil, r, p, content.PullNever)
	}
	opt.Events = func(e build.Event) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if e.Log != nil {
			l.logs.Write(e.Log.Data)
		}
		if v := e.Vertex; v != nil && v.Completed != nil && !v.Cached && strings.Contains(v.Name, "/") && strings.HasPrefix(v.Name, "[") && !strings.HasPrefix(v.Name, "[internal") {
			l.ran = append(l.ran, v.Name)
		}
	}
	e := build.New(opt)
	defer e.Close()
	res, err := frontend.Build(ctx, e, o)
	if err != nil {
		return nil, err
	}
	if len(res.Images) == 0 {
		return nil, fmt.Errorf("no image: %v", res.Metadata)
	}
	var a *build.Assembly
	return a, e.Work("exporting to image", func(w *build.Work) error {
		if a, err = e.Assemble(ctx, w, res.Images, build.Form{Index: res.Index}); err != nil {
			return err
		}
		return e.Keep(ctx, w, a, []ref.Ref{{Domain: "docker.io", Path: "library/test", Tag: "latest"}})
	})
}

func (l *lab) build(dockerfile string, opts ...string) *image {
	l.Helper()
	out, err := l.try(dockerfile, opts...)
	if err != nil {
		l.Fatalf("build: %v\n%s", err, &l.logs)
	}
	return l.open(out)
}

// image is a built image with its tree.
type image struct {
	*lab
	oci.Image
	out  *build.Assembly
	view *tree.Stack
	tocs []*layer.TOC
}

func (l *lab) open(out *build.Assembly) *image {
	l.Helper()
	ctx := context.Background()
	img := &image{lab: l, out: out}
	_, body, err := content.Manifest(ctx, l.store, out.Target, content.Host())
	if err != nil {
		l.Fatal(err)
	}
	var m oci.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		l.Fatal(err)
	}
	config, err := content.ReadAll(ctx, l.store, m.Config)
	if err != nil {
		l.Fatal(err)
	}
	if err := json.Unmarshal(config, &img.Image); err != nil {
		l.Fatal(err)
	}
	for _, id := range img.RootFS.DiffIDs {
		toc, err := l.store.TOC(ctx, id)
		if err != nil {
			l.Fatal(err)
		}
		img.tocs = append(img.tocs, toc)
	}
	img.view = tree.New(img.tocs, func(ctx context.Context, i int, e *layer.Entry) (io.ReadCloser, error) {
		return l.store.OpenFile(ctx, img.RootFS.DiffIDs[i], e)
	})
	return img
}

func (i *image) read(name string) string {
	i.Helper()
	r, err := i.view.Open(context.Background(), name)
	if err != nil {
		i.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		i.Fatal(err)
	}
	return string(b)
}

func (i *image) want(name, text string) {
	i.Helper()
	if got := i.read(name); got != text {
		i.Errorf("%s holds %q, want %q", name, got, text)
	}
}

func (i *image) entry(name string) *layer.Entry {
	i.Helper()
	e, err := i.view.Lstat(name)
	if err != nil {
		i.Fatal(err)
	}
	return e
}

func (i *image) gone(name string) {
	i.Helper()
	if e, err := i.view.Lstat(name); err == nil {
		i.Errorf("%s is there: %+v", name, e)
	}
}
