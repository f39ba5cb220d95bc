package layer

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/strake-project/strake/internal/oci"
	"github.com/zeebo/xxh3"
)

// The encoding: tocMagic (its last byte is the version), then varints and
// strings, then 8 bytes of xxh3 over all before them. A path is what it shares
// with the path before it, as a length, and the rest.
const tocMagic = "strtoc\x001"

const (
	hasDigest = 1 << iota // 32 bytes of SHA-256 follow
	oddDigest             // a digest of another algorithm follows, as text
	hasXattrs
	hasLink
	hasDevice
	hasOwner // other than that of the entry before
	hasNsec
	hasOffset // other than 0; as the distance from the one before
)

// MarshalBinary encodes the TOC compactly, with a version and a checksum.
func (t *TOC) MarshalBinary() ([]byte, error) {
	text := 0
	for i := range t.Entries {
		text += len(t.Entries[i].Path)
	}
	b := make([]byte, 0, 64+len(t.Entries)*64+text/2)
	b = append(b, tocMagic...)
	b = appendString(b, string(t.DiffID))
	b = binary.AppendVarint(b, t.Size)
	b = binary.AppendUvarint(b, uint64(len(t.Entries)))
	b = binary.AppendUvarint(b, uint64(text)) // what decoding must reserve
	var keys []string
	prev, offset := &Entry{}, int64(0)
	for i := range t.Entries {
		e := &t.Entries[i]
		b = appendEntry(b, prev, e, offset, &keys)
		if prev = e; e.Offset != 0 {
			offset = e.Offset
		}
	}
	return binary.BigEndian.AppendUint64(b, tocSum(b)), nil
}

