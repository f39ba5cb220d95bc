package store

import (
	"archive/tar"
	"encoding/binary"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/strake-project/strake/internal/oci/layer"
)

// plainSize is the length that the file's bytes have once decompressed, as far
// as their ends tell; of a plain tar it is the sum of its files' sizes, and of
// anything else the size. It is for showing to people, until a TOC knows better.
func plainSize(f *os.File, size int64) int64 {
	var head [64]byte
	n, _ := f.ReadAt(head[:], 0)
	if sum, ok := tarredBytes(f, size); ok {
		return sum
	}
	switch layer.Sniff(head[:n]) {
	case layer.Gzip:
		return gunzipped(f, size)
	case layer.Zstd:
		var h zstd.Header
		// Registries' frames may be many; the first one's size is then too
		// small, and no worse than the size of the packed bytes.
		if err := h.Decode(head[:n]); err == nil && h.HasFCS && h.FrameContentSize < 1<<50 {
			return max(int64(h.FrameContentSize), size)
		}
	}
	return size
}

// gunzipped reads the last member's length field (RFC 1952, ISIZE), which is
// modulo 2³². A length below the packed one has wrapped around, if that much
// could be in there; else there are more members (eStargz), and it says nothing.
func gunzipped(f *os.File, size int64) int64 {
	var tail [4]byte
	if size < 18 {
		return size
	}
	if _, err := f.ReadAt(tail[:], size-4); err != nil {
		return size
	}
	plain := int64(binary.LittleEndian.Uint32(tail[:]))
	for plain < size && size >= 256<<20 {
		plain += 1 << 32
	}
	if plain < size || plain > size*1032+1024 { // deflate has no such ratio
		return size
	}
	return plain
}

// mostHeaders bounds how many headers tarredBytes reads: each costs a read.
const mostHeaders = 100_000

// tarredBytes sums the sizes of the files in a plain tar, by its headers alone.
func tarredBytes(f *os.File, size int64) (sum int64, ok bool) {
	var magic [5]byte
	if n, err := f.ReadAt(magic[:], 257); n < len(magic) || err != nil || string(magic[:]) != "ustar" {
		return 0, false
	}
	// A section can seek: the reader jumps from header to header.
	tr := tar.NewReader(io.NewSectionReader(f, 0, size))
	for range mostHeaders {
		h, err := tr.Next()
		if err == io.EOF {
			return sum, true
		}
		if err != nil || sum+h.Size < sum {
			return 0, false
		}
		switch h.Typeflag {
		case tar.TypeReg:
			sum += h.Size
		case tar.TypeSymlink:
			sum += int64(len(h.Linkname))
		}
	}
	return 0, false
}
