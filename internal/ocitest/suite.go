package ocitest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// End is one empty place under test. Every test of the suite asks for a fresh
// one; what it needs cleaned up goes to t.Cleanup.
type End struct {
	// Sink writes to the place.
	Sink content.Sink
	// Source reads from it. The suite calls it after its first writes; an end
	// that must be finished before it can be read does that here.
	Source func(t *testing.T) content.Source
	// Ref is a reference in the place: its domain and path are used, with tags
	// of the suite's own.
	Ref ref.Ref
	// Stream says that the sink writes one stream: a failed Put of a large
	// blob breaks it, and after Source nothing more is written.
	Stream bool
	// Strict says that the sink refuses a manifest whose children it lacks.
	Strict bool
}

// Run checks the contract of package content on an implementation.
func Run(t *testing.T, fresh func(t *testing.T) End) {
	for _, c := range []struct {
		name string
		test func(*testing.T, func(*testing.T) End)
	}{
		{"what was put is resolved and opened", testPutOpen},
		{"unknown names and digests are not found", testUnknown},
		{"a tag moves", testTagMoves},
		{"an image without a tag is reached by its digest", testUntagged},
		{"wrong content is refused and stays invisible", testWrong},
		{"a source that fails leaves nothing", testFailingReader},
		{"putting what is there reads nothing", testPutAgain},
		{"a hostile digest is refused", testHostileDigest},
		{"an empty blob is content like any other", testEmptyBlob},
		{"manifests without children", testChildrenFirst},
		{"reading starts in the middle", testRanges},
		{"an interrupted put resumes", testResume},
		{"a resumed put is verified", testResumeWrong},
		{"tags are listed", testTags},
		{"referrers are listed", testReferrers},
		{"images are copied in", testCopyIn},
		{"images are copied out", testCopyOut},
		{"a second copy transfers nothing", testCopyAgain},
		{"a failed copy moves no tag", testCopyFails},
		{"one platform of an index", testOnePlatform},
		{"many at once", testConcurrent},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, fresh) })
	}
}

func all() map[string]*Image {
	return map[string]*Image{
		"one": One(), "two": Two(), "plain": Plain(), "docker": Docker(), "zstd": Zstd(),
		"index": TwoPlatforms(), "list": DockerList(), "empty": Make(Spec{}),
	}
}

func names(images map[string]*Image) []string {
	var s []string
	for n := range images {
		s = append(s, n)
	}
	sort.Strings(s)
	return s
}

func put(t *testing.T, sink content.Sink, im *Image) {
	t.Helper()
	for _, b := range im.Blobs {
		if err := sink.Put(t.Context(), b.Descriptor, bytes.NewReader(b.Body)); err != nil {
			t.Fatalf("Put %s %s: %v", b.MediaType, b.Digest, err)
		}
	}
}

func tag(t *testing.T, sink content.Sink, r ref.Ref, d oci.Descriptor) {
	t.Helper()
	if err := sink.Tag(t.Context(), r, d); err != nil {
		t.Fatalf("Tag %s: %v", r, err)
	}
}

func has(t *testing.T, sink content.Sink, d oci.Descriptor) bool {
	t.Helper()
	ok, err := sink.Has(t.Context(), d)
	if err != nil {
		t.Fatalf("Has %s: %v", d.Digest, err)
	}
	return ok
}

func open(t *testing.T, src content.Source, d oci.Descriptor) []byte {
	t.Helper()
	body, err := read(t.Context(), src, d)
	if err != nil {
		t.Fatalf("Open %s %s: %v", d.MediaType, d.Digest, err)
	}
	return body
}

func read(ctx context.Context, src content.Source, d oci.Descriptor) ([]byte, error) {
	r, err := src.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// holds checks that src has im, whole, under r.
func holds(t *testing.T, src content.Source, r ref.Ref, im *Image) {
	t.Helper()
	d, err := src.Resolve(t.Context(), r)
	if err != nil {
		t.Fatalf("Resolve %s: %v", r, err)
	}
	same(t, d, im.Target)
	for _, b := range im.Blobs {
		if got := open(t, src, b.Descriptor); !bytes.Equal(got, b.Body) {
			t.Errorf("Open %s %s gives %d bytes that differ from the %d put", b.MediaType, b.Digest, len(got), len(b.Body))
		}
	}
}

func same(t *testing.T, got, want oci.Descriptor) {
	t.Helper()
	pick := func(d oci.Descriptor) []any { return []any{d.MediaType, d.Digest, d.Size} }
	if diff := cmp.Diff(pick(want), pick(got)); diff != "" {
		t.Errorf("descriptor (-want +got):\n%s", diff)
	}
}

func missing(t *testing.T, src content.Source, d oci.Descriptor) {
	t.Helper()
	if _, err := read(t.Context(), src, d); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("Open of %s, which must not be there: error is %v, want ErrNotFound", d.Digest, err)
	}
}