func appendEntry(b []byte, prev, e *Entry, offset int64, keys *[]string) []byte {
	var flags byte
	raw, sha := "", false
	if e.Digest != "" {
		if raw, sha = strings.CutPrefix(string(e.Digest), "sha256:"); sha && isHex64(raw) {
			flags |= hasDigest
		} else {
			flags |= oddDigest
		}
	}
	set := func(on bool, f byte) {
		if on {
			flags |= f
		}
	}
	set(len(e.Xattrs) > 0, hasXattrs)
	set(e.Link != "", hasLink)
	set(e.DevMajor != 0 || e.DevMinor != 0, hasDevice)
	set(e.UID != prev.UID || e.GID != prev.GID, hasOwner)
	nsec := e.ModTime.Nanosecond()
	set(nsec != 0, hasNsec)
	set(e.Offset != 0, hasOffset)

	b = append(b, flags, byte(e.Type))
	shared := 0
	for n := min(len(prev.Path), len(e.Path)); shared < n && prev.Path[shared] == e.Path[shared]; shared++ {
	}
	b = binary.AppendUvarint(b, uint64(shared))
	b = appendString(b, e.Path[shared:])
	b = binary.AppendUvarint(b, uint64(e.Mode))
	b = binary.AppendVarint(b, e.Size)
	b = binary.AppendVarint(b, e.ModTime.Unix())
	if flags&hasOffset != 0 {
		b = binary.AppendVarint(b, e.Offset-offset)
	}
	if flags&hasNsec != 0 {
		b = binary.AppendUvarint(b, uint64(nsec))
	}
	if flags&hasOwner != 0 {
		b = binary.AppendVarint(b, int64(e.UID))
		b = binary.AppendVarint(b, int64(e.GID))
	}
	if flags&hasDevice != 0 {
		b = binary.AppendVarint(b, e.DevMajor)
		b = binary.AppendVarint(b, e.DevMinor)
	}
	if flags&hasLink != 0 {
		b = appendString(b, e.Link)
	}
	if flags&hasDigest != 0 {
		b, _ = hex.AppendDecode(b, []byte(raw)) // the flag says that it is hex
	}
	if flags&oddDigest != 0 {
		b = appendString(b, string(e.Digest))
	}
	if flags&hasXattrs != 0 {
		*keys = (*keys)[:0]
		for k := range e.Xattrs {
			*keys = append(*keys, k)
		}
		slices.Sort(*keys)
		b = binary.AppendUvarint(b, uint64(len(*keys)))
		for _, k := range *keys {
			b = appendString(b, k)
			b = appendString(b, e.Xattrs[k])
		}
	}
	return b
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// isHex64 tells whether s is 64 lower-case hex digits.
func isHex64(s string) bool {
	if len(s) != 64 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// UnmarshalBinary decodes it; damage fails with oci.ErrCorrupt.
func (t *TOC) UnmarshalBinary(b []byte) error {
	if len(b) < len(tocMagic)+8 || string(b[:len(tocMagic)-1]) != tocMagic[:len(tocMagic)-1] {
		return fmt.Errorf("table of contents: not one: %w", oci.ErrCorrupt)
	}
	body, sum := b[:len(b)-8], b[len(b)-8:]
	if binary.BigEndian.Uint64(sum) != tocSum(body) {
		return fmt.Errorf("table of contents: checksum mismatch: %w", oci.ErrCorrupt)
	}
	if b[len(tocMagic)-1] != tocMagic[len(tocMagic)-1] {
		return fmt.Errorf("table of contents: version %q is not this strake's: %w", b[len(tocMagic)-1], oci.ErrCorrupt)
	}
	d := &decoder{b: body[len(tocMagic):]}
	var out TOC
	out.DiffID = oci.Digest(d.bytes(d.uvarint()))
	out.Size = d.varint()
	n, text := d.uvarint(), d.uvarint()
	// No entry is shorter than 8 bytes, which bounds what a damaged count can
	// make us allocate.
	if d.bad || n > uint64(len(d.b))/8 || text > n*maxPath {
		return fmt.Errorf("table of contents: damaged: %w", oci.ErrCorrupt)
	}
	if n > 0 {
		out.Entries = make([]Entry, n)
	}
	d.paths = make([]byte, 0, min(text, uint64(len(d.b))*8))
	d.digests = make([]byte, 0, 71*n)
	prev := &Entry{}
	for i := range out.Entries {
		d.entry(prev, &out.Entries[i])
		if d.bad {
			return fmt.Errorf("table of contents: entry %d is damaged: %w", i, oci.ErrCorrupt)
		}
		prev = &out.Entries[i]
	}
	if len(d.b) != 0 {
		return fmt.Errorf("table of contents: %d bytes too many: %w", len(d.b), oci.ErrCorrupt)
	}
	*t = out
	return nil
}

// decoder takes values off the front of b; after a damaged one bad is set and
// all others are zero.
type decoder struct {
	b      []byte
	bad    bool
	offset int64 // the last one that was not 0
	// Paths and digests are cut from two big buffers: two allocations for the
	// whole table instead of two for each entry.
	paths, digests []byte
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

// keep appends to arena and returns what was appended as a string. The arena
// is only ever appended to, so the string never changes; where it grows, the
// earlier strings stay with the old array.
func keep(arena *[]byte, parts ...[]byte) string {
	start := len(*arena)
	for _, p := range parts {
		*arena = append(*arena, p...)
	}
	made := (*arena)[start:]
	return unsafe.String(unsafe.SliceData(made), len(made))
}

func (d *decoder) entry(prev, e *Entry) {
	head := d.bytes(2)
	if d.bad {
		return
	}
	flags := head[0]
	e.Type = Type(head[1])
	shared := d.uvarint()
	rest := d.bytes(d.uvarint())
	if shared > uint64(len(prev.Path)) || shared+uint64(len(rest)) > maxPath {
		d.bad = true
		return
	}
	e.Path = keep(&d.paths, []byte(prev.Path[:shared]), rest)
	e.Mode = uint32(d.uvarint())
	e.Size = d.varint()
	sec := d.varint()
	if flags&hasOffset != 0 {
		d.offset += d.varint()
		e.Offset = d.offset
	}
	var nsec uint64
	if flags&hasNsec != 0 {
		if nsec = d.uvarint(); nsec >= 1e9 {
			d.bad = true
			return
		}
	}
	e.ModTime = time.Unix(sec, int64(nsec)).UTC()
	e.UID, e.GID = prev.UID, prev.GID
	if flags&hasOwner != 0 {
		e.UID, e.GID = int(d.varint()), int(d.varint())
	}
	if flags&hasDevice != 0 {
		e.DevMajor, e.DevMinor = d.varint(), d.varint()
	}
	if flags&hasLink != 0 {
		e.Link = string(d.bytes(d.uvarint()))
	}
	if flags&hasDigest != 0 {
		var text [71]byte
		copy(text[:], "sha256:")
		hex.Encode(text[7:], d.bytes(32))
		e.Digest = oci.Digest(keep(&d.digests, text[:]))
	}
	if flags&oddDigest != 0 {
		e.Digest = oci.Digest(d.bytes(d.uvarint()))
	}
	if flags&hasXattrs != 0 {
		n := d.uvarint()
		if n == 0 || n > uint64(len(d.b))/2 {
			d.bad = true
			return
		}
		e.Xattrs = make(map[string]string, n)
		for range n {
			k := string(d.bytes(d.uvarint()))
			e.Xattrs[k] = string(d.bytes(d.uvarint()))
		}
	}
}

func tocSum(b []byte) uint64 { return xxh3.Hash(b) }
