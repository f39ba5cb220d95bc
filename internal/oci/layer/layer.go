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
// PAX records of a foreign tar are bounded.
package layer

import (
	"context"
	"io"
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
	// Offset of a regular file's content in the uncompressed tar.
	Offset int64
}

// TOC is the table of contents of one layer.
type TOC struct {
	DiffID oci.Digest
	// Size of the uncompressed tar in bytes.
	Size int64
	// Entries in the tar's order. Of several with one Path the last one wins.
	Entries []Entry
}

// Writer writes a canonical layer tar and its TOC in one pass.
type Writer struct{ writer }

// NewWriter returns a Writer to w. The bytes are hashed as they pass; w needs
// no buffering of its own.
func NewWriter(w io.Writer) *Writer { panic("unwritten") }

// Write appends e and, for a regular file, exactly e.Size bytes of content;
// fewer or more fail with oci.ErrInvalid and break the Writer. Where e.Digest
// is set it is taken as true, which saves hashing the content twice: the
// caller vouches for it. Offset is computed. Entries must come in ascending
// order of Less, with hard links after their targets.
func (w *Writer) Write(e Entry, content io.Reader) error { panic("unwritten") }

// Close ends the tar and returns its TOC.
func (w *Writer) Close() (*TOC, error) { panic("unwritten") }

// Less is the canonical order of entries: parents before children, siblings
// by the bytes of their names, an Opaque directly after its directory.
func Less(a, b *Entry) bool { panic("unwritten") }

// Index reads an uncompressed layer tar to its end and returns its TOC. The
// tar may be foreign: names are cleaned, "../" and absolute names resolved
// inside the root; what cannot be a layer fails with oci.ErrInvalid.
func Index(r io.Reader) (*TOC, error) { panic("unwritten") }

// UnpackOptions says how a tree is made.
type UnpackOptions struct {
	// Unprivileged uses user.overlay xattrs, skips device nodes and chown
	// errors are errors still: the caller is root in a user namespace.
	Unprivileged bool
}

// Unpack extracts an uncompressed layer tar into dir, which exists and is
// empty, as a tree for overlayfs, and returns the TOC, digests of contents
// included. The order is content, owner, mode, xattrs, times (chown clears
// setuid bits and capabilities). Directories that the tar does not name get
// mode 0755, owner 0:0 and time 0 and are listed by TOC.Implied.
func Unpack(ctx context.Context, r io.Reader, dir string, opt UnpackOptions) (*TOC, error) {
	panic("unwritten")
}

// Implied returns the directories that the layer has only because something
// lies in them. When layers are stacked, such a directory has the owner, mode
// and time of the same path below; it is not a statement of this layer.
func (t *TOC) Implied() []string { panic("unwritten") }

// Pack writes the canonical tar of the overlay tree dir, an upper directory or
// what Unpack made, to w and returns its TOC. Sockets are left out, as docker
// does. With io.Discard it is how a RUN's diffID is computed.
func Pack(ctx context.Context, w io.Writer, dir string) (*TOC, error) { panic("unwritten") }

// FileBytes is the sum of the sizes of the layer's regular files: what docker
// shows as a layer's SIZE.
func (t *TOC) FileBytes() int64 { panic("unwritten") }

// MarshalBinary encodes the TOC compactly, with a version and a checksum.
func (t *TOC) MarshalBinary() ([]byte, error) { panic("unwritten") }

// UnmarshalBinary decodes it; damage fails with oci.ErrCorrupt.
func (t *TOC) UnmarshalBinary(b []byte) error { panic("unwritten") }

type writer struct{}
