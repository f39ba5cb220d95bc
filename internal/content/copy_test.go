package content_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

var (
	from = ref.Ref{Domain: "from.test", Path: "a/b", Tag: "v1"}
	to   = ref.Ref{Domain: "to.test", Path: "c", Tag: "v2"}
)

// custom is an index with the given entries, after the blobs of its images.
func custom(t *testing.T, images []*ocitest.Image, entries ...oci.Descriptor) *ocitest.Image {
	t.Helper()
	im := new(ocitest.Image)
	for _, x := range images {
		for _, b := range x.Blobs {
			if im.Body(b.Digest) == nil {
				im.Blobs = append(im.Blobs, b)
			}
		}
	}
	body, err := json.Marshal(oci.Index{MediaType: oci.MediaTypeIndex, Manifests: entries})
	if err != nil {
		t.Fatal(err)
	}
	im.Target = oci.DescriptorOf(oci.MediaTypeIndex, body)
	im.Blobs = append(im.Blobs, ocitest.Blob{Descriptor: im.Target, Body: body})
	return im
}

func on(d oci.Descriptor, arch, variant string) oci.Descriptor {
	d.Platform = &oci.Platform{OS: "linux", Architecture: arch, Variant: variant}
	return d
}

func index(t *testing.T, src content.Source, d oci.Descriptor) oci.Index {
	t.Helper()
	var ix oci.Index
	body, err := content.ReadAll(t.Context(), src, d)
	if err == nil {
		err = json.Unmarshal(body, &ix)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ix
}

func TestCopyKeepsAnIndexThatNamesOneImageTwice(t *testing.T) {
	two := ocitest.Two()
	im := custom(t, []*ocitest.Image{two}, on(two.Target, "amd64", ""), on(two.Target, "amd64", "v2"))
	dst := ocitest.NewMemory()
	got, err := content.Copy(t.Context(), dst, to, ocitest.Fill(from, im), from, content.CopyOptions{})
	if err != nil || got.Digest != im.Target.Digest {
		t.Fatalf("Copy gives %s, %v; want the index itself, %s", got.Digest, err, im.Target.Digest)
	}
}

// packing is a Memory that packs plain layers.
type packing struct{ *ocitest.Memory }

func (p packing) Pack(ctx context.Context, d oci.Descriptor, c content.Compression) (oci.Descriptor, error) {
	body, err := content.ReadAll(ctx, p, d)
	if err != nil {
		return d, err
	}
	packed := ocitest.Pack(body, c)
	out := oci.DescriptorOf(oci.MediaTypeLayerGzip, packed)
	return out, p.Put(ctx, out, bytes.NewReader(packed))
}

func TestCopyPacksPlainLayersOnly(t *testing.T) {
	plain, two := ocitest.Plain(), ocitest.Two()
	note := ocitest.Make(ocitest.Spec{Env: []string{"ATTESTATION=1"}})
	about := on(note.Target, "unknown", "")
	about.Annotations = map[string]string{"vnd.docker.reference.digest": string(plain.Target.Digest)}
	im := custom(t, []*ocitest.Image{plain, two, note},
		on(plain.Target, "amd64", ""), on(plain.Target, "amd64", "v2"), on(two.Target, "arm64", ""), about)
	dst := ocitest.NewMemory()
	got, err := content.Copy(t.Context(), dst, to, packing{ocitest.Fill(from, im)}, from, content.CopyOptions{Compression: content.Gzip})
	if err != nil {
		t.Fatal(err)
	}
	ms := index(t, dst, got).Manifests
	if len(ms) != 4 {
		t.Fatalf("the index has %d entries, want 4", len(ms))
	}
	if ms[0].Digest == plain.Target.Digest || ms[0].Digest != ms[1].Digest || ms[1].Platform.Variant != "v2" {
		t.Errorf("the image named twice became %v and %v", ms[0], ms[1])
	}
	if ms[2].Digest != two.Target.Digest {
		t.Error("an image that was packed already changed its digest")
	}
	if a := ms[3].Annotations["vnd.docker.reference.digest"]; a != string(ms[0].Digest) {
		t.Errorf("the attestation is about %s, the image is now %s", a, ms[0].Digest)
	}
	var m oci.Manifest
	body, _ := content.ReadAll(t.Context(), dst, ms[0])
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if l.MediaType != oci.MediaTypeLayerGzip {
			t.Errorf("a layer is still %s", l.MediaType)
		}
	}
	if m.Config.Digest != plain.Manifest().Config.Digest {
		t.Error("packing changed the image ID")
	}
}

