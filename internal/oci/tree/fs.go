package tree

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"syscall"
	"time"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// FileSystem is what FS returns.
type FileSystem interface {
	fs.ReadDirFS
	fs.StatFS
	fs.ReadLinkFS
}

// FS gives v as an io/fs.FS (with ReadDirFS, StatFS and ReadLinkFS), symlinks
// followed inside the root. Sys of its FileInfos is the *layer.Entry.
func FS(ctx context.Context, v View) FileSystem { return &fileSystem{ctx, v} }

// fileSystem keeps a context since io/fs passes none.
type fileSystem struct {
	ctx context.Context
	v   View
}

// entry finds name, following symlinks, the last component's only if last.
func (f *fileSystem) entry(op, name string, last bool) (*layer.Entry, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	p, err := Resolve(f.v, name, last)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	e, err := f.v.Lstat(p)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: cause(err)}
	}
	return e, nil
}

// cause takes the path off an error that is to get another.
func cause(err error) error {
	if pe, ok := err.(*fs.PathError); ok {
		return pe.Err
	}
	return err
}

func (f *fileSystem) Open(name string) (fs.File, error) {
	e, err := f.entry("open", name, true)
	if err != nil {
		return nil, err
	}
	info := fileInfo{path.Base(name), e}
	if e.Type == layer.Dir {
		list, err := f.list("open", name, e.Path)
		if err != nil {
			return nil, err
		}
		return &openDir{info: info, list: list}, nil
	}
	r := io.NopCloser(io.Reader(bytes.NewReader(nil)))
	if e.Type == layer.Regular {
		if r, err = f.v.Open(f.ctx, e.Path); err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: cause(err)}
		}
	}
	return &openFile{r, info}, nil
}

func (f *fileSystem) ReadDir(name string) ([]fs.DirEntry, error) {
	e, err := f.entry("readdir", name, true)
	if err != nil {
		return nil, err
	}
	return f.list("readdir", name, e.Path)
}

func (f *fileSystem) list(op, name, p string) ([]fs.DirEntry, error) {
	entries, err := f.v.ReadDir(p)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: cause(err)}
	}
	out := make([]fs.DirEntry, len(entries))
	for i, e := range entries {
		out[i] = fs.FileInfoToDirEntry(fileInfo{path.Base(e.Path), e})
	}
	return out, nil
}

func (f *fileSystem) Stat(name string) (fs.FileInfo, error) {
	e, err := f.entry("stat", name, true)
	if err != nil {
		return nil, err
	}
	return fileInfo{path.Base(name), e}, nil
}

func (f *fileSystem) Lstat(name string) (fs.FileInfo, error) {
	e, err := f.entry("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return fileInfo{path.Base(name), e}, nil
}

func (f *fileSystem) ReadLink(name string) (string, error) {
	e, err := f.entry("readlink", name, false)
	if err != nil {
		return "", err
	}
	if e.Type != layer.Symlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return e.Link, nil
}

// Mode is e's mode as io/fs has it.
func Mode(e *layer.Entry) fs.FileMode {
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
	case layer.Dir:
		m |= fs.ModeDir
	case layer.Symlink:
		m |= fs.ModeSymlink
	case layer.Char:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case layer.Block:
		m |= fs.ModeDevice
	case layer.Fifo:
		m |= fs.ModeNamedPipe
	case layer.HardLink:
		m |= fs.ModeIrregular // its target is missing
	}
	return m
}

type fileInfo struct {
	name string
	e    *layer.Entry
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.e.Size }
func (i fileInfo) Mode() fs.FileMode  { return Mode(i.e) }
func (i fileInfo) ModTime() time.Time { return i.e.ModTime }
func (i fileInfo) IsDir() bool        { return i.e.Type == layer.Dir }
func (i fileInfo) Sys() any           { return i.e }

type openFile struct {
	io.ReadCloser
	info fileInfo
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }

type openDir struct {
	info fileInfo
	list []fs.DirEntry
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.name,
		Err: fmt.Errorf("is a directory: %w", oci.ErrInvalid)}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 || n > len(d.list) {
		if n > 0 && len(d.list) == 0 {
			return nil, io.EOF
		}
		n = len(d.list)
	}
	out := d.list[:n]
	d.list = d.list[n:]
	return out, nil
}
