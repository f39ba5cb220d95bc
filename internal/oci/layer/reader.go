package layer

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"

	"github.com/strake-project/strake/internal/oci"
)

// What a foreign tar may ask of memory. A PAX or GNU header is bounded by
// archive/tar (1 MiB).
const (
	maxEntries = 2 << 20
	maxText    = 256 << 20 // of names, links and xattrs, in all
	maxXattr   = 64 << 10  // XATTR_SIZE_MAX
	maxLinks   = 255       // symlinks followed in one path
	maxSparse  = 16 << 30  // bytes that sparse files expand to, in all
)

// Index reads an uncompressed layer tar to its end and returns its TOC. The
// tar may be foreign: names are cleaned, "../" and absolute names resolved
// inside the root, and so are names that lead through a symlink of the same
// tar; what cannot be a layer fails with oci.ErrInvalid.
func Index(r io.Reader) (*TOC, error) {
	s := newScanner(r)
	for {
		e, err := s.next()
		if err == io.EOF {
			return s.finish()
		}
		if err != nil {
			return nil, err
		}
		if err := s.content(e, nil); err != nil {
			return nil, err
		}
	}
}

// scanner reads the entries of a foreign tar one by one.
type scanner struct {
	in   *hashedReader
	tr   *tar.Reader
	file hash.Hash
	buf  []byte
	toc  TOC
	text int64
	// sparse is set where the current entry is stored with holes.
	sparse bool
	holes  int64
	// links are the symlinks of this tar that no later entry replaced.
	links map[string]string
	// The last directory that was resolved, and what to.
	dir, resolved string
}

func newScanner(r io.Reader) *scanner {
	in := newHashedReader(r)
	return &scanner{in: in, tr: tar.NewReader(in), file: sha256.New(), buf: make([]byte, 128<<10), links: map[string]string{}}
}

// next returns the next entry that means something, appended to s.toc, or
// io.EOF after the last one. The pointer is good until the next call.
func (s *scanner) next() (*Entry, error) {
	for {
		h, err := s.tr.Next()
		switch {
		case err == io.EOF:
			return nil, io.EOF
		case errors.Is(err, tar.ErrInsecurePath) && h != nil: // we resolve them
		case err != nil:
			return nil, s.readError(err, "after %d entries", len(s.toc.Entries))
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue // git archive's comment
		}
		e, ok, err := s.entry(h)
		if err != nil {
			return nil, fmt.Errorf("layer tar: entry %.200q: %w", h.Name, err)
		}
		if !ok {
			continue
		}
		if len(s.toc.Entries) >= maxEntries {
			return nil, fmt.Errorf("layer tar has more than %d entries: %w", maxEntries, oci.ErrInvalid)
		}
		s.toc.Entries = append(s.toc.Entries, e)
		return &s.toc.Entries[len(s.toc.Entries)-1], nil
	}
}

// readError tells a malformed tar from an error of the reader below.
func (s *scanner) readError(err error, format string, args ...any) error {
	if s.in.err == nil || s.in.err == io.EOF {
		return fmt.Errorf("layer tar "+format+": %v: %w", append(args, err, oci.ErrInvalid)...)
	}
	return fmt.Errorf("layer tar "+format+": %w", append(args, err)...)
}

