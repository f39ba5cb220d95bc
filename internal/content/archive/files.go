package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// files are the members of a tar or the files of a directory.
type files interface {
	// Open finds the regular file of that clean relative name, symlinks
	// followed. It fails with oci.ErrNotFound.
	Open(name string) (io.ReaderAt, int64, io.Closer, error)
	Close() error
}

// dir is the directory of an OCI layout. os.Root keeps symlinks inside.
type dir struct{ *os.Root }

func (d dir) Open(name string) (io.ReaderAt, int64, io.Closer, error) {
	f, err := d.Root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil, fmt.Errorf("%s: %w", name, oci.ErrNotFound)
	}
	if err != nil {
		return nil, 0, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file: %w", name, oci.ErrInvalid)
	}
	if err != nil {
		f.Close()
		return nil, 0, nil, err
	}
	return f, info.Size(), f, nil
}

// maxMembers bounds the members of a tar. An image has a handful for each
// layer; a tar with more is a file system, and its index would fill memory.
const maxMembers = 100_000

// tarball is a tar in a file, with where its members lie.
type tarball struct {
	file interface {
		io.ReaderAt
		io.Closer
	}
	members map[string]member
}

type member struct {
	offset, size int64
	link         string // where not empty, another member's name
	sparse       bool
}

func (t *tarball) Close() error { return t.file.Close() }

func (t *tarball) Open(name string) (io.ReaderAt, int64, io.Closer, error) {
	at := name
	for range 16 {
		m, ok := t.members[at]
		switch {
		case !ok && at != name:
			return nil, 0, nil, fmt.Errorf("%s links to %s, which the archive lacks: %w", name, at, oci.ErrNotFound)
		case !ok:
			return nil, 0, nil, fmt.Errorf("%s: %w", name, oci.ErrNotFound)
		case m.sparse:
			return nil, 0, nil, fmt.Errorf("%s is a sparse tar member: %w; make the archive again without tar's --sparse", name, oci.ErrUnsupported)
		case m.link == "":
			return io.NewSectionReader(t.file, m.offset, m.size), m.size, io.NopCloser(nil), nil
		}
		at = m.link
	}
	return nil, 0, nil, fmt.Errorf("%s is a loop of links: %w", name, oci.ErrInvalid)
}

// errNotTar is docker's word for whatever cannot be read as a tar.
var errNotTar = errors.New("unexpected EOF")

// badTar makes one line of what archive/tar says.
func badTar(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid{errNotTar}
	}
	return err
}

type invalid struct{ err error }

func (e invalid) Error() string        { return e.err.Error() }
func (e invalid) Unwrap() error        { return e.err }
func (e invalid) Is(target error) bool { return target == oci.ErrInvalid }

// index reads a tar's headers. at tells where r stands.
func index(ctx context.Context, r io.Reader, at func() (int64, error)) (map[string]member, error) {
	members := map[string]member{}
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			if n == 0 { // an empty file, or a tar of nothing
				return nil, invalid{errNotTar}
			}
			return members, nil
		}
		if err != nil {
			return nil, badTar(err)
		}
		if n >= maxMembers {
			return nil, fmt.Errorf("more than %d members: this is no image archive: %w; import makes an image of a file system", maxMembers, oci.ErrInvalid)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name, err := clean(h.Name)
		if err != nil {
			return nil, err
		}
		m := member{size: h.Size}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse:
			_, pax := h.PAXRecords["GNU.sparse.major"]
			m.sparse = pax || h.Typeflag == tar.TypeGNUSparse
			if m.offset, err = at(); err != nil {
				return nil, err
			}
		case tar.TypeSymlink:
			m.link, err = clean(path.Join(path.Dir(name), h.Linkname))
			if path.IsAbs(h.Linkname) {
				err = fmt.Errorf("archive member %q links to %q, outside the archive: %w", h.Name, h.Linkname, oci.ErrInvalid)
			}
		case tar.TypeLink:
			m.link, err = clean(h.Linkname)
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		if m.link == name { // a hard link to itself is nothing
			continue
		}
		members[name] = m
	}
}

// clean makes a member's name relative and refuses one that points outside.
func clean(name string) (string, error) {
	c := path.Clean(strings.TrimLeft(name, "/"))
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", fmt.Errorf("archive member %q points outside the archive: %w", name, oci.ErrInvalid)
	}
	return c, nil
}

// file is what a tar is read from in place.
type file interface {
	io.Reader
	io.ReaderAt
	io.Seeker
	io.Closer
}

// keepOpen is a file that its owner closes.
type keepOpen struct{ *os.File }

func (keepOpen) Close() error { return nil }

// read reads f in place if it can seek and is a plain tar. It owns f.
func read(ctx context.Context, f file, scratch string) (*Archive, error) {
	start, err := f.Seek(0, io.SeekCurrent)
	if err != nil { // a pipe
		defer f.Close()
		return spool(ctx, f, scratch)
	}
	var magic [6]byte
	n, err := io.ReadFull(io.NewSectionReader(f, start, int64(len(magic))), magic[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		f.Close()
		return nil, err
	}
	if layer.Sniff(magic[:n]) != layer.Plain {
		defer f.Close()
		return spool(ctx, f, scratch)
	}
	// archive/tar seeks over the contents: only headers are read.
	members, err := index(ctx, f, func() (int64, error) { return f.Seek(0, io.SeekCurrent) })
	if err != nil {
		f.Close()
		return nil, err
	}
	return resolve(ctx, &tarball{f, members})
}

// spool copies a stream, unpacked, to a file in scratch and learns in the same
// pass where its members lie.
func spool(ctx context.Context, r io.Reader, scratch string) (*Archive, error) {
	plain := bufio.NewReaderSize(r, 1<<20)
	if magic, _ := plain.Peek(6); layer.Sniff(magic) != layer.Plain {
		u, _, err := layer.Decompress(plain)
		if err != nil {
			return nil, err
		}
		defer u.Close()
		plain = bufio.NewReaderSize(u, 1<<20)
	}
	f, err := os.CreateTemp(scratch, "archive-*")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name()) // the open file stays until it is closed, and no longer
	w := &counter{w: bufio.NewWriterSize(f, 1<<20)}
	members, err := index(ctx, io.TeeReader(plain, w), func() (int64, error) { return w.n, nil })
	if err == nil {
		err = w.w.Flush()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	// Read the padding too, or the program that writes it gets a SIGPIPE.
	io.CopyN(io.Discard, plain, 1<<20)
	return resolve(ctx, &tarball{f, members})
}

type counter struct {
	w *bufio.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func bytesAt(b []byte) io.ReaderAt { return bytes.NewReader(b) }
