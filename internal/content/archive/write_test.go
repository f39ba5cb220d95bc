package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

func named(s string) ref.Ref {
	r, err := ref.ParseTag(s)
	if err != nil {
		panic(err)
	}
	return r
}

// save copies images under their names into an archive.
func save(t *testing.T, images map[string]*ocitest.Image, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, n := range names {
		r := named(n)
		if _, err := content.Copy(t.Context(), w, r, ocitest.Fill(r, images[n]), r, content.CopyOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func members(t *testing.T, archive []byte) (names []string, files map[string]string) {
	t.Helper()
	files = map[string]string{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 0 || h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s has the time %v and owner %d:%d %q", h.Name, h.ModTime, h.Uid, h.Gid, h.Uname)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is written twice", h.Name)
		}
		names, files[h.Name] = append(names, h.Name), string(body)
	}
}

func TestWriterWritesDockersForm(t *testing.T) {
	one, plain := ocitest.One(), ocitest.Plain() // plain's lower layer is one's
	names, files := members(t, save(t, map[string]*ocitest.Image{"a:v1": one, "a:v2": one, "example.com/b": plain}, "a:v1", "a:v2", "example.com/b"))
	blob := func(d oci.Digest) string { return "blobs/sha256/" + d.Encoded() }
	oc, pc := one.Manifest(), plain.Manifest()
	// In the order of Copy: config and layers as the manifest names them.
	want := []string{"blobs/", "blobs/sha256/",
		blob(oc.Config.Digest), blob(oc.Layers[0].Digest), blob(one.Target.Digest),
		blob(pc.Config.Digest), blob(pc.Layers[1].Digest), blob(plain.Target.Digest),
		"index.json", "manifest.json", "oci-layout", "repositories"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	digits := strings.NewReplacer(
		"ONE", one.Target.Digest.Encoded(), "PLAIN", plain.Target.Digest.Encoded(),
		"CFG1", oc.Config.Digest.Encoded(), "CFG2", pc.Config.Digest.Encoded(),
		"LOW", oc.Layers[0].Digest.Encoded(), "TOP", pc.Layers[1].Digest.Encoded(),
		"\n", "", "\t", "")
	for name, want := range map[string]string{
		"oci-layout": `{"imageLayoutVersion":"1.0.0"}`,
		"index.json": `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
			{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:ONE","size":397,"annotations":{"io.containerd.image.name":"docker.io/library/a:v1","org.opencontainers.image.ref.name":"v1"}},
			{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:ONE","size":397,"annotations":{"io.containerd.image.name":"docker.io/library/a:v2","org.opencontainers.image.ref.name":"v2"}},
			{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:PLAIN","size":549,"annotations":{"io.containerd.image.name":"example.com/b:latest","org.opencontainers.image.ref.name":"latest"}}]}`,
		"manifest.json": `[{"Config":"blobs/sha256/CFG1","RepoTags":["a:v1","a:v2"],"Layers":["blobs/sha256/LOW"],
			"LayerSources":{"sha256:LOW":{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:LOW","size":4096}}},
			{"Config":"blobs/sha256/CFG2","RepoTags":["example.com/b:latest"],"Layers":["blobs/sha256/LOW","blobs/sha256/TOP"],
			"LayerSources":{"sha256:LOW":{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:LOW","size":4096},"sha256:TOP":{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:TOP","size":133120}}}]`,
		"repositories": `{"a":{"v1":"LOW","v2":"LOW"},"example.com/b":{"latest":"TOP"}}`,
	} {
		want = digits.Replace(want)
		if files[name] != want {
			t.Errorf("%s\n got %s\nwant %s", name, files[name], want)
		}
	}
}

func TestWriterGivesTheSameBytes(t *testing.T) {
	images := map[string]*ocitest.Image{"a:v1": ocitest.TwoPlatforms(), "b:v1": ocitest.Plain()}
	first := save(t, images, "a:v1", "b:v1")
	for range 10 {
		if !bytes.Equal(first, save(t, images, "a:v1", "b:v1")) {
			t.Fatal("the same images became different bytes")
		}
	}
}

func TestNamesComeBack(t *testing.T) {
	images := map[string]*ocitest.Image{"a:v1": ocitest.TwoPlatforms(), "a:v2": ocitest.Docker(), "localhost:5000/x/y:z": ocitest.One()}
	a, err := Read(t.Context(), bytes.NewReader(save(t, images, "a:v1", "a:v2", "localhost:5000/x/y:z")), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for i, n := range []string{"a:v1", "a:v2", "localhost:5000/x/y:z"} {
		if im := a.Images()[i]; im.Ref.Familiar() != n || im.Target.Digest != images[n].Target.Digest {
			t.Errorf("image %d is %s %s, want %s %s", i, im.Ref.Familiar(), im.Target.Digest, n, images[n].Target.Digest)
		}
	}
}

func TestASparseIndexKeepsItsDigest(t *testing.T) {
	im := ocitest.TwoPlatforms()
	r := named("a:v1")
	var b bytes.Buffer
	w := NewWriter(&b)
	opt := content.CopyOptions{Platforms: []oci.Platform{{OS: "linux", Architecture: "arm64"}}}
	if _, err := content.Copy(t.Context(), w, r, ocitest.Fill(r, im), r, opt); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a, err := Read(t.Context(), &b, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	got, err := content.Copy(t.Context(), ocitest.NewSparse(), r, a, r, content.CopyOptions{})
	if err != nil || got.Digest != im.Target.Digest {
		t.Errorf("loaded as %s, %v; want the index %s", got.Digest, err, im.Target.Digest)
	}
}

func TestAnUntaggedImageHasNoName(t *testing.T) {
	im := ocitest.One()
	src := ocitest.Fill(named("a:v1"), im)
	r := ref.Ref{Domain: "docker.io", Path: "library/a", Digest: im.Target.Digest}
	var b bytes.Buffer
	w := NewWriter(&b)
	if _, err := content.Copy(t.Context(), w, r, src, r, content.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, files := members(t, b.Bytes())
	if !strings.Contains(files[manifestFile], `"RepoTags":null`) || files[reposFile] != "" || strings.Contains(files[indexFile], "annotations") {
		t.Errorf("manifest.json %s\nrepositories %q\nindex.json %s", files[manifestFile], files[reposFile], files[indexFile])
	}
	a, err := Read(t.Context(), &b, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if got := a.Images(); len(got) != 1 || got[0].Ref != (ref.Ref{}) {
		t.Errorf("images: %v", got)
	}
}

// full is a disk that fills up.
type full struct{ room int }

var errFull = errors.New("disk full")

func (f *full) Write(p []byte) (int, error) {
	if len(p) > f.room {
		n := f.room
		f.room = 0
		return n, errFull
	}
	f.room -= len(p)
	return len(p), nil
}

func TestAFullDiskFailsTheSave(t *testing.T) {
	r := named("a:v1")
	for _, room := range []int{0, 100, 600, 5000, 100000, 140000} {
		w := NewWriter(&full{room})
		_, err := content.Copy(context.Background(), w, r, ocitest.Fill(r, ocitest.Plain()), r, content.CopyOptions{})
		if err == nil {
			err = w.Close()
		} else if cerr := w.Close(); cerr == nil {
			t.Errorf("room for %d bytes: Close succeeds after %v", room, err)
		}
		if !errors.Is(err, errFull) {
			t.Errorf("room for %d bytes: error is %v", room, err)
		}
	}
}

func TestALargeWrongBlobBreaksTheStream(t *testing.T) {
	big := bytes.Repeat([]byte("x"), inMemory+1)
	d := oci.DescriptorOf(oci.MediaTypeLayer, big)
	w := NewWriter(io.Discard)
	if err := w.Put(t.Context(), d, bytes.NewReader(big[1:])); !errors.Is(err, oci.ErrCorrupt) {
		t.Errorf("Put of too little: %v", err)
	}
	if ok, _ := w.Has(t.Context(), d); ok {
		t.Error("the wrong blob is there")
	}
	if err := w.Close(); !errors.Is(err, oci.ErrCorrupt) {
		t.Errorf("Close of the broken archive: %v", err)
	}
}
