package store

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
)

// partial implements content.Partial: a file below partial/, locked.
type partial struct {
	s    *Store
	ctx  context.Context // values only: the lease that what is committed goes to
	d    oci.Descriptor
	a    *aside
	h    hash.Hash
	over bool // there was more than d.Size
	done bool
}

// Resume implements content.Resumer.
func (s *Store) Resume(ctx context.Context, d oci.Descriptor) (content.Partial, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, err
	}
	if s.readOnly != "" {
		return nil, s.cannotWrite(s.readOnly)
	}
	name := d.Digest.Encoded()
	if d.Digest.Algorithm() != digest.SHA256 {
		name = string(d.Digest.Algorithm()) + "-" + name
	}
	path := s.path("partial", name)
	f, err := lockedFile(path, false)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("blob %s is being written by another process: %w", d.Digest, oci.ErrConflict)
	}
	if err != nil {
		return nil, s.failed(path, err)
	}
	p := &partial{s: s, ctx: context.WithoutCancel(ctx), d: d, a: &aside{s: s, f: f, path: path}, h: d.Digest.Algorithm().Hash()}
	// What is there was not necessarily written by a healthy machine: it is
	// hashed again from the file, at memory speed.
	if p.a.n, err = io.CopyBuffer(p.h, onlyReader{f}, buffer(-1)); err != nil {
		f.Close()
		return nil, s.failed(path, err)
	}
	p.a.flushed = p.a.n
	return p, nil
}

// onlyReader hides everything but Read.
type onlyReader struct{ io.Reader }

func (p *partial) Offset() int64 { return p.a.n }

func (p *partial) Write(b []byte) (int, error) {
	if p.done {
		return 0, os.ErrClosed
	}
	all := len(b)
	if room := max(p.d.Size-p.a.n, 0); int64(len(b)) > room {
		p.over, b = true, b[:room]
	}
	n, err := p.a.Write(b)
	p.h.Write(b[:n])
	if err != nil {
		return n, p.s.failed(p.a.path, err)
	}
	return all, nil
}

func (p *partial) Reset() error {
	p.a.finish() // what it wrote goes, and why it failed with it
	p.h.Reset()
	p.over, p.a.n, p.a.flushed, p.a.err = false, 0, 0, nil
	if _, err := p.a.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return p.s.failed(p.a.path, p.a.f.Truncate(0))
}

func (p *partial) Commit(ctx context.Context) error {
	if p.done {
		return os.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err // the bytes stay for later
	}
	p.done = true
	defer p.a.discard()
	if p.over {
		return &oci.SizeError{Digest: p.d.Digest, Want: p.d.Size, Got: -1}
	}
	if p.a.n != p.d.Size {
		return &oci.SizeError{Digest: p.d.Digest, Want: p.d.Size, Got: p.a.n}
	}
	if got := digest.NewDigest(p.d.Digest.Algorithm(), p.h); got != p.d.Digest {
		return &oci.DigestError{Want: p.d.Digest, Got: got}
	}
	if err := p.a.finish(); err != nil {
		return err
	}
	if leaseOf(ctx) == nil {
		ctx = p.ctx
	}
	if oci.IsManifest(p.d.MediaType) || oci.IsIndex(p.d.MediaType) {
		if _, err := p.a.f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return p.s.putManifest(ctx, p.d, p.a.f)
	}
	return p.s.admit(ctx, p.a, p.d, nil)
}

func (p *partial) Close() error {
	if p.done {
		return nil
	}
	p.done = true
	err := p.a.finish() // the bytes stay for later
	if p.a.n == 0 {
		os.Remove(p.a.path)
	}
	return errors.Join(err, p.a.f.Close())
}