// failing fails to open one digest, after the others had time to begin.
type failing struct {
	*ocitest.Memory
	digest oci.Digest
	err    error
}

func (f failing) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if d.Digest == f.digest {
		time.Sleep(time.Millisecond)
		return nil, f.err
	}
	r, err := f.Memory.Open(ctx, d)
	if err != nil || oci.IsManifest(d.MediaType) || oci.IsIndex(d.MediaType) {
		return r, err
	}
	return &waiting{ctx, r}, nil
}

// waiting is a transfer that goes on until it is cancelled.
type waiting struct {
	ctx context.Context
	io.ReadCloser
}

func (w *waiting) Read(p []byte) (int, error) {
	<-w.ctx.Done()
	return 0, w.ctx.Err()
}

func TestCopyReportsTheFailureAndNotWhatItCancelled(t *testing.T) {
	im := ocitest.TwoPlatforms()
	boom := errors.New("the disk is on fire")
	for _, b := range im.Blobs {
		if oci.IsManifest(b.MediaType) || oci.IsIndex(b.MediaType) {
			continue
		}
		_, err := content.Copy(t.Context(), ocitest.NewMemory(), to, failing{ocitest.Fill(from, im), b.Digest, boom}, from, content.CopyOptions{})
		var ce *content.CopyError
		if !errors.Is(err, boom) || !errors.As(err, &ce) || ce.End != "source" {
			t.Errorf("failure of %s: Copy says %v", b.MediaType, err)
		}
	}
}

func TestCopyEndsWithItsContext(t *testing.T) {
	im := ocitest.Two()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(5*time.Millisecond, cancel)
	_, err := content.Copy(ctx, ocitest.NewMemory(), to, failing{ocitest.Fill(from, im), "", nil}, from, content.CopyOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want context.Canceled", err)
	}
}

func TestCopySaysWhichEndFailed(t *testing.T) {
	_, err := content.Copy(t.Context(), ocitest.NewMemory(), to, ocitest.NewMemory(), from, content.CopyOptions{})
	var ce *content.CopyError
	if !errors.As(err, &ce) || ce.End != "source" {
		t.Errorf("unknown image: %v", err)
	}
	full := errors.New("full")
	_, err = content.Copy(t.Context(), refusing{ocitest.NewMemory(), full}, to, ocitest.Fill(from, ocitest.One()), from, content.CopyOptions{})
	if !errors.As(err, &ce) || ce.End != "destination" || !errors.Is(err, full) {
		t.Errorf("full destination: %v", err)
	}
}

type refusing struct {
	*ocitest.Memory
	err error
}

func (r refusing) Put(context.Context, oci.Descriptor, io.Reader) error { return r.err }

