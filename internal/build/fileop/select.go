package fileop

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// NotFoundError says that a copy's source does not exist. It reads as docker
// prints it after "failed to calculate checksum of ref REF: ".
// errors.Is(err, oci.ErrNotFound) is true of it.
type NotFoundError struct{ Path string }

func (e *NotFoundError) Error() string { return fmt.Sprintf("%q: not found", e.Path) }

// Is makes a NotFoundError an ErrNotFound.
func (e *NotFoundError) Is(target error) bool { return target == oci.ErrNotFound }

// Hasher is a View that can compute many digests at once better than one by
// one. Paths are of regular files.
type Hasher interface {
	Hash(ctx context.Context, paths []string) error
}

// Prefetcher is a View that can look at all below a path at once better than
// one directory at a time.
type Prefetcher interface {
	Prefetch(ctx context.Context, path string) error
}

// Selected is the digest of all that copy a takes from src, but times: of the
// paths as far as they matter to the result, the types, modes, owners, links,
// xattrs and contents. Two sources of equal digest give equal results to
// copies that differ in Src alone.
//
// A source that does not exist fails with a *NotFoundError, unless a has
// patterns or a wildcard: then nothing is selected, as in docker.
func Selected(ctx context.Context, src tree.View, a *pb.FileActionCopy) (oci.Digest, error) {
	s, err := Select(ctx, src, a)
	if err != nil {
		return "", err
	}
	return s.Digest, nil
}

// Select is Selected, and what it found.
func Select(ctx context.Context, src tree.View, a *pb.FileActionCopy) (*Selection, error) {
	s := &selection{sum: sha256.New(), links: map[string]string{}}
	s.out = bufio.NewWriterSize(s.sum, 64<<10)
	if src == nil {
		src = New(nil)
	}
	filtered := len(a.IncludePatterns) > 0 || len(a.ExcludePatterns) > 0
	all, err := sources(src, a)
	if err != nil && !(a.AllowWildcard || filtered) {
		return nil, &NotFoundError{slash(a.Src)}
	}
	w, err := newWalker(ctx, src, a, s)
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		e, err := src.Lstat(one.at)
		switch {
		case err == nil:
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case filtered:
			continue
		default:
			return nil, &NotFoundError{slash(one.name)}
		}
		if p, ok := src.(Prefetcher); ok && e.Type == layer.Dir {
			if err := p.Prefetch(ctx, e.Path); err != nil {
				return nil, err
			}
		}
		s.begin(one, e, a)
		s.linked = filtered && !(a.AllowWildcard && wildcard(a.Src)) && linkAt(src, one.name)
		if err := w.walk("", e, matches{}); err != nil {
			return nil, err
		}
	}
	if err := s.require(a.RequiredPaths); err != nil {
		return nil, err
	}
	if err := s.hash(ctx, src); err != nil {
		return nil, err
	}
	return &Selection{Digest: digest.NewDigest(digest.SHA256, s.sum), all: s.all}, nil
}

// linkAt tells whether the last component of name is a symlink.
func linkAt(v tree.View, name string) bool {
	at, err := statOf(v).resolve(name, false)
	if err != nil {
		return false
	}
	e := statOf(v)(at)
	return e != nil && e.Type == layer.Symlink
}

// selection collects what a copy takes and hashes it.
type selection struct {
	all     []selected
	pending []selected
	links   map[string]string
	root    string
	// linked: the source is a symlink. It is followed, but to the paths that are
	// required there is nothing below it, as in docker.
	linked bool
	sum    hash.Hash
	out    *bufio.Writer
	buf    []byte
}

type selected struct {
	rel  string
	e    *layer.Entry
	root string // of its source, as named
	kind byte
	link string // of a further name of an inode: the first one selected
	// digest of a regular file, once it was recorded.
	digest oci.Digest
}

// What a record is.
const (
	recordEntry    = 'e'
	recordSource   = 's' // begins a source that goes by its name
	recordContents = 'c' // begins a source of which the contents are taken
)

