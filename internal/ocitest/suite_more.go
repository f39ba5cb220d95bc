package ocitest

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

func resume(t *testing.T, r content.Resumer, d oci.Descriptor) content.Partial {
	t.Helper()
	p, err := r.Resume(t.Context(), d)
	if err != nil {
		t.Fatalf("Resume %s: %v", d.Digest, err)
	}
	return p
}

func write(t *testing.T, p content.Partial, b []byte) {
	t.Helper()
	if n, err := p.Write(b); err != nil || n != len(b) {
		t.Fatalf("Write of %d bytes to a partial blob: %d, %v", len(b), n, err)
	}
}

func testResume(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	sink, ok := e.Sink.(content.Resumer)
	if !ok {
		t.Log("no Resumer") // nothing of the contract is left untested, so no skip
		return
	}
	b := Plain().Layers()[1]
	half := len(b.Body) / 2
	p := resume(t, sink, b.Descriptor)
	if p.Offset() != 0 {
		t.Fatalf("a fresh partial blob has offset %d", p.Offset())
	}
	write(t, p, b.Body[:half])
	if other, err := sink.Resume(t.Context(), b.Descriptor); err == nil {
		other.Close()
		t.Error("two may write one partial blob at once")
	} else if !errors.Is(err, oci.ErrConflict) {
		t.Errorf("Resume while another writes: error is %v, want ErrConflict", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if has(t, e.Sink, b.Descriptor) {
		t.Error("Has is true of half a blob")
	}
	missing(t, e.Source(t), b.Descriptor)

	p = resume(t, sink, b.Descriptor)
	if p.Offset() != int64(half) {
		t.Fatalf("offset after %d bytes is %d", half, p.Offset())
	}
	write(t, p, b.Body[half:])
	if err := p.Commit(t.Context()); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	p.Close()
	if !has(t, e.Sink, b.Descriptor) {
		t.Error("Has is false after Commit")
	}
	if got := open(t, e.Source(t), b.Descriptor); !bytes.Equal(got, b.Body) {
		t.Error("the resumed blob differs from its source")
	}
}

func testResumeWrong(t *testing.T, fresh func(*testing.T) End) {
	b := Plain().Layers()[1]
	half := len(b.Body) / 2
	for name, body := range map[string][]byte{
		"too short": b.Body[half : len(b.Body)-1],
		"too long":  append(bytes.Clone(b.Body[half:]), 'x'),
		"other":     bytes.Repeat([]byte("x"), len(b.Body)-half),
	} {
		t.Run(name, func(t *testing.T) {
			e := fresh(t)
			sink, ok := e.Sink.(content.Resumer)
			if !ok {
				t.Log("no Resumer") // nothing of the contract is left untested, so no skip
				return
			}
			p := resume(t, sink, b.Descriptor)
			write(t, p, b.Body[:half])
			p.Close()
			p = resume(t, sink, b.Descriptor)
			_, err := p.Write(body) // one that notices at once may say so here
			if err == nil {
				err = p.Commit(t.Context())
			}
			p.Close()
			if !errors.Is(err, oci.ErrCorrupt) {
				t.Errorf("Commit error is %v, want ErrCorrupt", err)
			}
			if has(t, e.Sink, b.Descriptor) {
				t.Error("the wrong blob is visible")
			}
			p = resume(t, sink, b.Descriptor)
			if p.Offset() != 0 {
				t.Errorf("%d wrong bytes were kept", p.Offset())
			}
			write(t, p, []byte("rubbish"))
			if err := p.Reset(); err != nil || p.Offset() != 0 {
				t.Errorf("Reset leaves offset %d, %v", p.Offset(), err)
			}
			write(t, p, b.Body)
			if err := p.Commit(t.Context()); err != nil {
				t.Errorf("Commit of the right bytes afterwards: %v", err)
			}
			p.Close()
		})
	}
}

func testTags(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	put(t, e.Sink, One())
	for _, n := range []string{"v2", "latest", "V1", "a.b-c_d"} {
		tag(t, e.Sink, e.Ref.WithTag(n), One().Target)
	}
	src, ok := e.Source(t).(content.TagLister)
	if !ok {
		t.Log("no TagLister") // nothing of the contract is left untested, so no skip
		return
	}
	got, err := src.Tags(t.Context(), e.Ref)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"V1", "a.b-c_d", "latest", "v2"}, got); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
}

func testReferrers(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	one := One()
	sbom, sig := Artifact(one.Target, "application/vnd.example.sbom", "sbom"), Artifact(one.Target, "application/vnd.example.signature", "signed")
	for i, im := range []*Image{one, sbom, sig} {
		put(t, e.Sink, im)
		tag(t, e.Sink, e.Ref.WithTag([]string{"one", "sbom", "sig"}[i]), im.Target)
	}
	src, ok := e.Source(t).(content.ReferrerLister)
	if !ok {
		t.Log("no ReferrerLister") // nothing of the contract is left untested, so no skip
		return
	}
	for kind, want := range map[string][]oci.Digest{
		"":                             {sbom.Target.Digest, sig.Target.Digest},
		"application/vnd.example.sbom": {sbom.Target.Digest},
		"application/vnd.example.none": nil,
	} {
		got, err := src.Referrers(t.Context(), one.Target, kind)
		if err != nil {
			t.Fatalf("Referrers %q: %v", kind, err)
		}
		found := map[oci.Digest]bool{}
		for _, d := range got {
			found[d.Digest] = true
			if d.ArtifactType == "" || d.Annotations["org.example.note"] == "" || d.Size == 0 || d.MediaType != oci.MediaTypeManifest {
				t.Errorf("referrer lacks its artifact type, annotations, size or media type: %+v", d)
			}
		}
		for _, d := range want {
			if !found[d] {
				t.Errorf("Referrers %q does not list %s", kind, d)
			}
		}
		if len(got) != len(want) {
			t.Errorf("Referrers %q lists %d, want %d", kind, len(got), len(want))
		}
	}
	if got, err := src.Referrers(t.Context(), sbom.Target, ""); err != nil || len(got) != 0 {
		t.Errorf("Referrers of a manifest without any: %v, %v", got, err)
	}
}

