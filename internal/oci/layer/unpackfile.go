package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sys/unix"
)

func (u *unpacker) file(ctx context.Context, d *dirNode, name string, e *Entry) error {
	mode := e.Mode & 0o777
	fd, err := u.create(d, name, func(at int) (int, error) {
		return newFile(at, name, mode)
	})
	if err != nil {
		return err
	}
	if err := u.fill(ctx, fd, e); err != nil {
		unix.Close(fd)
		return err
	}
	return closeFile(fd)
}

func newFile(at int, name string, mode uint32) (int, error) {
	return unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
}

// closeFile reports what a network file system finds out only now.
func closeFile(fd int) error {
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

// fill writes the content and then the attributes, in the order that loses
// none of them.
func (u *unpacker) fill(ctx context.Context, fd int, e *Entry) error {
	var err error
	if u.s.sparse {
		err = u.s.content(e, func(b []byte) error { return writeSparse(ctx, fd, b) })
		if err == nil {
			err = unix.Ftruncate(fd, e.Size)
		}
	} else {
		err = u.s.content(e, func(b []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return writeAll(fd, b)
		})
	}
	if err != nil {
		return err
	}
	return u.attributes(fd, e)
}

// attributes gives an open file, made a moment ago, what e says.
func (u *unpacker) attributes(fd int, e *Entry) error {
	// A new file is ours; chown always where it is for somebody else.
	if e.UID != 0 || e.GID != 0 || !u.rooted {
		if err := unix.Fchown(fd, e.UID, e.GID); err != nil {
			return u.chownError(e, err)
		}
	}
	if e.Mode&^0o777 != 0 || e.Mode&u.umask != 0 {
		if err := unix.Fchmod(fd, e.Mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := u.xattrs(e, func(k string, v []byte) error { return unix.Fsetxattr(fd, k, v, 0) }); err != nil {
		return err
	}
	return futimes(fd, e.ModTime)
}

func (u *unpacker) chownError(e *Entry, err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("lchown %.300q to %d:%d: %w: add a range for the user to /etc/subuid and /etc/subgid, or run as root", e.Path, e.UID, e.GID, err)
	}
	return fmt.Errorf("set owner of %.300q: %w", e.Path, err)
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// writeSparse leaves holes where there are only zeros.
func writeSparse(ctx context.Context, fd int, b []byte) error {
	const page = 4096
	if err := ctx.Err(); err != nil {
		return err
	}
	var zero [page]byte
	for len(b) > 0 {
		n := min(len(b), page)
		if bytes.Equal(b[:n], zero[:n]) {
			if _, err := unix.Seek(fd, int64(n), io.SeekCurrent); err != nil {
				return fmt.Errorf("seek: %w", err)
			}
		} else if err := writeAll(fd, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// xattrs sets e's, where the file system has any. A user namespace may not set
// trusted ones, and user ones only on files and directories.
func (u *unpacker) xattrs(e *Entry, set func(string, []byte) error) error {
	if len(e.Xattrs) == 0 {
		return nil
	}
	names := make([]string, 0, len(e.Xattrs))
	for k := range e.Xattrs {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		err := set(k, []byte(e.Xattrs[k]))
		if err == nil || errors.Is(err, unix.ENOTSUP) || u.opt.Unprivileged && errors.Is(err, unix.EPERM) {
			continue
		}
		return fmt.Errorf("set xattr %.100q of %.300q: %w", k, e.Path, err)
	}
	return nil
}