func testPutOpen(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	images := all()
	for _, n := range names(images) {
		im := images[n]
		if has(t, e.Sink, im.Target) {
			t.Errorf("%s is there before it was put", n)
		}
		put(t, e.Sink, im)
		for _, b := range im.Blobs {
			if !has(t, e.Sink, b.Descriptor) {
				t.Errorf("%s: Has is false after Put of %s %s", n, b.MediaType, b.Digest)
			}
		}
		tag(t, e.Sink, e.Ref.WithTag(n), im.Target)
	}
	src := e.Source(t)
	for _, n := range names(images) {
		holds(t, src, e.Ref.WithTag(n), images[n])
		holds(t, src, e.Ref.WithDigest(images[n].Target.Digest), images[n])
	}
}

func testUnknown(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	put(t, e.Sink, One())
	tag(t, e.Sink, e.Ref.WithTag("one"), One().Target)
	absent := Two().Target
	if has(t, e.Sink, absent) {
		t.Errorf("Has of a manifest that was never put")
	}
	src := e.Source(t)
	for _, r := range []ref.Ref{e.Ref.WithTag("absent"), e.Ref.WithDigest(absent.Digest)} {
		if _, err := src.Resolve(t.Context(), r); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("Resolve %s: error is %v, want ErrNotFound", r, err)
		}
	}
	missing(t, src, absent)
	missing(t, src, Two().Manifest().Layers[1])
}

func testTagMoves(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	put(t, e.Sink, One())
	put(t, e.Sink, Two())
	tag(t, e.Sink, e.Ref.WithTag("v1"), One().Target)
	tag(t, e.Sink, e.Ref.WithTag("v1"), One().Target)
	tag(t, e.Sink, e.Ref.WithTag("v1"), Two().Target)
	holds(t, e.Source(t), e.Ref.WithTag("v1"), Two())
}

func testUntagged(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	put(t, e.Sink, One())
	tag(t, e.Sink, e.Ref.WithDigest(One().Target.Digest), One().Target)
	holds(t, e.Source(t), e.Ref.WithDigest(One().Target.Digest), One())
}

func testWrong(t *testing.T, fresh func(*testing.T) End) {
	im := Two()
	// A manifest and a config are small enough for every sink to check first.
	for _, b := range []Blob{im.Layers()[1], {im.Manifest().Config, im.Body(im.Manifest().Config.Digest)}, {im.Target, im.Body(im.Target.Digest)}} {
		for name, body := range map[string][]byte{
			"other bytes of the same length": bytes.Repeat([]byte{'x'}, len(b.Body)),
			"too short":                      b.Body[:len(b.Body)-1],
			"empty":                          nil,
			"too long":                       append(bytes.Clone(b.Body), '\n'),
		} {
			t.Run(fmt.Sprintf("%s as %s", name, b.MediaType), func(t *testing.T) {
				e := fresh(t)
				for _, below := range im.Blobs { // so that a manifest is not refused for its children
					if below.Digest != b.Digest && !oci.IsManifest(below.MediaType) {
						if err := e.Sink.Put(t.Context(), below.Descriptor, bytes.NewReader(below.Body)); err != nil {
							t.Fatal(err)
						}
					}
				}
				err := e.Sink.Put(t.Context(), b.Descriptor, bytes.NewReader(body))
				if !errors.Is(err, oci.ErrCorrupt) {
					t.Fatalf("Put error is %v, want ErrCorrupt", err)
				}
				if has(t, e.Sink, b.Descriptor) {
					t.Error("Has is true after the refused Put")
				}
				if e.Stream {
					return
				}
				missing(t, e.Source(t), b.Descriptor)
				if err := e.Sink.Put(t.Context(), b.Descriptor, bytes.NewReader(b.Body)); err != nil {
					t.Errorf("Put of the right bytes afterwards: %v", err)
				}
			})
		}
	}
}

var errBroken = errors.New("the source broke")

// brokenReader yields body and then fails.
type brokenReader struct{ body io.Reader }

func (b *brokenReader) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if err == io.EOF {
		err = errBroken
	}
	return n, err
}

func testFailingReader(t *testing.T, fresh func(*testing.T) End) {
	b := Two().Layers()[1]
	for _, at := range []int{0, 1, len(b.Body) / 2, len(b.Body) - 1} {
		e := fresh(t)
		err := e.Sink.Put(t.Context(), b.Descriptor, &brokenReader{bytes.NewReader(b.Body[:at])})
		if !errors.Is(err, errBroken) {
			t.Errorf("Put of a source that fails at byte %d: error is %v, want the source's own", at, err)
		}
		if has(t, e.Sink, b.Descriptor) {
			t.Error("Has is true after the failed Put")
		}
		if e.Stream {
			continue
		}
		missing(t, e.Source(t), b.Descriptor)
	}
}

