package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

// testFile is a member of a hand-made archive.
type testFile struct {
	name, body string
	link       string // symlink target; "=x" is a hard link to x
}

func makeTar(t testing.TB, files ...testFile) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.body)), Typeflag: tar.TypeReg}
		if target, hard := strings.CutPrefix(f.link, "="); hard {
			h.Typeflag, h.Linkname = tar.TypeLink, target
		} else if f.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// older makes the older form's files of an image.
func older(im *ocitest.Image, tags ...string) []testFile {
	m := im.Manifest()
	e := entry{Config: m.Config.Digest.Encoded() + ".json", RepoTags: tags}
	files := []testFile{{name: e.Config, body: string(im.Body(m.Config.Digest))}}
	for i, l := range im.Layers() {
		name := fmt.Sprintf("%064d/layer.tar", i)
		files = append(files, testFile{name: name, body: string(l.Body)})
		e.Layers = append(e.Layers, name)
	}
	list, _ := json.Marshal([]entry{e})
	return append(files, testFile{name: manifestFile, body: string(list)})
}

// ways are the ways to open the same bytes: as a file, as a stream, packed.
func ways(t *testing.T, archive []byte) map[string]func() (*Archive, error) {
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]func() (*Archive, error){
		"file":   func() (*Archive, error) { return Open(context.Background(), path, t.TempDir()) },
		"stream": func() (*Archive, error) { return Read(context.Background(), bytes.NewReader(archive), t.TempDir()) },
		"gzip": func() (*Archive, error) {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			w.Write(archive)
			w.Close()
			return Read(context.Background(), &b, t.TempDir())
		},
		"zstd": func() (*Archive, error) {
			return Read(context.Background(), bytes.NewReader(ocitest.Pack(archive, content.Zstd)), t.TempDir())
		},
	}
}

