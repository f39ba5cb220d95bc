package layer

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/oci"
)

// Names that the image specification reserves (layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // aufs' own bookkeeping: means nothing
)

// PAXXattr begins the key of a PAX record that holds an extended attribute.
const PAXXattr = "SCHILY.xattr."

const (
	blockSize = 512
	maxPath   = 4096 // PATH_MAX
	maxName   = 255  // NAME_MAX
	maxDepth  = 1024
)

// Writer writes a canonical layer tar and its TOC in one pass.
//
// Canonical is: ustar headers; a PAX header before those, and only those, that
// ustar cannot express (names that are long or not ASCII, ids above 2097151,
// sizes above 8 GiB, times before 1970 or with nanoseconds, xattrs), records
// sorted by key; no user and group names; two zero blocks at the end. The
// fields of whiteouts are all zero.
type Writer struct {
	w       io.Writer
	d       *digester
	cur     *chunk
	off     int64 // of the next byte
	pax     []byte
	keys    []string
	one     [1]byte
	entries []Entry
	err     error
}

// NewWriter returns a Writer to w. The bytes are hashed as they pass; w needs
// no buffering of its own.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, d: newDigester()}
}

// Write appends e and, for a regular file, exactly e.Size bytes of content;
// fewer or more fail with oci.ErrInvalid and break the Writer. Where e.Digest
// is set it is taken as true, which saves hashing the content twice: the
// caller vouches for it. Offset is computed. Entries must come in ascending
// order of Less, with hard links after their targets; each Path once, except
// for an Opaque after its Dir. A hard link gets its target's attributes. A zero ModTime is 1970. Xattrs that belong to
// the host or to overlayfs are left out.
func (w *Writer) Write(e Entry, content io.Reader) error {
	if w.err != nil {
		return w.err
	}
	if err := w.normalise(&e); err != nil {
		w.err = fmt.Errorf("layer entry %q: %w", e.Path, err)
		return w.err
	}
	if w.err = w.header(&e); w.err != nil {
		return w.err
	}
	if e.Type == Regular {
		e.Offset = w.off
		if err := w.content(&e, content); err != nil {
			w.err = fmt.Errorf("layer entry %q: %w", e.Path, err)
			return w.err
		}
	}
	w.entries = append(w.entries, e)
	return nil
}

// Close ends the tar and returns its TOC.
func (w *Writer) Close() (*TOC, error) {
	if w.err != nil {
		return nil, w.err
	}
	for range 2 {
		if _, w.err = w.block(); w.err != nil {
			return nil, w.err
		}
	}
	if w.cur != nil {
		if _, w.err = w.w.Write(w.cur.b[:w.cur.n]); w.err != nil {
			return nil, w.err
		}
	}
	t := &TOC{Entries: w.entries}
	t.DiffID, t.Size = w.d.finish(w.cur, w.entries)
	w.err = fmt.Errorf("layer writer is closed: %w", oci.ErrInvalid)
	return t, nil
}

// normalise checks e against the rules of a canonical layer and the entry
// before it, and clears what its type does not have.
func (w *Writer) normalise(e *Entry) error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	if k := len(w.entries); k > 0 {
		if err := checkOrder(&w.entries[k-1], e); err != nil {
			return err
		}
	}
	if e.Type != Regular {
		e.Size, e.Digest = 0, ""
	}
	e.Offset = 0
	if e.Type != Char && e.Type != Block {
		e.DevMajor, e.DevMinor = 0, 0
	}
	if e.Type != Symlink && e.Type != HardLink {
		e.Link = ""
	}
	if e.ModTime.IsZero() {
		e.ModTime = time.Unix(0, 0)
	}
	e.ModTime = e.ModTime.UTC()
	e.Mode &= 0o7777
	e.Xattrs = portableXattrs(e.Xattrs)
	if !validID(e.UID) || !validID(e.GID) || e.Size < 0 {
		return fmt.Errorf("owner %d:%d, size %d: out of range: %w", e.UID, e.GID, e.Size, oci.ErrInvalid)
	}
	return w.checkType(e)
}

func (w *Writer) checkType(e *Entry) error {
	switch e.Type {
	case Regular, Fifo:
	case Dir:
		return nil // the root may be one
	case Opaque, Whiteout:
		e.Mode, e.UID, e.GID, e.ModTime, e.Xattrs = 0, 0, 0, time.Unix(0, 0).UTC(), nil
		if e.Type == Opaque {
			return nil
		}
	case Symlink:
		if e.Link == "" || len(e.Link) >= maxPath || strings.IndexByte(e.Link, 0) >= 0 {
			return fmt.Errorf("symlink to %.100q: %w", e.Link, oci.ErrInvalid)
		}
	case HardLink:
		i, ok := slices.BinarySearchFunc(w.entries, e.Link, func(x Entry, p string) int { return ComparePaths(x.Path, p) })
		if !ok {
			return fmt.Errorf("hard link to %.100q, which no entry before it is: %w", e.Link, oci.ErrInvalid)
		}
		// A name has no attributes of its own: they are the file's.
		t := &w.entries[i]
		e.Mode, e.UID, e.GID, e.ModTime, e.Xattrs = t.Mode, t.UID, t.GID, t.ModTime, t.Xattrs
		switch t.Type {
		case Dir, Opaque, Whiteout, HardLink:
			return fmt.Errorf("hard link to %.100q, which is no file: %w", e.Link, oci.ErrInvalid)
		}
	case Char, Block:
		if uint64(e.DevMajor) > 0o7777777 || uint64(e.DevMinor) > 0o7777777 {
			return fmt.Errorf("device %d:%d: %w", e.DevMajor, e.DevMinor, oci.ErrInvalid)
		}
		if e.Type == Char && e.DevMajor == 0 && e.DevMinor == 0 {
			return fmt.Errorf("character device 0:0 is overlayfs' whiteout: %w", oci.ErrInvalid)
		}
	default:
		return fmt.Errorf("type %q: %w", byte(e.Type), oci.ErrInvalid)
	}
	if e.Path == "." {
		return fmt.Errorf("the root is a directory: %w", oci.ErrInvalid)
	}
	return nil
}

