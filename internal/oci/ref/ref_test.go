package ref

import (
	"errors"
	"strings"
	"testing"

	"github.com/distribution/reference"

	"github.com/strake-project/strake/internal/oci"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// What people write means what docker takes it for, and is printed as docker
// prints it: each line is the input, its canonical and its familiar form.
func TestParse(t *testing.T) {
	for _, c := range [][3]string{
		{"busybox", "docker.io/library/busybox", "busybox"},
		{"busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"},
		{"library/busybox", "docker.io/library/busybox", "busybox"},
		{"docker.io/busybox", "docker.io/library/busybox", "busybox"},
		{"index.docker.io/you/web", "docker.io/you/web", "you/web"},
		{"you/web@sha256:" + hex64, "docker.io/you/web@sha256:" + hex64, "you/web@sha256:" + hex64},
		{"you/web:1@sha256:" + hex64, "docker.io/you/web:1@sha256:" + hex64, "you/web:1@sha256:" + hex64},
		{"localhost/web", "localhost/web", "localhost/web"},
		{"localhost:5000/web:1", "localhost:5000/web:1", "localhost:5000/web:1"},
		{"[::1]:5000/web", "[::1]:5000/web", "[::1]:5000/web"},
		{"LOCAL/web", "LOCAL/web", "LOCAL/web"},
		{"r.example/a/b/c:x", "r.example/a/b/c:x", "r.example/a/b/c:x"},
		{"docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"},
		{"a__b/c-d.e", "docker.io/a__b/c-d.e", "a__b/c-d.e"},
	} {
		r, err := Parse(c[0])
		if err != nil {
			t.Errorf("%s: %v", c[0], err)
			continue
		}
		if r.String() != c[1] || r.Familiar() != c[2] {
			t.Errorf("%s is %s (%s), not %s (%s)", c[0], r, r.Familiar(), c[1], c[2])
		}
	}
}

// A bad name is refused in docker's words.
func TestParseRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"":                    "invalid reference format",
		"UPPER":               "invalid reference format: repository name (library/UPPER) must be lowercase",
		"a:":                  "invalid reference format",
		"a@sha256:12":         "invalid reference format",
		"-a":                  "invalid reference format",
		"a b":                 "invalid reference format",
		"a//b":                "invalid reference format",
		"../a":                "invalid reference format",
		"https://a.example/b": "invalid reference format",
		hex64:                 "invalid repository name (" + hex64 + "), cannot specify 64-byte hexadecimal strings",
	} {
		if _, err := Parse(in); !errors.Is(err, oci.ErrInvalid) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, not %s", in, err, want)
		}
	}
}

// A tag's target has a tag, latest where none is given, and never a digest.
func TestParseTag(t *testing.T) {
	if r, err := ParseTag("you/web"); err != nil || r.Familiar() != "you/web:latest" {
		t.Errorf("you/web is %s, %v", r.Familiar(), err)
	}
	for in, want := range map[string]string{
		"web@sha256:" + hex64: "refusing to create a tag with a digest reference",
		"sha256:abc":          ErrAmbiguousAlgorithm.Error(),
	} {
		if _, err := ParseTag(in); !errors.Is(err, oci.ErrInvalid) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, not %s", in, err, want)
		}
	}
}

// The forms of a repository drop what they say they drop.
func TestWith(t *testing.T) {
	r, err := Parse("r.example/a:1@sha256:" + hex64)
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		r.WithTag("2").String():                                 "r.example/a:2",
		r.WithDigest("sha256:" + hex64).String():                "r.example/a@sha256:" + hex64,
		r.WithDefaultTag().String():                             r.String(),
		r.Repository():                                          "r.example/a",
		(Ref{Domain: "d", Path: "p"}).WithDefaultTag().String(): "d/p:latest",
	} {
		if got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}

// Whatever is accepted is what docker's own library accepts, is printed as that
// prints it, and is itself again when its canonical form is read back. (The
// familiar form of docker.io/localhost/x is another repository's, as docker's.)
func FuzzParse(f *testing.F) {
	for _, s := range []string{"busybox", "a:1", "r.example:5000/a/b:c@sha256:" + hex64, "docker.io/library/a", "library/a/b", "LOCAL/x",
		"[::1]:1/x", "index.docker.io/x", "a@sha512:" + hex64 + hex64, "localhost/x", "docker.io/localhost/x", hex64, "a..b/c", "x.y:80/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		theirs, theirErr := reference.ParseNormalizedNamed(s)
		r, err := Parse(s)
		if (err == nil) != (theirErr == nil) {
			t.Fatalf("%q: %v, docker: %v", s, err, theirErr)
		}
		if err != nil {
			if !errors.Is(err, oci.ErrInvalid) {
				t.Fatalf("%q: %v is not ErrInvalid", s, err)
			}
			return
		}
		if r.String() != theirs.String() || r.Familiar() != reference.FamiliarString(theirs) {
			t.Fatalf("%q is %s (%s), docker: %s (%s)", s, r, r.Familiar(), theirs, reference.FamiliarString(theirs))
		}
		if want := reference.TagNameOnly(theirs).String(); r.WithDefaultTag().String() != want {
			t.Fatalf("%q with its default is %s, docker: %s", s, r.WithDefaultTag(), want)
		}
		if again, err := Parse(r.String()); err != nil || again != r {
			t.Fatalf("%q as %q is read back as %+v, %v, not %+v", s, r, again, err, r)
		}
	})
}
