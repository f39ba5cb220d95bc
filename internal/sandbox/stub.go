package sandbox

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stubs are mount points that had to be made in the root because the lowest
// layer's did not show: the way to the destination leads over a symbolic link
// of the image, or a layer deleted it. Those that came to lie in the upper
// directory are removed afterwards, with every directory that was copied up
// for them and everything's times as before, so that they are no part of the
// layer.
type stubs struct {
	upper *os.Root // nil where there is none
	made  []madeStub
}

type madeStub struct {
	path   string // in the root, without leading slash
	parent string
	was    time.Time // parent's mtime before
	now    time.Time // and after the stub was made
	copied []copied  // ancestors that were not in the upper directory, deepest first
}

// copied is a directory that making a stub copied up.
type copied struct {
	path string
	was  fs.FileInfo
}

func newStubs(upper string) (stubs, error) {
	if upper == "" {
		return stubs{}, nil
	}
	root, err := os.OpenRoot(upper)
	return stubs{upper: root}, err
}

// make makes w's mount point in the root that the calling thread sees.
func (s *stubs) make(w *pending) error {
	dest, err := follow(w.dest)
	if err != nil {
		return err
	}
	dirs := strings.Split(dest, "/")
	for i := range dirs {
		at := strings.Join(dirs[:i+1], "/")
		if _, err := os.Lstat("/" + at); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := s.makeOne(at, w.dir || i < len(dirs)-1, w.mode); err != nil {
			return err
		}
	}
	return nil
}

func (s *stubs) makeOne(at string, dir bool, mode uint32) error {
	m := madeStub{path: at, parent: path.Dir(at)}
	info, err := os.Lstat("/" + m.parent)
	if err != nil {
		return err
	}
	m.was = info.ModTime()
	for up := m.parent; s.upper != nil && up != "."; up = path.Dir(up) {
		if _, err := s.upper.Lstat(up); err == nil {
			break
		}
		info, err := os.Lstat("/" + up)
		if err != nil {
			return err
		}
		m.copied = append(m.copied, copied{up, info})
	}
	if mode == 0 {
		mode = 0o755
	}
	if dir {
		err = unix.Mkdir("/"+at, mode&0o7777)
	} else {
		var f *os.File
		if f, err = os.OpenFile("/"+at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755); err == nil {
			f.Close()
		}
	}
	if err != nil {
		return err
	}
	if s.upper == nil {
		return nil
	}
	if _, err := s.upper.Lstat(at); err != nil {
		return nil // it lies in a mount: the machine's directory keeps it, as with docker
	}
	if info, err = s.upper.Lstat(m.parent); err != nil {
		return err
	}
	m.now = info.ModTime()
	s.made = append(s.made, m)
	return nil
}

// follow resolves the symbolic links of an absolute path as far as it exists.
func follow(p string) (string, error) {
	todo := strings.Split(path.Clean(p), "/")
	var done []string
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = done[:max(len(done)-1, 0)]
			continue
		}
		at := "/" + strings.Join(append(done[:len(done):len(done)], name), "/")
		to, err := os.Readlink(at)
		if err != nil {
			done = append(done, name)
			continue
		}
		if links++; links > 40 {
			return "", &fs.PathError{Op: "mount", Path: p, Err: unix.ELOOP}
		}
		if path.IsAbs(to) {
			done = nil
		}
		todo = append(strings.Split(to, "/"), todo...)
	}
	return strings.Join(done, "/"), nil
}

// remove takes back what make made, where nobody has used it since.
func (s *stubs) remove() error {
	if s.upper == nil {
		return nil
	}
	defer s.upper.Close()
	var failed error
	for i := len(s.made) - 1; i >= 0; i-- {
		m := &s.made[i]
		info, err := s.upper.Lstat(m.path)
		if err != nil || !info.IsDir() && (!info.Mode().IsRegular() || info.Size() > 0) {
			continue
		}
		parent, err := s.upper.Lstat(m.parent)
		if err != nil || s.upper.Remove(m.path) != nil {
			continue // a directory that is not empty
		}
		was := parent.ModTime()
		if was.Equal(m.now) {
			was = m.was
		}
		failed = errors.Join(failed, s.upper.Chtimes(m.parent, time.Time{}, was))
		for _, c := range m.copied {
			now, err := s.upper.Lstat(c.path)
			if err != nil || !unchanged(now, c.was) {
				break
			}
			above, err := s.upper.Lstat(path.Dir(c.path))
			if err != nil || s.upper.Remove(c.path) != nil {
				break
			}
			failed = errors.Join(failed, s.upper.Chtimes(path.Dir(c.path), time.Time{}, above.ModTime()))
		}
	}
	return failed
}

// unchanged tells whether a copied-up directory says nothing that the layer
// below does not say.
func unchanged(now, was fs.FileInfo) bool {
	a, ok1 := now.Sys().(*syscall.Stat_t)
	b, ok2 := was.Sys().(*syscall.Stat_t)
	return ok1 && ok2 && a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && now.ModTime().Equal(was.ModTime())
}