// begin notes how a source goes to its destination: its name matters only
// where the destination may be a directory it goes into.
func (s *selection) begin(src source, e *layer.Entry, a *pb.FileActionCopy) {
	s.root = slash(src.name)
	clear(s.links) // hard links are kept within one source only
	if e.Type == layer.Dir && a.DirCopyContents {
		s.all = append(s.all, selected{kind: recordContents})
	} else {
		s.all = append(s.all, selected{kind: recordSource, rel: src.base()})
	}
}

func (s *selection) enter(rel string, e *layer.Entry, include bool) error {
	s.pending = append(s.pending, selected{rel: rel, e: e, root: s.root})
	if include {
		s.flush()
	}
	return nil
}

// flush records the directories that waited for something in them to be taken.
func (s *selection) flush() {
	for i := range s.pending {
		if p := &s.pending[i]; p.kind == 0 {
			p.kind = recordEntry
			// Of a source whose contents are taken the directory is not.
			if p.rel != "" || s.all[len(s.all)-1].kind == recordSource {
				s.all = append(s.all, *p)
			}
		}
	}
}

func (s *selection) leave(string, *layer.Entry, bool) error {
	s.pending = s.pending[:len(s.pending)-1]
	return nil
}

func (s *selection) file(rel string, e *layer.Entry) error {
	s.flush()
	one := selected{rel: rel, e: e, root: s.root, kind: recordEntry}
	if e.Type == layer.Regular {
		group := e.Link
		if group == "" {
			group = e.Path
		}
		if first, ok := s.links[group]; ok {
			one.link = "/" + first
		} else {
			s.links[group] = rel
		}
	}
	s.all = append(s.all, one)
	return nil
}

// require fails unless each path is, or begins, that of something selected.
func (s *selection) require(paths []string) error {
	for _, want := range paths {
		want = slash(want)
		if !slices.ContainsFunc(s.all, func(x selected) bool {
			return x.kind == recordEntry && !s.linked && strings.HasPrefix(path.Join(x.root, x.rel), want)
		}) {
			return &NotFoundError{want}
		}
	}
	return nil
}

func (s *selection) hash(ctx context.Context, src tree.View) error {
	if h, ok := src.(Hasher); ok {
		var unknown []string
		for _, x := range s.all {
			if x.e != nil && x.e.Type == layer.Regular && x.e.Digest == "" && x.e.Size > 0 {
				unknown = append(unknown, x.e.Path)
			}
		}
		if len(unknown) > 0 {
			if err := h.Hash(ctx, unknown); err != nil {
				return err
			}
		}
	}
	for i := range s.all {
		if err := s.record(ctx, src, &s.all[i]); err != nil {
			return err
		}
	}
	return s.out.Flush()
}

// record writes x so that no two different ones give the same bytes.
func (s *selection) record(ctx context.Context, src tree.View, x *selected) error {
	b := append(s.buf[:0], x.kind)
	b = field(b, x.rel)
	if e := x.e; e != nil {
		b = append(b, byte(e.Type))
		b = binary.AppendUvarint(b, uint64(e.Mode))
		b = binary.AppendUvarint(b, uint64(e.UID))
		b = binary.AppendUvarint(b, uint64(e.GID))
		b = binary.AppendUvarint(b, uint64(e.DevMajor))
		b = binary.AppendUvarint(b, uint64(e.DevMinor))
		switch {
		case e.Type == layer.Symlink:
			b = field(b, e.Link)
		case e.Type == layer.Regular && x.link != "":
			b = field(b, x.link)
		case e.Type == layer.Regular:
			dg := e.Digest
			if dg == "" {
				var err error
				if dg, err = src.Digest(ctx, e.Path); err != nil {
					return err
				}
			}
			x.digest = dg
			b = field(b, string(dg))
		}
		b = xattrs(b, e.Xattrs)
	}
	s.buf = b
	_, err := s.out.Write(b)
	return err
}

func field(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func xattrs(b []byte, all map[string]string) []byte {
	b = binary.AppendUvarint(b, uint64(len(all)))
	if len(all) == 0 {
		return b
	}
	names := make([]string, 0, len(all))
	for n := range all {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		b = field(field(b, n), all[n])
	}
	return b
}
