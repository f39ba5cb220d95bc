package fileop

import (
	"bufio"
	"fmt"
	"io"
	"os"
)

// spool keeps the contents of unpacked archives until they are written: an
// archive has them in its own order, a layer in the canonical one. It is one
// file, unlinked from its first moment, so that nothing is left behind
// whatever happens.
type spool struct {
	dir string
	f   *os.File
	w   *bufio.Writer
	end int64
}

// write appends all of r and returns where it lies.
func (s *spool) write(r io.Reader) (off, n int64, err error) {
	if s.f == nil {
		if s.f, err = os.CreateTemp(s.dir, ".strake-add-*"); err != nil {
			return 0, 0, fmt.Errorf("space to unpack an archive: %w", err)
		}
		if err := os.Remove(s.f.Name()); err != nil {
			return 0, 0, fmt.Errorf("space to unpack an archive: %w", err)
		}
		s.w = bufio.NewWriterSize(s.f, 256<<10)
	}
	off = s.end
	n, err = io.Copy(s.w, r)
	s.end += n
	return off, n, err
}

// flush ends a series of writes; what was written can be read then.
func (s *spool) flush() error {
	if s == nil || s.w == nil {
		return nil
	}
	return s.w.Flush()
}

// read returns the n bytes at off.
func (s *spool) read(off, n int64) io.Reader {
	return io.NewSectionReader(s.f, off, n)
}

func (s *spool) close() error {
	if s == nil || s.f == nil {
		return nil
	}
	return s.f.Close()
}