func testCopyIn(t *testing.T, fresh func(*testing.T) End) {
	images := all()
	e := fresh(t)
	from := ref.Ref{Domain: "memory.test", Path: "in"}
	mem := NewMemory()
	for _, n := range names(images) {
		mem.Add(from.WithTag(n), images[n])
	}
	for _, n := range names(images) {
		d, err := content.Copy(t.Context(), e.Sink, e.Ref.WithTag(n), mem, from.WithTag(n), content.CopyOptions{})
		if err != nil {
			t.Fatalf("Copy %s: %v", n, err)
		}
		same(t, d, images[n].Target)
	}
	src := e.Source(t)
	for _, n := range names(images) {
		holds(t, src, e.Ref.WithTag(n), images[n])
	}
}

func testCopyOut(t *testing.T, fresh func(*testing.T) End) {
	images := all()
	e := fresh(t)
	for _, n := range names(images) {
		put(t, e.Sink, images[n])
		tag(t, e.Sink, e.Ref.WithTag(n), images[n].Target)
	}
	src := e.Source(t)
	for _, n := range names(images) {
		mem, to := NewMemory(), ref.Ref{Domain: "memory.test", Path: "out"}.WithTag(n)
		d, err := content.Copy(t.Context(), mem, to, src, e.Ref.WithTag(n), content.CopyOptions{})
		if err != nil {
			t.Fatalf("Copy %s: %v", n, err)
		}
		same(t, d, images[n].Target)
		holds(t, mem, to, images[n])
		if len(mem.Digests()) != len(images[n].Blobs) {
			t.Errorf("Copy %s moved %d blobs, the image has %d", n, len(mem.Digests()), len(images[n].Blobs))
		}
	}
}

func testCopyAgain(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	from := ref.Ref{Domain: "memory.test", Path: "in", Tag: "two"}
	mem := Fill(from, Two())
	for range 2 {
		if _, err := content.Copy(t.Context(), e.Sink, e.Ref.WithTag("two"), mem, from, content.CopyOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := content.Copy(t.Context(), e.Sink, e.Ref.WithTag("other"), mem, from, content.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, l := range Two().Layers() {
		if n := mem.Opened[l.Digest]; n != 1 {
			t.Errorf("layer %s was opened %d times", l.Digest, n)
		}
	}
	src := e.Source(t)
	holds(t, src, e.Ref.WithTag("two"), Two())
	holds(t, src, e.Ref.WithTag("other"), Two())
}

func testCopyFails(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	put(t, e.Sink, One())
	tag(t, e.Sink, e.Ref.WithTag("v1"), One().Target)
	from := ref.Ref{Domain: "memory.test", Path: "in", Tag: "two"}
	mem := Fill(from, Two())
	mem.Drop(Two().Manifest().Layers[1].Digest)
	_, err := content.Copy(t.Context(), e.Sink, e.Ref.WithTag("v1"), mem, from, content.CopyOptions{})
	if !errors.Is(err, oci.ErrNotFound) {
		t.Fatalf("Copy of an image whose layer is missing: %v, want ErrNotFound", err)
	}
	if has(t, e.Sink, Two().Target) {
		t.Error("the manifest of the failed copy is there")
	}
	holds(t, e.Source(t), e.Ref.WithTag("v1"), One())
}

func testOnePlatform(t *testing.T, fresh func(*testing.T) End) {
	e := fresh(t)
	im := TwoPlatforms()
	from := ref.Ref{Domain: "memory.test", Path: "in", Tag: "both"}
	opt := content.CopyOptions{Platforms: []oci.Platform{{OS: "linux", Architecture: "arm64"}}}
	got, err := content.Copy(t.Context(), e.Sink, e.Ref.WithTag("arm"), Fill(from, im), from, opt)
	if err != nil {
		t.Fatal(err)
	}
	src := e.Source(t)
	at, err := src.Resolve(t.Context(), e.Ref.WithTag("arm"))
	if err != nil {
		t.Fatal(err)
	}
	same(t, at, got)
	d, body, err := content.Manifest(t.Context(), src, at, opt.Platforms[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, sparse := e.Sink.(content.SparseSink); sparse {
		same(t, at, im.Target)
	} else if d.Digest != at.Digest {
		t.Errorf("a sink that takes no sparse index was given %s", at.MediaType)
	}
	children, err := oci.Children(d.MediaType, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range children {
		open(t, src, c)
	}
	missing(t, src, im.Blobs[2].Descriptor) // amd64's config
	_, err = content.Copy(t.Context(), NewMemory(), from, Fill(from, im), from, content.CopyOptions{Platforms: []oci.Platform{{OS: "plan9", Architecture: "amd64"}}})
	if !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("Copy of a platform that there is not: %v, want ErrNotFound", err)
	}
	// A sparse place gives what it holds.
	if _, sparse := e.Sink.(content.SparseSink); sparse {
		to := NewSparse()
		if _, err := content.Copy(t.Context(), to, from, src, e.Ref.WithTag("arm"), content.CopyOptions{}); err != nil {
			t.Fatalf("Copy out of a sparse index: %v", err)
		}
	}
}
