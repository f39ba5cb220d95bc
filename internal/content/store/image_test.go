package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

func familiar(refs []ref.Ref) string {
	var s []string
	for _, r := range refs {
		s = append(s, r.Familiar())
	}
	return strings.Join(s, " ")
}

func images(t testing.TB, s *store.Store) []store.Image {
	t.Helper()
	all, err := s.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// lines is what `images` would show: names or <none>, sorted as they come.
func lines(t testing.TB, s *store.Store) map[oci.Digest]string {
	t.Helper()
	m := map[oci.Digest]string{}
	for _, im := range images(t, s) {
		if _, twice := m[im.ID]; twice {
			t.Errorf("%s is listed twice", im.ID)
		}
		m[im.ID] = familiar(im.Names)
	}
	return m
}

func numbered(i int) *ocitest.Image {
	return ocitest.Make(ocitest.Spec{
		Layers:  [][]byte{ocitest.Layer("etc/", "", "etc/base", "base"), ocitest.Layer("n", fmt.Sprint("image ", i))},
		Packing: content.Gzip, Env: []string{fmt.Sprint("N=", i)},
	})
}

func TestImages(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir())
	one, two, index := ocitest.One(), ocitest.Two(), ocitest.TwoPlatforms()
	put(t, ctx, s, one, "one", "again:1")
	put(t, ctx, s, two)
	put(t, ctx, s, index, "multi")
	art := ocitest.Artifact(one.Target, "application/x", "note")
	put(t, ctx, s, art)
	got := lines(t, s)
	id := func(im *ocitest.Image) oci.Digest { return im.Manifest().Config.Digest }
	want := map[oci.Digest]string{id(one): "again:1 one:latest", id(two): "", id(index): "multi:latest"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("images are\n%v, want\n%v", got, want)
	}
	for _, im := range images(t, s) {
		if im.ID == id(index) {
			if im.Target.Digest != index.Target.Digest || im.Manifest.Digest == im.Target.Digest || im.Platform.Architecture != content.Host().Architecture {
				t.Errorf("the index shows %+v", im)
			}
		}
		if im.ID == id(two) {
			if im.SizeExact || im.Size < 128<<10 {
				t.Errorf("estimate of a packed image: %d, exact %v", im.Size, im.SizeExact)
			}
			for _, l := range im.Layers {
				if _, err := s.TOC(ctx, l); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, im := range images(t, s) {
		if im.ID == id(two) && (!im.SizeExact || im.Size != 128<<10+int64(len("#!/bin/sh\necho hello\nID=tiny\n"))) {
			t.Errorf("size with TOCs: %d, exact %v", im.Size, im.SizeExact)
		}
	}
	// A tag that moves leaves the old image without a name; an index likewise.
	put(t, ctx, s, two, "one", "again:1", "multi")
	got = lines(t, s)
	if n, ok := got[id(one)]; !ok || n != "" {
		t.Errorf("an image that lost its names: %q, listed %v", n, ok)
	}
	if n, ok := got[id(index)]; !ok || n != "" {
		t.Errorf("an index that lost its name: %q, listed %v", n, ok)
	}
	if got[id(two)] != "again:1 multi:latest one:latest" {
		t.Errorf("names: %q", got[id(two)])
	}
	log, err := s.TagLog(ctx, name(t, "one"))
	if err != nil || len(log) != 2 || log[0].Digest != two.Target.Digest || log[1].Digest != one.Target.Digest {
		t.Errorf("TagLog = %v, %v", log, err)
	}
	// A tagged artifact is listed by its manifest, and breaks nothing.
	if err := s.Tag(ctx, name(t, "note:1"), art.Target); err != nil {
		t.Fatal(err)
	}
	if got := lines(t, s)[art.Target.Digest]; got != "note:1" {
		t.Errorf("artifact is listed as %q", got)
	}
}

func TestWorkInFlightIsNotListed(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, release := lease(t, s)
	put(t, ctx, s, ocitest.One())
	if n := len(images(t, s)); n != 0 {
		t.Errorf("%d images while the pull goes on", n)
	}
	release()
	if n := len(images(t, s)); n != 1 {
		t.Errorf("%d images after a build without a name, want 1", n)
	}
	if err := s.PutRecord(t.Context(), store.Record{Bucket: "cache", Key: "k", Holds: []oci.Digest{ocitest.One().Target.Digest}}); err != nil {
		t.Fatal(err)
	}
	if n := len(images(t, s)); n != 0 {
		t.Errorf("%d images where only the build cache holds one", n)
	}
}

// A config that arrives after its manifest completes it.
func TestConfigLast(t *testing.T) {
	s := open(t, t.TempDir())
	one := ocitest.Two()
	for i := len(one.Blobs) - 1; i >= 0; i-- {
		put(t, t.Context(), s, &ocitest.Image{Blobs: one.Blobs[i : i+1]})
	}
	all := images(t, s)
	if len(all) != 1 || len(all[0].Layers) != 2 || all[0].Size < 128<<10 {
		t.Errorf("images: %+v", all)
	}
}

func TestFind(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir())
	one, two, index := ocitest.One(), ocitest.Two(), ocitest.TwoPlatforms()
	put(t, ctx, s, one, "one", "localhost:5000/x:1")
	put(t, ctx, s, index, "multi")
	id := one.Manifest().Config.Digest
	// An image whose name is the beginning of another's ID: the name wins.
	put(t, ctx, s, two, id.Encoded()[:4])
	if err := s.Tag(ctx, name(t, "localhost:5000/x").WithDigest(one.Target.Digest), one.Target); err != nil {
		t.Fatal(err)
	}
	var arm oci.Digest
	for _, b := range index.Blobs {
		if strings.Contains(string(b.Body), `"architecture":"arm64"`) && b.MediaType == oci.MediaTypeConfig {
			arm = b.Digest
		}
	}
	for _, c := range []struct {
		name   string
		id     oci.Digest
		target oci.Digest
		err    error
	}{
		{"one", id, one.Target.Digest, nil},
		{"docker.io/library/one:latest", id, one.Target.Digest, nil},
		{"one:2", "", "", oci.ErrNotFound},
		{string(id), id, one.Target.Digest, nil},
		{id.Encoded(), id, one.Target.Digest, nil},
		{id.Encoded()[:12], id, one.Target.Digest, nil},
		{string(id)[:15], id, one.Target.Digest, nil},
		{id.Encoded()[:4], two.Manifest().Config.Digest, two.Target.Digest, nil},
		{string(one.Target.Digest), id, one.Target.Digest, nil},
		{"localhost:5000/x@" + string(one.Target.Digest), id, one.Target.Digest, nil},
		{"localhost:5000/x:1@" + string(one.Target.Digest), id, one.Target.Digest, nil},
		{"one@" + string(two.Target.Digest), "", "", oci.ErrNotFound},
		{"multi", index.Manifest().Config.Digest, index.Target.Digest, nil},
		{string(index.Target.Digest), index.Manifest().Config.Digest, index.Target.Digest, nil},
		{string(arm), arm, "", nil},
		{"", "", "", oci.ErrInvalid},
		{"sha256:", "", "", oci.ErrInvalid},
		{"UPPER", "", "", oci.ErrInvalid},
		{strings.Repeat("0", 64), "", "", oci.ErrNotFound},
		{"a'b\"c;--", "", "", oci.ErrInvalid},
	} {
		im, err := s.Find(ctx, c.name)
		if c.err != nil {
			if !errors.Is(err, c.err) {
				t.Errorf("Find %q: error %v, want %v", c.name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("Find %q: %v", c.name, err)
			continue
		}
		if im.ID != c.id || c.target != "" && im.Target.Digest != c.target {
			t.Errorf("Find %q = %s through %s", c.name, im.ID, im.Target.Digest)
		}
	}
	im, err := s.Find(ctx, "one")
	if err != nil || familiar(im.Names) != "one:latest localhost:5000/x:1" || familiar(im.Digests) != "localhost:5000/x@"+string(one.Target.Digest) {
		t.Errorf("Find gives names %v and digests %v, %v", im.Names, im.Digests, err)
	}
	if _, err := s.Find(ctx, "nosuch"); err == nil || err.Error() != "No such image: nosuch:latest" {
		t.Errorf("error %q", err)
	}
	// 300 images: some prefix of one digit is ambiguous.
	for i := range 40 {
		put(t, ctx, s, numbered(i))
	}
	ambiguous := false
	for _, h := range "0123456789abcdef" {
		_, err := s.Find(ctx, string(h))
		ambiguous = ambiguous || errors.Is(err, oci.ErrInvalid)
	}
	if !ambiguous {
		t.Error("no prefix of one digit is ambiguous")
	}
}

func TestUntag(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir())
	one := ocitest.One()
	put(t, ctx, s, one, "one")
	d, err := s.Untag(ctx, name(t, "one"))
	if err != nil || d.Digest != one.Target.Digest || d.Size != one.Target.Size || d.MediaType != one.Target.MediaType {
		t.Errorf("Untag = %v, %v", d, err)
	}
	if _, err := s.Untag(ctx, name(t, "one")); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a second Untag: %v", err)
	}
	if err := s.Tag(ctx, name(t, "two:1"), ocitest.Two().Target); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a tag of what is not there: %v", err)
	}
	log, err := s.TagLog(ctx, name(t, "one"))
	if err != nil || len(log) != 2 || log[0].Digest != "" {
		t.Errorf("TagLog = %v, %v", log, err)
	}
}

// What was pulled from a repository, or pushed to it, has its digest there.
func TestRepositoryDigests(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir())
	im := ocitest.Two()
	from := name(t, "localhost:5000/app:1")
	for _, b := range im.Blobs {
		if err := s.RecordOrigin(ctx, from, b.Descriptor); err != nil {
			t.Fatal(err)
		}
	}
	put(t, ctx, s, im, "localhost:5000/app:1", "other")
	// A tag of what shares content with a repository is not what it knows.
	if found, err := s.Find(ctx, "other"); err != nil || len(found.Digests) != 0 {
		t.Errorf("digests of a tag %v, %v", found, err)
	}
	from.Digest = im.Target.Digest
	for range 2 {
		if err := s.Tag(ctx, from, im.Target); err != nil {
			t.Fatal(err)
		}
	}
	found, err := s.Find(ctx, "other")
	if err != nil || familiar(found.Digests) != "localhost:5000/app@"+string(im.Target.Digest) {
		t.Errorf("digests %v, %v", found, err)
	}
	origins, err := s.Origins(ctx, im.Manifest().Layers[0])
	if err != nil || familiar(origins) != "localhost:5000/app" {
		t.Errorf("origins %v, %v", origins, err)
	}
}
