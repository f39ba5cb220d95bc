// Package layer reads and writes image layers: tars in and out, whiteouts,
// tables of contents, compression.
//
// A layer is its diffID, the digest of its uncompressed tar. It has forms:
// packed (a tar, perhaps compressed), unpacked (a tree that overlayfs can
// mount) and a TOC, one Entry for each tar header. This package turns forms
// into each other; content/store keeps them.
//
// Invariants: the canonical writer gives the same bytes for the same entries
// on every machine, for ever (a golden test pins them); nothing in a foreign
// tar can make Unpack touch anything outside its directory; names, sizes and
// PAX records of a foreign tar are bounded; Pack of what Unpack made of a
// canonical tar gives that tar's bytes. What a tree cannot say otherwise (a
// directory that is only implied, a root that is named) is an xattr among
// overlayfs' own, which the kernel neither shows nor copies up.
package layer

import (
	"io/fs"
	"syscall"
	"time"

	"github.com/strake-project/strake/internal/oci"
)

// Type is what an Entry is: tar's type flags, and two of overlay's own.
type Type byte

// The types. A Whiteout removes Path of the layers below; an Opaque hides all
// that the layers below have in the directory Path. In a tar they are the
// files ".wh.NAME" and ".wh..wh..opq" (image specification, layer.md); in an
// overlay tree a 0/0 character device and the xattr trusted.overlay.opaque
// (user.overlay.opaque without privileges).
const (
	Regular  Type = '0'
	HardLink Type = '1'
	Symlink  Type = '2'
	Char     Type = '3'
	Block    Type = '4'
	Dir      Type = '5'
	Fifo     Type = '6'
	Whiteout Type = 'w'
	Opaque   Type = 'o'
)

// Entry is one line of a TOC: one header of the layer's tar.
type Entry struct {
	// Path is slash-separated and clean, relative to the root, without leading
	// slash; the root itself is ".". Of a whiteout it is what is removed.
	Path string
	Type Type
	// Mode holds the permission bits with setuid (04000), setgid and sticky.
	Mode     uint32
	UID, GID int
	// Size of a regular file's content in bytes; 0 for all else.
	Size    int64
	ModTime time.Time
	// Link is a symlink's target as written, or a hard link's target Path.
	Link               string
	DevMajor, DevMinor int64
	// Xattrs without overlay's own; names as the kernel has them
	// ("security.capability"). Nil where there are none.
	Xattrs map[string]string
	// Digest of a regular file's content.
	Digest oci.Digest
	// Offset of a regular file's content in the uncompressed tar; -1 where the
	// tar stores the file with holes, so that no range of it is the content.
	Offset int64
}

// FileMode is the entry's type and mode as io/fs has them. A hard link, which
// a View shows only where its target is missing, is irregular.
func (e *Entry) FileMode() fs.FileMode {
	m := fs.FileMode(e.Mode & 0o777)
	for _, b := range [...]struct {
		bit  uint32
		mode fs.FileMode
	}{{syscall.S_ISUID, fs.ModeSetuid}, {syscall.S_ISGID, fs.ModeSetgid}, {syscall.S_ISVTX, fs.ModeSticky}} {
		if e.Mode&b.bit != 0 {
			m |= b.mode
		}
	}
	switch e.Type {
	case Dir:
		m |= fs.ModeDir
	case Symlink:
		m |= fs.ModeSymlink
	case Char:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case Block:
		m |= fs.ModeDevice
	case Fifo:
		m |= fs.ModeNamedPipe
	case HardLink:
		m |= fs.ModeIrregular
	}
	return m
}

// TOC is the table of contents of one layer.
type TOC struct {
	DiffID oci.Digest
	// Size of the uncompressed tar in bytes.
	Size int64
	// Entries in the tar's order. Of several with one Path the last one wins.
	Entries []Entry
}
