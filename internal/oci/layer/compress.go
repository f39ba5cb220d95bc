package layer

import "io"

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

// Decompress sniffs r's first bytes and returns the plain bytes. Gzip is
// decompressed ahead of the reader on another core. The caller closes it; that
// does not close r.
func Decompress(r io.Reader) (io.ReadCloser, Packing, error) { panic("unwritten") }

// Compress returns a writer that packs into w on all cores, Gzip or Zstd at a
// fast level. The same input gives the same bytes with the same build of
// strake. Close flushes; it does not close w.
func Compress(w io.Writer, p Packing) (io.WriteCloser, error) { panic("unwritten") }