// validID refuses what chown(2) cannot express; the last id means "unchanged".
func validID(id int) bool { return id >= 0 && id < 1<<32-1 }

// checkPath accepts what Entry.Path promises, no more.
func checkPath(p string) error {
	if p == "." {
		return nil
	}
	if p == "" || len(p) >= maxPath {
		return fmt.Errorf("a path has 1 to %d bytes, not %d: %w", maxPath-1, len(p), oci.ErrInvalid)
	}
	if strings.IndexByte(p, 0) >= 0 {
		return fmt.Errorf("NUL in a path: %w", oci.ErrInvalid)
	}
	for rest, depth := p, 1; ; depth++ {
		name, more, ok := strings.Cut(rest, "/")
		switch {
		case name == "" || name == "." || name == "..":
			return fmt.Errorf("path is not clean: %w", oci.ErrInvalid)
		case len(name) > maxName || depth > maxDepth:
			return fmt.Errorf("name longer than %d bytes or path deeper than %d: %w", maxName, maxDepth, oci.ErrInvalid)
		case strings.HasPrefix(name, whiteoutPrefix):
			return fmt.Errorf("names that begin with %q are whiteouts in image layers; rename it: %w", whiteoutPrefix, oci.ErrInvalid)
		}
		if !ok {
			return nil
		}
		rest = more
	}
}

func checkOrder(prev, e *Entry) error {
	switch {
	case !Less(prev, e):
		return fmt.Errorf("comes after %q, out of order or twice: %w", prev.Path, oci.ErrInvalid)
	case prev.Path == e.Path && prev.Type != Dir:
		return fmt.Errorf("opaque, but not a directory: %w", oci.ErrInvalid)
	case prev.Type != Dir && prev.Type != Opaque && len(e.Path) > len(prev.Path) &&
		e.Path[len(prev.Path)] == '/' && strings.HasPrefix(e.Path, prev.Path):
		// The order keeps a subtree together, so prev is all there is to check.
		return fmt.Errorf("lies in %q, which is no directory: %w", prev.Path, oci.ErrInvalid)
	}
	return nil
}

// block returns the next 512 bytes of the tar, zeroed, to be filled in.
func (w *Writer) block() ([]byte, error) {
	b, err := w.room()
	if err != nil {
		return nil, err
	}
	b = b[:blockSize]
	clear(b)
	w.advance(blockSize)
	return b, nil
}

// room returns what is free of the current chunk, at least one byte.
func (w *Writer) room() ([]byte, error) {
	if w.cur != nil && w.cur.n == len(w.cur.b) {
		c := w.cur
		w.cur = nil
		w.d.put(c, toStream) // hashed while it is written
		w.d.put(c, toContents)
		_, err := w.w.Write(c.b[:c.n])
		w.d.release(c)
		if err != nil {
			return nil, err
		}
	}
	if w.cur == nil {
		w.cur = w.d.get()
	}
	return w.cur.b[w.cur.n:], nil
}

func (w *Writer) advance(n int) {
	w.cur.n += n
	w.off += int64(n)
}

// content copies e's content into the tar: read straight into the chunk that
// will be written, and hashed there in the background.
func (w *Writer) content(e *Entry, r io.Reader) error {
	want := e.Digest == ""
	var err error
	for left := e.Size; left > 0; {
		b, werr := w.room()
		if werr != nil {
			return werr
		}
		if r == nil || err == io.EOF {
			return fmt.Errorf("content ended %d bytes short of %d: %w", left, e.Size, oci.ErrInvalid)
		}
		if err != nil {
			return err
		}
		var n int
		n, err = r.Read(b[:min(int64(len(b)), left)])
		left -= int64(n)
		if want && (n > 0 || left == 0) {
			c := w.cur
			c.segs = append(c.segs, segment{from: c.n, to: c.n + n, entry: len(w.entries), last: left == 0})
		}
		w.advance(n)
	}
	for r != nil && err == nil {
		var n int
		if n, err = r.Read(w.one[:]); n > 0 {
			return fmt.Errorf("content is longer than its %d bytes: %w", e.Size, oci.ErrInvalid)
		}
	}
	if r != nil && err != io.EOF {
		return err
	}
	if want && e.Size == 0 {
		e.Digest = emptyDigest
	}
	return w.pad()
}

// pad fills the block that the content ended in with zeros.
func (w *Writer) pad() error {
	if k := int(w.off % blockSize); k != 0 {
		b, err := w.room()
		if err != nil {
			return err
		}
		clear(b[:blockSize-k])
		w.advance(blockSize - k)
	}
	return nil
}
