package layer

import (
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/zstd"
)

// PlainSize estimates, with a few reads, how long the packed blob r of size
// bytes is when decompressed: it is what the blob itself says, and nobody has
// checked it. False where the blob does not say.
//
//   - Gzip ends with the length of its last member, modulo 4 GiB. Nearly every
//     layer is one member; a length that one member of this size cannot have
//     is not believed.
//   - Zstd frames may begin with theirs.
func PlainSize(r io.ReaderAt, size int64) (int64, bool) {
	var head [6]byte
	n, err := r.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		return 0, false
	}
	switch Sniff(head[:n]) {
	case Plain:
		return size, true
	case Gzip:
		return gzipPlainSize(r, size)
	case Zstd:
		return zstdPlainSize(r, size)
	}
	return 0, false
}

func gzipPlainSize(r io.ReaderAt, size int64) (int64, bool) {
	const smallest = 18 // header and trailer
	var tail [4]byte
	if size < smallest {
		return 0, false
	}
	if _, err := r.ReadAt(tail[:], size-4); err != nil && err != io.EOF {
		return 0, false
	}
	plain := int64(binary.LittleEndian.Uint32(tail[:]))
	// Deflate makes nothing longer by more than 5 bytes in 16 KiB, nor shorter
	// than a thousandth.
	least := size - smallest - size/2048 - 1024
	if plain < least && size > 1<<30 {
		plain += (least - plain + 1<<32 - 1) >> 32 << 32
	}
	return plain, plain >= least && plain <= size*1032
}

// zstdPlainSize adds up the frames. To find where a frame ends, the 3 bytes
// before each of its blocks are read.
func zstdPlainSize(r io.ReaderAt, size int64) (int64, bool) {
	const maxBlocks = 1 << 17 // of up to 128 KiB each: 16 GiB
	var b [zstd.HeaderMaxSize]byte
	var total int64
	blocks := 0
	for off := int64(0); off < size; {
		n, err := r.ReadAt(b[:], off)
		if err != nil && err != io.EOF {
			return 0, false
		}
		var h zstd.Header
		if h.Decode(b[:n]) != nil {
			return 0, false
		}
		if h.Skippable {
			off += int64(h.HeaderSize) + int64(h.SkippableSize)
			continue
		}
		if !h.HasFCS || h.FrameContentSize > 1<<50 {
			return 0, false
		}
		total += int64(h.FrameContentSize)
		off += int64(h.HeaderSize)
		for last := false; !last; {
			if blocks++; blocks > maxBlocks {
				return 0, false
			}
			if k, err := r.ReadAt(b[:3], off); k < 3 || err != nil && err != io.EOF {
				return 0, false
			}
			v := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
			last = v&1 != 0
			length := int64(v >> 3)
			if v>>1&3 == 1 { // run-length: one byte, repeated
				length = 1
			}
			off += 3 + length
		}
		if h.HasCheckSum {
			off += 4
		}
		if off > size || total > 1<<50 {
			return 0, false
		}
	}
	return total, true
}