// content reads e's content, which must be done before next is called again;
// fn, if given, gets the bytes. The digest is set now or
// by finish.
func (s *scanner) content(e *Entry, fn func([]byte) error) error {
	if e.Type != Regular {
		return nil
	}
	if e.Size == 0 {
		e.Digest = emptyDigest
		return nil
	}
	if s.sparse {
		s.file.Reset()
	} else {
		s.in.entry = len(s.toc.Entries) - 1 // hashed in the background
	}
	var n int64
	for {
		k, err := s.tr.Read(s.buf)
		if k > 0 {
			if s.sparse {
				s.file.Write(s.buf[:k])
			}
			n += int64(k)
			if fn != nil {
				if err := fn(s.buf[:k]); err != nil {
					return err
				}
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return s.readError(err, "in the content of %.200q", e.Path)
		}
	}
	if n != e.Size {
		return fmt.Errorf("layer tar: %.200q has %d of %d bytes: %w", e.Path, n, e.Size, oci.ErrInvalid)
	}
	if s.sparse {
		e.Digest = hexDigest(s.file)
	} else {
		s.in.contentEnd()
	}
	return nil
}

const emptyDigest oci.Digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// finish reads to the end of the stream, past the end of the archive: what
// pads it counts in the diffID.
func (s *scanner) finish() (*TOC, error) {
	if err := s.in.drain(); err != nil {
		return nil, fmt.Errorf("layer tar: %w", err)
	}
	s.toc.DiffID, s.toc.Size = s.in.d.finish(nil, s.toc.Entries)
	return &s.toc, nil
}

// entry translates h; ok is false for what means nothing.
func (s *scanner) entry(h *tar.Header) (e Entry, ok bool, err error) {
	name, err := cleanName(h.Name)
	if err != nil {
		return e, false, err
	}
	dir, base := splitPath(name)
	if strings.HasPrefix(base, aufsPrefix) && base != opaqueName || hasAufsDir(dir) {
		return e, false, nil
	}
	if dir, err = s.resolve(dir); err != nil {
		return e, false, err
	}
	e = Entry{
		Path: join(dir, base), Type: Type(h.Typeflag), Mode: uint32(h.Mode) & 0o7777,
		UID: h.Uid, GID: h.Gid, ModTime: h.ModTime.UTC(),
	}
	if !validID(h.Uid) || !validID(h.Gid) {
		return e, false, fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, oci.ErrInvalid)
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		e, err = whiteout(e, dir, base)
		return e, true, err
	}
	if err := s.describe(&e, h); err != nil {
		return e, false, err
	}
	s.note(&e)
	return e, true, nil
}

// whiteout makes e, named ".wh.…" in the tar, what it stands for.
func whiteout(e Entry, dir, base string) (Entry, error) {
	if base == opaqueName {
		e.Type, e.Path = Opaque, dir
		return e, nil
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return e, fmt.Errorf("a whiteout of nothing that can be removed: %w", oci.ErrInvalid)
	}
	e.Type, e.Path = Whiteout, join(dir, name)
	return e, nil
}

// describe fills in what depends on the type.
func (s *scanner) describe(e *Entry, h *tar.Header) error {
	s.sparse = false
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Type, e.Size, e.Offset = Regular, h.Size, s.in.off
		if h.Typeflag == tar.TypeGNUSparse || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != "" {
			s.sparse, e.Offset = true, -1
			if s.holes += e.Size; s.holes > maxSparse || e.Size > maxSparse {
				return fmt.Errorf("sparse files of more than %d bytes: %w", int64(maxSparse), oci.ErrInvalid)
			}
		}
	case tar.TypeLink:
		target, err := cleanName(h.Linkname)
		if err != nil {
			return err
		}
		dir, base := splitPath(target)
		if dir, err = s.resolve(dir); err != nil {
			return err
		}
		e.Link = join(dir, base)
		if e.Link == "." || e.Link == e.Path {
			return fmt.Errorf("hard link to itself or to the root: %w", oci.ErrInvalid)
		}
	case tar.TypeSymlink:
		e.Link = h.Linkname
		if e.Link == "" || len(e.Link) >= maxPath || strings.IndexByte(e.Link, 0) >= 0 {
			return fmt.Errorf("symlink to %.100q: %w", e.Link, oci.ErrInvalid)
		}
	case tar.TypeChar, tar.TypeBlock:
		e.DevMajor, e.DevMinor = h.Devmajor, h.Devminor
		if uint64(e.DevMajor) > 0o7777777 || uint64(e.DevMinor) > 0o7777777 {
			return fmt.Errorf("device %d:%d: %w", e.DevMajor, e.DevMinor, oci.ErrInvalid)
		}
		if e.Type == Char && e.DevMajor == 0 && e.DevMinor == 0 {
			e.Type = Whiteout // as overlayfs reads it
		}
	case tar.TypeDir, tar.TypeFifo:
	default:
		return fmt.Errorf("type %q is none of a layer's: %w", h.Typeflag, oci.ErrInvalid)
	}
	if e.Path == "." && e.Type != Dir {
		return fmt.Errorf("the root is a directory: %w", oci.ErrInvalid)
	}
	return s.xattrs(e, h)
}

