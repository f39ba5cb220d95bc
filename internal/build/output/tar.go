package output

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Tar writes the parts as one tar to w. Owners are those of the image.
func Tar(ctx context.Context, w io.Writer, parts []Part) error {
	t := &tarWriter{ctx: ctx, tar: tar.NewWriter(w), buf: make([]byte, 1<<20)}
	for i := range parts {
		if err := t.part(&parts[i]); err != nil {
			return err
		}
	}
	return t.tar.Close()
}

type tarWriter struct {
	ctx context.Context
	tar *tar.Writer
	buf []byte
}

func (t *tarWriter) part(p *Part) error {
	if p.Dir != "" {
		at := time.Unix(0, 0)
		if p.Time != nil {
			at = *p.Time
		}
		if err := t.tar.WriteHeader(&tar.Header{Name: p.Dir + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: at}); err != nil {
			return err
		}
	}
	firsts := tree.FirstNames{}
	err := tree.Walk(p.View, ".", func(e *layer.Entry) error {
		if err := checkContext(t.ctx); err != nil {
			return err
		}
		if e.Path == "." {
			return nil
		}
		if e.Type == layer.HardLink {
			return dangling(e)
		}
		it := p.item(e, firsts)
		return t.write(p, &it)
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(p.Extra)) {
		body := p.Extra[name]
		it := item{Entry: layer.Entry{Path: name, Type: layer.Regular, Mode: 0o600, Size: int64(len(body)), ModTime: time.Now().Truncate(time.Second)}, body: body}
		if p.Time != nil {
			it.ModTime = *p.Time
		}
		if err := t.write(p, &it); err != nil {
			return err
		}
	}
	return nil
}

func (t *tarWriter) write(p *Part, it *item) error {
	h, err := tarHeader(p.Dir, &it.Entry)
	if err != nil {
		return err
	}
	if err := t.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", it.Path, err)
	}
	if it.Type != layer.Regular || it.Size == 0 {
		return nil
	}
	r := io.NopCloser(io.Reader(bytes.NewReader(it.body)))
	if it.from != "" {
		if r, err = p.View.Open(t.ctx, it.from); err != nil {
			return err
		}
	}
	defer r.Close()
	// A tar.Writer's own ReadFrom would copy in small pieces.
	n, err := io.CopyBuffer(struct{ io.Writer }{t.tar}, r, t.buf)
	if err == nil && n != it.Size {
		err = &oci.SizeError{Digest: it.Digest, Want: it.Size, Got: n}
	}
	return err
}

func tarHeader(dir string, e *layer.Entry) (*tar.Header, error) {
	h := &tar.Header{
		Name: path.Join(dir, e.Path), Mode: int64(e.Mode & 0o7777), Uid: e.UID, Gid: e.GID,
		Size: e.Size, ModTime: e.ModTime, Linkname: e.Link, Format: tar.FormatPAX,
	}
	switch e.Type {
	case layer.Regular:
		h.Typeflag = tar.TypeReg
	case layer.Dir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case layer.Symlink:
		h.Typeflag = tar.TypeSymlink
	case layer.HardLink:
		h.Typeflag, h.Size = tar.TypeLink, 0
		h.Linkname = path.Join(dir, e.Link)
	case layer.Char:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, e.DevMajor, e.DevMinor
	case layer.Block:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, e.DevMajor, e.DevMinor
	case layer.Fifo:
		h.Typeflag = tar.TypeFifo
	default:
		return nil, dangling(e)
	}
	for name, v := range e.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[layer.PAXXattr+name] = v
	}
	if e.ModTime.Nanosecond() == 0 && len(h.PAXRecords) == 0 {
		h.Format = tar.FormatUnknown // the plainest that fits
	}
	return h, nil
}