func TestOlderForm(t *testing.T) {
	plain := ocitest.Plain()
	linked := older(plain, "tiny:v1", "example.com/tiny:v2")
	// As docker does where two images have one layer.
	linked = append(linked, testFile{name: linked[1].name, link: "../shared/layer.tar"})
	linked[1].name = "shared/layer.tar"
	hard := older(plain, "tiny:v1", "example.com/tiny:v2")
	hard = append([]testFile{{name: "x", body: hard[1].body}}, append(hard[:1:1], append([]testFile{{name: hard[1].name, link: "=x"}}, hard[2:]...)...)...)
	dotted := older(plain, "tiny:v1", "example.com/tiny:v2")
	for i := range dotted {
		dotted[i].name = "./" + dotted[i].name
	}
	var first oci.Digest
	for name, files := range map[string][]testFile{"plain": older(plain, "tiny:v1", "example.com/tiny:v2"), "symlinked layer": linked, "hard-linked layer": hard, "./ before each name": dotted} {
		for way, open := range ways(t, makeTar(t, files...)) {
			t.Run(name+" as "+way, func(t *testing.T) {
				a, err := open()
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				images := a.Images()
				if len(images) != 2 || images[0].Ref.Familiar() != "tiny:v1" || images[1].Ref.Familiar() != "example.com/tiny:v2" {
					t.Fatalf("images: %v", images)
				}
				dst := ocitest.NewMemory()
				d, err := content.Copy(t.Context(), dst, images[0].Ref, a, images[0].Ref, content.CopyOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if first == "" {
					first = d.Digest
				}
				if d.Digest != first {
					t.Errorf("the same image got two manifests, %s and %s", first, d.Digest)
				}
				for _, b := range plain.Blobs[:3] {
					if ok, _ := dst.Has(t.Context(), b.Descriptor); !ok {
						t.Errorf("%s %s was not loaded", b.MediaType, b.Digest)
					}
				}
				if d.Digest != plain.Target.Digest {
					t.Errorf("the manifest made is %s, docker 25 makes %s", d.Digest, plain.Target.Digest)
				}
			})
		}
	}
}

func TestOlderFormWithPackedLayers(t *testing.T) {
	for _, im := range []*ocitest.Image{ocitest.Two(), ocitest.Zstd()} {
		a, err := Read(t.Context(), bytes.NewReader(makeTar(t, older(im, "tiny:v1")...)), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if got := a.Images()[0].Target.Digest; got != im.Target.Digest {
			t.Errorf("the manifest made is %s, want %s: the packed layers as they are", got, im.Target.Digest)
		}
	}
}

func TestHostile(t *testing.T) {
	plain := func() []testFile { return older(ocitest.Plain(), "tiny:v1") }
	edit := func(f func(map[string]any)) []testFile {
		files := plain()
		var v []map[string]any
		json.Unmarshal([]byte(files[len(files)-1].body), &v)
		f(v[0])
		b, _ := json.Marshal(v)
		files[len(files)-1].body = string(b)
		return files
	}
	layout := func(index string) []testFile {
		return []testFile{{name: layoutFile, body: `{"imageLayoutVersion":"1.0.0"}`}, {name: indexFile, body: index}}
	}
	two := ocitest.Two()
	wrong := func() []testFile { // a manifest under another's digest
		files := layout(fmt.Sprintf(`{"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, two.Target.MediaType, two.Target.Digest, two.Target.Size))
		body := bytes.ReplaceAll(two.Body(two.Target.Digest), []byte("gzip"), []byte("zstd"))
		return append(files, testFile{name: blobName(two.Target.Digest), body: string(body)})
	}
	packedWrong := older(two, "tiny:v1")
	packedWrong[1].body = string(ocitest.Pack([]byte("another layer"), content.Gzip))
	for name, c := range map[string]struct {
		files []testFile
		kind  error
		says  string
	}{
		"a member outside":             {append(plain(), testFile{name: "../../etc/cron.d/x", body: "x"}), oci.ErrInvalid, "outside"},
		"an absolute symlink":          {append(plain(), testFile{name: "y", link: "/etc/passwd"}), oci.ErrInvalid, "outside"},
		"a symlink outside":            {append(plain(), testFile{name: "y/layer.tar", link: "../../../etc/passwd"}), oci.ErrInvalid, "outside"},
		"a hard link outside":          {append(plain(), testFile{name: "y", link: "=../passwd"}), oci.ErrInvalid, "outside"},
		"a config outside":             {edit(func(m map[string]any) { m["Config"] = "../../../etc/passwd" }), oci.ErrInvalid, "outside"},
		"a layer outside":              {edit(func(m map[string]any) { m["Layers"] = []string{"../x", "../y"} }), oci.ErrInvalid, "outside"},
		"a missing layer":              {edit(func(m map[string]any) { m["Layers"] = []string{"x/layer.tar", "y/layer.tar"} }), oci.ErrNotFound, "x/layer.tar"},
		"a missing config":             {edit(func(m map[string]any) { m["Config"] = "no.json" }), oci.ErrNotFound, "no.json"},
		"fewer layers than diffIDs":    {edit(func(m map[string]any) { m["Layers"] = []string{} }), oci.ErrInvalid, "layers length mismatch: expected 0, got 2"},
		"a name that is none":          {edit(func(m map[string]any) { m["RepoTags"] = []string{"UPPER:x"} }), oci.ErrInvalid, "lowercase"},
		"links in a loop":              {append(edit(func(m map[string]any) { m["Config"] = "a" }), testFile{name: "a", link: "b"}, testFile{name: "b", link: "a"}), oci.ErrInvalid, "loop"},
		"a link to nothing":            {append(edit(func(m map[string]any) { m["Config"] = "a" }), testFile{name: "a", link: "b"}), oci.ErrNotFound, "links to b"},
		"a packed layer of another":    {packedWrong, oci.ErrCorrupt, "digest mismatch"},
		"manifest.json is huge":        {[]testFile{{name: manifestFile, body: "[" + strings.Repeat(" ", 5<<20) + "]"}}, oci.ErrInvalid, "the most is"},
		"manifest.json is no JSON":     {[]testFile{{name: manifestFile, body: "[{"}}, oci.ErrInvalid, manifestFile},
		"manifest.json is empty":       {[]testFile{{name: manifestFile, body: "[]"}}, oci.ErrInvalid, "no image"},
		"a root file system":           {[]testFile{{name: "etc/passwd", body: "root"}}, oci.ErrInvalid, "does not contain a manifest.json"},
		"older than docker 1.10":       {[]testFile{{name: reposFile, body: "{}"}, {name: "abc/json", body: "{}"}}, oci.ErrUnsupported, "1.10"},
		"an index of nothing":          {layout(`{"manifests":[]}`), oci.ErrInvalid, "no image"},
		"an index of a missing blob":   {layout(fmt.Sprintf(`{"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, two.Target.MediaType, two.Target.Digest, two.Target.Size)), oci.ErrNotFound, "lacks"},
		"an index with a wrong digest": {layout(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../x","size":3}]}`), oci.ErrInvalid, "digest"},
		"an index with a wrong size":   {layout(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + string(two.Target.Digest) + `","size":-3}]}`), nil, ""},
		"a manifest that is another":   {wrong(), oci.ErrCorrupt, ""},
	} {
		for way, open := range ways(t, makeTar(t, c.files...)) {
			a, err := open()
			if err == nil {
				a.Close()
				t.Errorf("%s as %s: opened", name, way)
				continue
			}
			if c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s as %s: error is %q, want one line of %v that says %q", name, way, err, c.kind, c.says)
			}
		}
	}
}

func TestNotATar(t *testing.T) {
	whole := makeTar(t, older(ocitest.Plain(), "tiny:v1")...)
	for name, b := range map[string][]byte{
		"nothing":              nil,
		"text":                 []byte("this is not a tar\n"),
		"a page of text":       bytes.Repeat([]byte("this is not a tar\n"), 100),
		"zeros":                make([]byte, 2048),
		"half a header":        whole[:300],
		"cut in a member":      whole[:len(whole)/2],
		"cut in the last file": whole[:len(whole)-1024-500],
	} {
		for way, open := range ways(t, b) {
			a, err := open()
			if err == nil {
				a.Close()
				t.Errorf("%s as %s: opened", name, way)
			} else if err.Error() != "unexpected EOF" || !errors.Is(err, oci.ErrInvalid) {
				t.Errorf("%s as %s: error is %q, want docker's %q", name, way, err, "unexpected EOF")
			}
		}
	}
}

func TestWrongLayerLeavesNothing(t *testing.T) {
	files := older(ocitest.Plain(), "tiny:v1")
	files[2].body = strings.Replace(files[2].body, "0123", "3210", 1)
	a, err := Read(t.Context(), bytes.NewReader(makeTar(t, files...)), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	dst := ocitest.NewMemory()
	r := a.Images()[0].Ref
	if _, err := content.Copy(t.Context(), dst, r, a, r, content.CopyOptions{}); !errors.Is(err, oci.ErrCorrupt) {
		t.Errorf("a layer that is not its diffID: %v, want ErrCorrupt", err)
	}
	if _, err := dst.Resolve(t.Context(), r); !errors.Is(err, oci.ErrNotFound) {
		t.Error("the image has a name")
	}
}

func TestLayoutDirectoryKeepsSymlinksInside(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, indexFile)); err != nil {
		t.Fatal(err)
	}
	if a, err := Open(t.Context(), dir, t.TempDir()); err == nil {
		a.Close()
		t.Error("an index.json that links to /etc/passwd was read")
	} else if strings.Contains(err.Error(), "root:") {
		t.Errorf("the error shows the file: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	// Small ones: the fuzzer is quick with them.
	tiny := ocitest.Make(ocitest.Spec{Layers: [][]byte{ocitest.Layer("f", "x")}})
	f.Add(makeTar(f, older(tiny, "tiny:v1")...))
	f.Add(makeTar(f, older(ocitest.Make(ocitest.Spec{}), "tiny:v1")...))
	var b bytes.Buffer
	w := NewWriter(&b)
	r := ref.Ref{Domain: "docker.io", Path: "library/tiny", Tag: "v1"}
	if _, err := content.Copy(context.Background(), w, r, ocitest.Fill(r, tiny), r, content.CopyOptions{}); err != nil {
		f.Fatal(err)
	}
	w.Close()
	f.Add(b.Bytes())
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := Read(t.Context(), bytes.NewReader(b), dir)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("an error of several lines: %q", err)
			}
			return
		}
		defer a.Close()
		for _, im := range a.Images() {
			content.Copy(t.Context(), ocitest.NewSparse(), im.Ref, a, im.Ref.WithDigest(im.Target.Digest), content.CopyOptions{})
		}
	})
}