func (s *scanner) xattrs(e *Entry, h *tar.Header) error {
	s.text += int64(len(e.Path) + len(e.Link))
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, PAXXattr)
		if !ok || !portable(name) || e.Type == Whiteout {
			continue
		}
		if len(v) > maxXattr {
			return fmt.Errorf("xattr %.100q has %d bytes, the most is %d: %w", name, len(v), maxXattr, oci.ErrInvalid)
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[strings.Clone(name)] = v
		s.text += int64(len(name) + len(v))
	}
	if s.text > maxText {
		return fmt.Errorf("names and xattrs of more than %d bytes: %w", maxText, oci.ErrInvalid)
	}
	return nil
}

// note keeps s.links in step with the entries.
func (s *scanner) note(e *Entry) {
	switch {
	case e.Type == Symlink:
		s.links[e.Path] = e.Link
		s.dir = ""
	case len(s.links) > 0:
		if _, was := s.links[e.Path]; was && e.Type != Whiteout {
			delete(s.links, e.Path)
			s.dir = ""
		}
	}
}

// resolve follows the symlinks of this tar in the directory dir, inside the
// root, so that an entry's Path is where it really lies.
func (s *scanner) resolve(dir string) (string, error) {
	if len(s.links) == 0 || dir == "." {
		return dir, nil
	}
	if dir == s.dir {
		return s.resolved, nil
	}
	out := dir
	for followed, i := 0, 0; i < len(out); {
		j := len(out)
		if k := strings.IndexByte(out[i:], '/'); k >= 0 {
			j = i + k
		}
		target, ok := s.links[out[:j]]
		if !ok {
			i = j + 1
			continue
		}
		if followed++; followed > maxLinks {
			return "", fmt.Errorf("its directory leads through more than %d symlinks: %w", maxLinks, oci.ErrInvalid)
		}
		base := ""
		if !strings.HasPrefix(target, "/") {
			base = parentOf(out[:j])
		}
		var err error
		if out, err = cleanName(base + "/" + target + out[j:]); err != nil {
			return "", err
		}
		i = 0
		if out == "." {
			break
		}
	}
	s.dir, s.resolved = dir, out
	return out, nil
}

// cleanName makes a tar's name an Entry.Path: relative to the root, which
// ".." cannot leave.
func cleanName(name string) (string, error) {
	if name == "" || len(name) >= 2*maxPath {
		return "", fmt.Errorf("a name of %d bytes: %w", len(name), oci.ErrInvalid)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("NUL in a name: %w", oci.ErrInvalid)
	}
	p := path.Clean("/" + name)[1:]
	if p == "" {
		return ".", nil
	}
	if len(p) >= maxPath {
		return "", fmt.Errorf("a path of %d bytes: %w", len(p), oci.ErrInvalid)
	}
	start, depth := 0, 1
	for i := 0; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			continue
		}
		if i-start > maxName+len(whiteoutPrefix) {
			return "", fmt.Errorf("a file name of %d bytes: %w", i-start, oci.ErrInvalid)
		}
		start = i + 1
		depth++
	}
	if depth > maxDepth+1 {
		return "", fmt.Errorf("a path of %d directories: %w", depth, oci.ErrInvalid)
	}
	return p, nil
}

func hasAufsDir(dir string) bool {
	return strings.HasPrefix(dir, aufsPrefix) || strings.Contains(dir, "/"+aufsPrefix)
}

func join(dir, base string) string {
	if dir == "." {
		return base
	}
	return dir + "/" + base
}
