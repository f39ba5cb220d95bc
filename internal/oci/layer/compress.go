package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/ulikunitz/xz"

	"github.com/strake-project/strake/internal/oci"
)

// Packing names a compression by what its bytes begin with.
type Packing string

// The packings that Decompress knows.
const (
	Plain Packing = ""
	Gzip  Packing = "gzip"
	Zstd  Packing = "zstd"
	Bzip2 Packing = "bzip2"
	XZ    Packing = "xz"
)

// Sniff names the packing of bytes that begin with b; six are enough.
func Sniff(b []byte) Packing {
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		return Gzip
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return Zstd
	case len(b) >= 4 && b[0]&0xf0 == 0x50 && bytes.Equal(b[1:4], []byte{0x2a, 0x4d, 0x18}):
		return Zstd // a skippable frame
	case bytes.HasPrefix(b, []byte("BZh")):
		return Bzip2
	case bytes.HasPrefix(b, []byte("\xfd7zXZ\x00")):
		return XZ
	}
	return Plain
}

// Decompress sniffs r's first bytes and returns the plain bytes. Gzip is
// decompressed ahead of the reader on another core. The caller closes it; that
// does not close r. Malformed bytes fail with oci.ErrInvalid, errors of r as
// they are.
func Decompress(r io.Reader) (io.ReadCloser, Packing, error) {
	src := &source{r: r}
	br := bufio.NewReaderSize(src, 128<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, Plain, err
	}
	p := Sniff(head)
	var rc io.ReadCloser
	switch p {
	case Gzip:
		rc, err = pgzip.NewReaderN(br, 256<<10, 8)
	case Zstd:
		var d *zstd.Decoder
		if d, err = zstd.NewReader(br, zstd.WithDecoderMaxWindow(256<<20)); err == nil {
			rc = d.IOReadCloser()
		}
	case Bzip2:
		rc = io.NopCloser(bzip2.NewReader(br))
	case XZ:
		var x *xz.Reader
		if x, err = xz.NewReader(br); err == nil {
			rc = io.NopCloser(x)
		}
	default:
		return io.NopCloser(br), Plain, nil
	}
	d := &decompressor{ReadCloser: rc, src: src, p: p}
	if err != nil {
		return nil, p, d.explain(err)
	}
	return d, p, nil
}

// source remembers the error of the reader below, to tell it from damage.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

type decompressor struct {
	io.ReadCloser
	src *source
	p   Packing
}

func (d *decompressor) Read(b []byte) (int, error) {
	n, err := d.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		err = d.explain(err)
	}
	return n, err
}

func (d *decompressor) explain(err error) error {
	if d.src.err != nil {
		return d.src.err
	}
	if d.p == XZ && strings.Contains(err.Error(), "filter") { // the library has no error to compare with
		return fmt.Errorf("decompress xz: a filter beside LZMA2 (%v): %w: unpack it with xz -d first", err, oci.ErrUnsupported)
	}
	return fmt.Errorf("decompress %s: %v: %w", d.p, err, oci.ErrInvalid)
}

// Compress returns a writer that packs into w on all cores, Gzip or Zstd at a
// fast level. The same input gives the same bytes with the same build of
// strake. Close flushes; it does not close w.
func Compress(w io.Writer, p Packing) (io.WriteCloser, error) { return CompressLevel(w, p, nil) }

// CompressLevel is Compress at a level of gzip's (0 to 9) or zstd's (0 to 22)
// own scale, where level is not nil.
func CompressLevel(w io.Writer, p Packing, level *int) (io.WriteCloser, error) {
	if most := map[Packing]int{Gzip: 9, Zstd: 22}[p]; level != nil && (*level < 0 || *level > most) {
		return nil, fmt.Errorf("compression level %d: %s has 0 to %d: %w", *level, p, most, oci.ErrInvalid)
	}
	switch p {
	case Gzip:
		// Level 1: on real layers it is twice as fast as the usual 6 and about
		// a tenth larger. The header holds no name and no time.
		at := gzip.BestSpeed
		if level != nil {
			at = *level
		}
		z, err := pgzip.NewWriterLevel(w, at)
		if err != nil {
			return nil, err
		}
		z.ModTime = time.Unix(0, 0)
		return z, nil
	case Zstd:
		at := zstd.SpeedFastest
		if level != nil {
			at = zstd.EncoderLevelFromZstd(*level)
		}
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(at), zstd.WithZeroFrames(true), zstd.WithSingleSegment(true))
		if err != nil {
			return nil, err
		}
		return &zstdWriter{w: w, enc: enc}, nil
	}
	return nil, fmt.Errorf("compress as %q: %w", p, oci.ErrUnsupported)
}

// zstdFrame is how much goes into one frame. Frames are compressed side by
// side, which the encoder does not do with the blocks of one; each says how
// much it holds.
const zstdFrame = 4 << 20

// zstdWriter has no goroutine that outlives the compression of its frame: it
// may be abandoned.
type zstdWriter struct {
	w      io.Writer
	enc    *zstd.Encoder
	buf    []byte
	queue  []chan []byte // frames being compressed, in order
	frames int
	err    error
}

func (z *zstdWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && z.err == nil {
		if z.buf == nil {
			z.buf = make([]byte, 0, zstdFrame)
		}
		k := min(len(p), zstdFrame-len(z.buf))
		z.buf = append(z.buf, p[:k]...)
		if p = p[k:]; len(z.buf) == zstdFrame {
			z.frame()
		}
	}
	return n - len(p), z.err
}

// frame starts compressing what is buffered; a core each, and one waiting.
func (z *zstdWriter) frame() {
	if len(z.queue) > runtime.GOMAXPROCS(0) {
		z.shift()
	}
	done, plain := make(chan []byte, 1), z.buf
	z.buf = nil
	z.frames++
	go func() { done <- z.enc.EncodeAll(plain, make([]byte, 0, len(plain)/2)) }()
	z.queue = append(z.queue, done)
}

func (z *zstdWriter) shift() {
	b := <-z.queue[0]
	z.queue = z.queue[1:]
	if z.err == nil {
		_, z.err = z.w.Write(b)
	}
}

func (z *zstdWriter) Close() error {
	if len(z.buf) > 0 || z.frames == 0 && z.err == nil {
		z.frame()
	}
	for len(z.queue) > 0 {
		z.shift()
	}
	return z.err
}
