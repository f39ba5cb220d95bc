// Package ref reads and prints image references the way docker does: a name
// without a registry means docker.io, one without a namespace means library/,
// and a name without tag or digest means the tag latest wherever an image is
// asked for.
package ref

import (
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"

	"github.com/strake-project/strake/internal/oci"
)

// Ref is a parsed reference. Domain and Path are always set ("docker.io",
// "library/busybox"); Tag and Digest may both be empty, or both be set, where
// the digest decides and the tag is for people.
type Ref struct {
	Domain, Path, Tag string
	Digest            oci.Digest
}

// Parse reads a reference and leaves out what it leaves out. Its errors are
// docker's words, such as "invalid reference format: repository name
// (library/UPPER) must be lowercase", and wrap oci.ErrInvalid.
func Parse(s string) (Ref, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Ref{}, invalid{err}
	}
	r := Ref{Domain: reference.Domain(named), Path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
	}
	return r, nil
}

// ParseImage is Parse with latest where neither tag nor digest is given.
func ParseImage(s string) (Ref, error) {
	r, err := Parse(s)
	if err != nil {
		return r, err
	}
	return r.WithDefaultTag(), nil
}

type invalid struct{ err error }

func (e invalid) Error() string        { return e.err.Error() }
func (e invalid) Unwrap() error        { return e.err }
func (e invalid) Is(target error) bool { return target == oci.ErrInvalid }

// WithDefaultTag returns r, with the tag latest if it has neither tag nor digest.
func (r Ref) WithDefaultTag() Ref {
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r
}

// WithTag returns r's repository with that tag and no digest.
func (r Ref) WithTag(tag string) Ref { return Ref{Domain: r.Domain, Path: r.Path, Tag: tag} }

// WithDigest returns r's repository with that digest and no tag.
func (r Ref) WithDigest(d oci.Digest) Ref { return Ref{Domain: r.Domain, Path: r.Path, Digest: d} }

// Repository is the canonical name without tag and digest: "docker.io/library/busybox".
func (r Ref) Repository() string { return r.Domain + "/" + r.Path }

// String is the canonical form: "docker.io/library/busybox:latest".
func (r Ref) String() string { return r.Repository() + r.suffix() }

// Familiar is docker's short form: "busybox:latest".
func (r Ref) Familiar() string { return r.FamiliarName() + r.suffix() }

// FamiliarName is docker's short form of the repository: "busybox".
func (r Ref) FamiliarName() string {
	if r.Domain != "docker.io" {
		return r.Repository()
	}
	if p, ok := strings.CutPrefix(r.Path, "library/"); ok && !strings.Contains(p, "/") {
		return p
	}
	return r.Path
}

func (r Ref) suffix() string {
	s := ""
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// ErrAmbiguousAlgorithm is docker's refusal of a tag such as "sha256:abc".
var ErrAmbiguousAlgorithm = errors.New("refusing to create an ambiguous tag using digest algorithm as name")

// ParseTag reads the target of tag, build -t and commit: no digest, latest by
// default. Its errors are docker's words and wrap oci.ErrInvalid.
func ParseTag(s string) (Ref, error) {
	r, err := ParseImage(s)
	if err != nil {
		return r, err
	}
	if r.Digest != "" {
		return r, fmt.Errorf("refusing to create a tag with a digest reference: %w", oci.ErrInvalid)
	}
	if r.FamiliarName() == "sha256" {
		return r, invalid{ErrAmbiguousAlgorithm}
	}
	return r, nil
}
