package fileop

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// Selection is what a copy takes.
type Selection struct {
	Digest oci.Digest
	all    []selected
}

// A listing is a selection by names and short hashes, small enough to be kept
// with every copy: it tells which files two selections differ in, and nothing
// is ever built from it.
//
// Each entry is its path, type, mode, owner, 8 bytes for the content (a file's
// bytes, a link's target, a device's number) and 8 for the xattrs, sorted by
// path; all of it packed with zstd.
type listed struct {
	path           string
	typ            layer.Type
	mode, uid, gid uint64
	content, attrs uint64
}

// maxListing bounds what is unpacked of a listing.
const maxListing = 256 << 20

// Listing packs the names and short hashes of s.
func (s *Selection) Listing() ([]byte, error) {
	entries := make([]listed, 0, len(s.all))
	for i := range s.all {
		if x := &s.all[i]; x.e != nil {
			entries = append(entries, list(x))
		}
	}
	slices.SortFunc(entries, func(a, b listed) int { return strings.Compare(a.path, b.path) })
	b := make([]byte, 0, 64*len(entries))
	for _, e := range entries {
		b = append(field(b, e.path), byte(e.typ))
		b = binary.AppendUvarint(b, e.mode)
		b = binary.AppendUvarint(b, e.uid)
		b = binary.AppendUvarint(b, e.gid)
		b = binary.LittleEndian.AppendUint64(b, e.content)
		b = binary.LittleEndian.AppendUint64(b, e.attrs)
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return z.EncodeAll(b, make([]byte, 0, len(b)/2)), nil
}

func list(x *selected) listed {
	e := x.e
	l := listed{path: e.Path, typ: e.Type, mode: uint64(e.Mode), uid: uint64(e.UID), gid: uint64(e.GID)}
	switch {
	case e.Type == layer.Symlink:
		l.content = xxh3.HashString(e.Link)
	case e.Type == layer.Regular && x.digest != "":
		var short [8]byte
		_, _ = hex.Decode(short[:], []byte(x.digest.Encoded()[:16])) // a digest is hexadecimal
		l.content = binary.LittleEndian.Uint64(short[:])
	case e.Type == layer.Char || e.Type == layer.Block:
		l.content = uint64(e.DevMajor)<<32 | uint64(e.DevMinor)
	}
	if len(e.Xattrs) > 0 {
		l.attrs = xxh3.Hash(xattrs(nil, e.Xattrs))
	}
	return l
}

// Change is one file in which two listings differ.
type Change struct {
	Path string `json:"path"`
	// What of it: "added", "removed", or some of "type", "content", "mode",
	// "owner", "target" and "xattrs".
	What []string `json:"change"`
}

// Changes compares two listings.
func Changes(old, now []byte) ([]Change, error) {
	a, err := unpackListing(old)
	if err != nil {
		return nil, err
	}
	b, err := unpackListing(now)
	if err != nil {
		return nil, err
	}
	var out []Change
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].path < b[0].path:
			out = append(out, Change{a[0].path, []string{"removed"}})
			a = a[1:]
		case len(a) == 0 || b[0].path < a[0].path:
			out = append(out, Change{b[0].path, []string{"added"}})
			b = b[1:]
		default:
			if what := a[0].changed(&b[0]); len(what) > 0 {
				out = append(out, Change{a[0].path, what})
			}
			a, b = a[1:], b[1:]
		}
	}
	return out, nil
}

func (l *listed) changed(now *listed) []string {
	var what []string
	switch {
	case l.typ != now.typ:
		what = append(what, "type")
	case l.content != now.content && l.typ == layer.Symlink:
		what = append(what, "target")
	case l.content != now.content:
		what = append(what, "content")
	}
	if l.mode != now.mode && l.typ == now.typ {
		what = append(what, "mode")
	}
	if l.uid != now.uid || l.gid != now.gid {
		what = append(what, "owner")
	}
	if l.attrs != now.attrs {
		what = append(what, "xattrs")
	}
	return what
}

func unpackListing(packed []byte) ([]listed, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxListing))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	b, err := z.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("listing: %v: %w", err, oci.ErrInvalid)
	}
	var out []listed
	number := func() (n uint64) {
		n, size := binary.Uvarint(b)
		b = b[max(size, 0):]
		return n
	}
	for len(b) > 0 {
		n := number()
		if n > uint64(len(b)) {
			return nil, fmt.Errorf("listing: a path is longer than it: %w", oci.ErrInvalid)
		}
		l := listed{path: string(b[:n])}
		b = b[n:]
		if len(b) > 0 {
			l.typ, b = layer.Type(b[0]), b[1:]
		}
		l.mode, l.uid, l.gid = number(), number(), number()
		if len(b) < 16 {
			return nil, fmt.Errorf("listing ends within an entry: %w", oci.ErrInvalid)
		}
		l.content, l.attrs = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		b = b[16:]
		out = append(out, l)
	}
	return out, nil
}
