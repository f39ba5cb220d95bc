package store

import (
	"encoding/binary"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/strake-project/strake/internal/oci/layer"
)

// plainSize is the length that the file's bytes have once decompressed, as far
// as their ends tell; of what is not compressed it is the size. It is for
// showing to people, until a TOC knows better.
func plainSize(f *os.File, size int64) int64 {
	var head [64]byte
	n, _ := f.ReadAt(head[:], 0)
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