func TestCopyRefusesHostileTrees(t *testing.T) {
	deep := ocitest.One()
	for range 20 {
		deep = custom(t, []*ocitest.Image{deep}, deep.Target)
	}
	if _, err := content.Copy(t.Context(), ocitest.NewMemory(), to, ocitest.Fill(from, deep), from, content.CopyOptions{}); !errors.Is(err, oci.ErrInvalid) {
		t.Errorf("twenty indexes in each other: %v, want ErrInvalid", err)
	}
	// Each level names all of the level below: 8⁶ paths, 49 manifests.
	level := []*ocitest.Image{ocitest.One()}
	for depth := range 6 {
		var next []*ocitest.Image
		for i := range 8 {
			var entries []oci.Descriptor
			for _, below := range level {
				entries = append(entries, on(below.Target, fmt.Sprint("a", depth, "-", i), ""))
			}
			next = append(next, custom(t, level, entries...))
		}
		level = next
	}
	top := level[0]
	src := ocitest.Fill(from, top)
	if _, err := content.Copy(t.Context(), ocitest.NewMemory(), to, src, from, content.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	for d, n := range src.Opened {
		if n != 1 {
			t.Fatalf("%s was read %d times", d, n)
		}
	}
}

func TestCopyRefusesAForeignLayer(t *testing.T) {
	im := ocitest.Docker()
	m := im.Manifest()
	m.Layers[0].MediaType = oci.MediaTypeDockerForeign
	body, _ := json.Marshal(m)
	im.Target = oci.DescriptorOf(oci.MediaTypeDockerMani, body)
	im.Blobs[len(im.Blobs)-1] = ocitest.Blob{Descriptor: im.Target, Body: body}
	src := ocitest.Fill(from, im)
	src.Drop(m.Layers[0].Digest)
	_, err := content.Copy(t.Context(), ocitest.NewMemory(), to, src, from, content.CopyOptions{})
	if !errors.Is(err, oci.ErrUnsupported) || !strings.Contains(err.Error(), "foreign") {
		t.Errorf("error is %v, want one that says foreign", err)
	}
}

// resuming is a Memory that keeps partial blobs.
type resuming struct {
	*ocitest.Memory
	kept map[oci.Digest][]byte
}

type partial struct {
	r resuming
	d oci.Descriptor
	b []byte
}

func (r resuming) Resume(ctx context.Context, d oci.Descriptor) (content.Partial, error) {
	return &partial{r, d, r.kept[d.Digest]}, nil
}

func (p *partial) Write(b []byte) (int, error) { p.b = append(p.b, b...); return len(b), nil }
func (p *partial) Offset() int64               { return int64(len(p.b)) }
func (p *partial) Reset() error                { p.b = nil; return nil }
func (p *partial) Close() error                { return nil }
func (p *partial) Commit(ctx context.Context) error {
	delete(p.r.kept, p.d.Digest)
	return p.r.Put(ctx, p.d, bytes.NewReader(p.b))
}

// openOnly hides that a Memory can start in the middle.
type openOnly struct{ content.Source }

func TestCopyResumes(t *testing.T) {
	im := ocitest.Make(ocitest.Spec{Layers: [][]byte{ocitest.Layer("f", strings.Repeat("x", 1000))}})
	layer := im.Layers()[0]
	half := layer.Body[:len(layer.Body)/2]
	for name, c := range map[string]struct {
		kept   []byte
		source func(*ocitest.Memory) content.Source
	}{
		"from nothing":                      {nil, nil},
		"from the middle":                   {half, nil},
		"all was there but the commit":      {layer.Body, nil},
		"more than all":                     {append(bytes.Clone(layer.Body), 'x'), nil},
		"what was kept is damaged":          {bytes.Repeat([]byte{'?'}, len(half)), nil},
		"all that was kept is damaged":      {bytes.Repeat([]byte{'?'}, len(layer.Body)), nil},
		"a source that cannot start midway": {half, func(m *ocitest.Memory) content.Source { return openOnly{m} }},
	} {
		t.Run(name, func(t *testing.T) {
			dst := resuming{ocitest.NewMemory(), map[oci.Digest][]byte{layer.Digest: bytes.Clone(c.kept)}}
			var src content.Source = ocitest.Fill(from, im)
			if c.source != nil {
				src = c.source(src.(*ocitest.Memory))
			}
			var mu sync.Mutex
			var last int64
			_, err := content.Copy(t.Context(), dst, to, src, from, content.CopyOptions{Parallel: 1, Progress: func(e content.Event) {
				mu.Lock()
				defer mu.Unlock()
				if e.Kind == content.Done && e.Descriptor.Digest == layer.Digest {
					last = e.Current
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			got, err := content.ReadAll(t.Context(), dst, layer.Descriptor)
			if err != nil || digest.FromBytes(got) != layer.Digest {
				t.Errorf("the copy differs: %v", err)
			}
			if last != layer.Size {
				t.Errorf("progress ended at %d of %d", last, layer.Size)
			}
		})
	}
	t.Run("a source that lies", func(t *testing.T) {
		src := ocitest.NewMemory()
		bad := ocitest.Make(ocitest.Spec{Layers: [][]byte{layer.Body}})
		for i := range bad.Blobs {
			if bad.Blobs[i].Digest == layer.Digest {
				bad.Blobs[i].Body = bytes.Repeat([]byte{'!'}, len(layer.Body))
			}
		}
		src.Add(from, bad)
		dst := resuming{ocitest.NewMemory(), map[oci.Digest][]byte{}}
		_, err := content.Copy(t.Context(), dst, to, src, from, content.CopyOptions{})
		var ce *content.CopyError
		if !errors.Is(err, oci.ErrCorrupt) || !errors.As(err, &ce) || ce.End != "source" {
			t.Errorf("error is %v, want ErrCorrupt of the source", err)
		}
	})
}

// registry is a Memory like a repository of a registry: it mounts.
type registry struct {
	*ocitest.Memory
	neighbour *ocitest.Memory
	asked     *[]string
}

func (r registry) Mount(ctx context.Context, d oci.Descriptor, from ref.Ref) (bool, error) {
	*r.asked = append(*r.asked, from.Path)
	body, err := content.ReadAll(ctx, r.neighbour, d)
	if err != nil {
		return false, nil
	}
	return true, r.Put(ctx, d, bytes.NewReader(body))
}

// remembering is a Memory that knows origins.
type remembering struct {
	*ocitest.Memory
	mu      *sync.Mutex
	origins map[oci.Digest][]ref.Ref
}

func (m remembering) Origins(ctx context.Context, d oci.Descriptor) ([]ref.Ref, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.origins[d.Digest]), nil
}

func (m remembering) RecordOrigin(ctx context.Context, r ref.Ref, d oci.Descriptor) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.origins[d.Digest] = append(m.origins[d.Digest], r)
	return nil
}

func TestCopyMountsFromWhereABlobIsKnown(t *testing.T) {
	im := ocitest.Two()
	src := remembering{ocitest.Fill(from, im), new(sync.Mutex), map[oci.Digest][]ref.Ref{}}
	var asked []string
	dst := registry{ocitest.NewMemory(), ocitest.Fill(from, im), &asked}
	target := ref.Ref{Domain: "reg.test", Path: "new", Tag: "v1"}
	layer := im.Layers()[0].Descriptor
	for i := range 10 {
		src.origins[layer.Digest] = append(src.origins[layer.Digest], ref.Ref{Domain: "reg.test", Path: fmt.Sprint("old", i)}, ref.Ref{Domain: "other.test", Path: "x"})
	}
	dst.neighbour.Drop(layer.Digest)
	if _, err := content.Copy(t.Context(), dst, target, src, from, content.CopyOptions{Parallel: 1}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"old0", "old1", "old2", "old3"}; !slices.Equal(asked, want) {
		t.Errorf("asked for a mount from %v, want %v: this registry's own, and not all of them", asked, want)
	}
	for _, b := range im.Blobs[:3] {
		if !slices.Contains(src.origins[b.Digest], target) {
			t.Errorf("the source does not remember that %s is in %s now", b.MediaType, target)
		}
	}
}

func TestCopyRemembersNoOriginWhereThereIsNoRegistry(t *testing.T) {
	dst := remembering{ocitest.NewMemory(), new(sync.Mutex), map[oci.Digest][]ref.Ref{}}
	if _, err := content.Copy(t.Context(), dst, to, ocitest.Fill(from, ocitest.Two()), from, content.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(dst.origins) != 0 {
		t.Errorf("an archive's names were taken for repositories: %v", dst.origins)
	}
}

// ordered notes in which order blobs are put.
type ordered struct {
	*ocitest.Memory
	puts *[]oci.Digest
}

func (ordered) WritesInOrder() {}
func (o ordered) Put(ctx context.Context, d oci.Descriptor, r io.Reader) error {
	*o.puts = append(*o.puts, d.Digest)
	return o.Memory.Put(ctx, d, r)
}

func TestCopyKeepsOrderForAnOrderedSink(t *testing.T) {
	im := ocitest.TwoPlatforms()
	var first []oci.Digest
	for range 20 {
		var puts []oci.Digest
		if _, err := content.Copy(t.Context(), ordered{ocitest.NewMemory(), &puts}, to, ocitest.Fill(from, im), from, content.CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = puts
		}
		if !slices.Equal(puts, first) {
			t.Fatal("two copies wrote in different orders")
		}
	}
}

func TestCopyTakesWhatASparseSourceHolds(t *testing.T) {
	im := ocitest.TwoPlatforms()
	ix := index(t, ocitest.Fill(from, im), im.Target)
	src := ocitest.Fill(from, im)
	src.Drop(ix.Manifests[1].Digest)
	strict, sparse := ocitest.NewMemory(), ocitest.NewSparse()
	got, err := content.Copy(t.Context(), strict, to, src, from, content.CopyOptions{})
	if err != nil || got.Digest != ix.Manifests[0].Digest {
		t.Errorf("a sink that wants all of an index gets %s, %v; want the one image", got.Digest, err)
	}
	got, err = content.Copy(t.Context(), sparse, to, src, from, content.CopyOptions{})
	if err != nil || got.Digest != im.Target.Digest {
		t.Errorf("a sparse sink gets %s, %v; want the index", got.Digest, err)
	}
	src.Drop(ix.Manifests[0].Digest)
	if _, err := content.Copy(t.Context(), sparse, to, src, from, content.CopyOptions{}); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("an index of which nothing is there: %v, want ErrNotFound", err)
	}
}