func testPutAgain(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	im := Two()
	put(t, e.Sink, im)
	for _, b := range im.Blobs {
		if err := e.Sink.Put(t.Context(), b.Descriptor, &brokenReader{bytes.NewReader(nil)}); err != nil {
			t.Errorf("second Put of %s: %v", b.MediaType, err)
		}
	}
	tag(t, e.Sink, e.Ref.WithTag("two"), im.Target)
	holds(t, e.Source(t), e.Ref.WithTag("two"), im)
}

func testHostileDigest(t *testing.T, fresh func(*testing.T) End) {
	for _, d := range []oci.Digest{"", "sha256:", "sha256:../../../../etc/passwd", "sha256:abc", "nosuch:" + oci.Digest(One().Target.Digest.Encoded()), "../x"} {
		e := fresh(t)
		err := e.Sink.Put(t.Context(), oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: d, Size: 1}, bytes.NewReader([]byte("x")))
		if err == nil {
			t.Errorf("Put under the digest %q succeeded", d)
		}
		if ok, _ := e.Sink.Has(t.Context(), oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: d, Size: 1}); ok {
			t.Errorf("Has of the digest %q is true", d)
		}
	}
}

func testEmptyBlob(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	im := new(Image)
	m := One().Manifest()
	for _, b := range One().Blobs[:2] {
		im.add(b.MediaType, b.Body)
	}
	m.Layers = append(m.Layers, im.add("application/vnd.example.nothing", nil))
	im.Target = im.addJSON(m.MediaType, m)
	put(t, e.Sink, im)
	tag(t, e.Sink, e.Ref.WithTag("nothing"), im.Target)
	holds(t, e.Source(t), e.Ref.WithTag("nothing"), im)
}

func testChildrenFirst(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	if !e.Strict {
		t.Log("this sink takes a manifest before its children") // nothing of the contract is left untested, so no skip
		return
	}
	im := Two()
	if err := e.Sink.Put(t.Context(), im.Target, bytes.NewReader(im.Body(im.Target.Digest))); err == nil {
		t.Fatal("Put of a manifest succeeded before its children were there")
	}
	if has(t, e.Sink, im.Target) {
		t.Error("Has of the refused manifest is true")
	}
	put(t, e.Sink, im)
}

func testRanges(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	im := Plain()
	put(t, e.Sink, im)
	tag(t, e.Sink, e.Ref.WithTag("plain"), im.Target)
	src, ok := e.Source(t).(content.RangeOpener)
	if !ok {
		t.Log("no RangeOpener") // nothing of the contract is left untested, so no skip
		return
	}
	b := im.Layers()[1]
	n := int64(len(b.Body))
	for _, c := range []struct{ offset, length int64 }{{0, -1}, {0, 1}, {0, n}, {1, -1}, {n / 2, -1}, {n / 2, 100}, {n - 1, 1}, {n - 1, -1}} {
		r, err := src.OpenAt(t.Context(), b.Descriptor, c.offset, c.length)
		if errors.Is(err, oci.ErrUnsupported) {
			continue
		}
		if err != nil {
			t.Fatalf("OpenAt %d, %d: %v", c.offset, c.length, err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		want := b.Body[c.offset:]
		if c.length >= 0 {
			want = want[:c.length]
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("OpenAt %d, %d gives %d bytes (%v), want these %d", c.offset, c.length, len(got), err, len(want))
		}
	}
	if r, err := src.OpenAt(t.Context(), Two().Layers()[1].Descriptor, 1, -1); err == nil {
		_, err = io.ReadAll(r)
		r.Close()
		if !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("OpenAt of an unknown digest: %v, want ErrNotFound", err)
		}
	}
}

func testConcurrent(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	images := all()
	var wg sync.WaitGroup
	for _, n := range names(images) {
		for copyOf := range 2 { // the same content twice at the same moment
			wg.Go(func() {
				for _, b := range images[n].Blobs {
					if err := e.Sink.Put(context.WithoutCancel(t.Context()), b.Descriptor, bytes.NewReader(b.Body)); err != nil {
						t.Errorf("%s: Put %s: %v", n, b.MediaType, err)
						return
					}
				}
				if err := e.Sink.Tag(t.Context(), e.Ref.WithTag(fmt.Sprintf("%s-%d", n, copyOf)), images[n].Target); err != nil {
					t.Errorf("%s: Tag: %v", n, err)
				}
			})
		}
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	src := e.Source(t)
	for _, n := range names(images) {
		for copyOf := range 2 {
			holds(t, src, e.Ref.WithTag(fmt.Sprintf("%s-%d", n, copyOf)), images[n])
		}
	}
}
