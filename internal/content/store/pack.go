package store

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// Pack implements content.Packer; the result is kept as a further form.
func (s *Store) Pack(ctx context.Context, d oci.Descriptor, c content.Compression) (oci.Descriptor, error) {
	return s.PackLevel(ctx, d, c, nil)
}

// PackLevel is Pack at another level than the usual one, where level is not
// nil. Those bytes are not found by Pack, whose result depends on the layer
// alone.
func (s *Store) PackLevel(ctx context.Context, d oci.Descriptor, c content.Compression, level *int) (oci.Descriptor, error) {
	if err := checkDigest(d.Digest); err != nil {
		return d, err
	}
	packed := d
	switch {
	case !oci.IsPlainLayer(d.MediaType):
		return d, fmt.Errorf("pack %s: media type %q is no plain layer: %w", d.Digest, d.MediaType, oci.ErrInvalid)
	case c == content.Uncompressed:
		return d, nil
	case c != content.Gzip && c != content.Zstd:
		return d, fmt.Errorf("pack %s: compression %q: %w", d.Digest, c, oci.ErrUnsupported)
	}
	packed.MediaType = packedType(d.MediaType, c)
	if level != nil {
		return s.pack(ctx, d, packed.MediaType, c, level)
	}
	err := s.once(ctx, "pack "+string(c)+" "+string(d.Digest), func() error {
		found, err := s.findPacked(ctx, d.Digest, c)
		if err != nil || found.Digest != "" {
			return err
		}
		_, err = s.pack(ctx, d, packed.MediaType, c, nil)
		return err
	})
	if err != nil {
		return d, err
	}
	// Under this caller's own lease, whoever packed it.
	found, err := s.findPacked(ctx, d.Digest, c)
	if err == nil && found.Digest == "" {
		err = fmt.Errorf("pack %s: the result was collected: %w", d.Digest, oci.ErrConflict)
	}
	packed.Digest, packed.Size = found.Digest, found.Size
	return packed, err
}

func packedType(plain string, c content.Compression) string {
	switch {
	case plain == oci.MediaTypeDockerLayer && c == content.Gzip:
		return oci.MediaTypeDockerGzip
	case plain == oci.MediaTypeDockerLayer:
		// There is no zstd in docker's schema 2 proper; this is the name that
		// those who do it all the same use.
		return oci.MediaTypeDockerZstd
	case c == content.Gzip:
		return oci.MediaTypeLayerGzip
	}
	return oci.MediaTypeLayerZstd
}

// findPacked looks for bytes that were seen to be the layer, so packed: made
// here before, or as a registry sent them.
func (s *Store) findPacked(ctx context.Context, diffID oci.Digest, c content.Compression) (oci.Descriptor, error) {
	for {
		var found oci.Descriptor
		err := s.read(ctx, func(t *tx) error {
			return t.each(func(scan func(...any) error) error {
				var d string
				err := scan(&d, &found.Size)
				found.Digest = oci.Digest(d)
				return err
			}, `SELECT p.digest, b.size FROM packed p JOIN blob b ON b.digest = p.digest
				WHERE p.diffid = ? AND p.packing = ? AND p.verified ORDER BY p.digest LIMIT 1`, diffID, string(c))
		})
		if err != nil || found.Digest == "" {
			return found, err
		}
		f, err := s.lookup(ctx, found.Digest)
		if err != nil || f.kind == formBlob {
			return found, err
		}
	}
}

// pack compresses the layer to a blob of its own. It can be made again from
// the layer; all the same it is synced like any other, because whoever asked
// is about to name its digest to somebody else.
func (s *Store) pack(ctx context.Context, d oci.Descriptor, mediaType string, c content.Compression, level *int) (oci.Descriptor, error) {
	a, err := s.newAside()
	if err != nil {
		return d, err
	}
	defer a.discard()
	r, err := s.Open(ctx, d)
	if err != nil {
		return d, err
	}
	defer r.Close()
	h := sha256.New()
	w, err := layer.CompressLevel(onlyWriter{io.MultiWriter(a, h)}, layer.Packing(c), level)
	if err != nil {
		return d, err
	}
	_, err = io.CopyBuffer(onlyWriter{w}, oci.Verify(readerWith(ctx, r), d), buffer(d.Size))
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return d, s.failed(a.path, fmt.Errorf("pack %s: %w", d.Digest, err))
	}
	packed := oci.Descriptor{MediaType: mediaType, Digest: digest.NewDigest(digest.SHA256, h), Size: a.n}
	return packed, s.admit(ctx, a, packed, func(t *tx) error {
		if _, err := t.Exec("UPDATE blob SET plain = ? WHERE digest = ?", d.Size, packed.Digest); err != nil {
			return err
		}
		_, err := t.Exec(`INSERT INTO layer(diffid, size, bytes, toc, tree, boot) VALUES(?,?,?,0,0,'')
			ON CONFLICT(diffid) DO UPDATE SET size = excluded.size`, d.Digest, d.Size, d.Size)
		if err != nil {
			return err
		}
		return t.packed(d.Digest, packed.Digest, layer.Packing(c), level == nil)
	})
}

// readerWith ends r's bytes with ctx.
func readerWith(ctx context.Context, r io.Reader) io.Reader { return &ctxReader{ctx, r} }

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
