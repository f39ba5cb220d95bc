package fileop

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

const (
	capability = "security.capability"
)

// unpack extracts s into a's destination if it is a tar, packed or not, and
// tells whether it was.
func (d *Draft) unpack(ctx context.Context, v tree.View, s source, a *pb.FileActionCopy, o *owner) (bool, error) {
	at, err := statOf(v).resolve(s.name, true)
	if err != nil {
		return false, nil
	}
	e := statOf(v)(at)
	if e == nil || e.Type != layer.Regular || e.Size == 0 {
		return false, nil
	}
	f, err := v.Open(ctx, at)
	if err != nil {
		return false, err
	}
	defer f.Close()
	plain, _, err := layer.Decompress(f)
	if err != nil {
		return noArchive(s, err)
	}
	defer plain.Close()
	tr := tar.NewReader(plain)
	hdr, err := tr.Next()
	if err != nil {
		return noArchive(s, err)
	}
	dst, err := statter(d.stat).resolve(a.Dest, true)
	if err != nil {
		return false, err
	}
	if _, err := d.mkdirAll(dst, defaultDirMode, o, d.timeOf(a.Timestamp)); err != nil {
		return false, err
	}
	u := &unpacker{d: d, dst: dst, owner: o, at: statter(d.stat).under(dst)}
	for ; err == nil; hdr, err = tr.Next() {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if err := u.entry(hdr, tr); err != nil {
			return false, fmt.Errorf("unpack %s: %s: %w", slash(s.name), hdr.Name, err)
		}
	}
	if !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("unpack %s: %w: %w", slash(s.name), err, oci.ErrInvalid)
	}
	// What lies behind the archive's end is nobody's: padding, rubbish, the rest
	// of a packing that was cut off.
	if err := u.dirTimes(); err != nil {
		return false, fmt.Errorf("unpack %s: %w", slash(s.name), err)
	}
	if err := d.spool.flush(); err != nil {
		return false, err
	}
	return true, nil
}

// noArchive says of what cannot be read as an archive that it is none, unless
// only we cannot read it.
func noArchive(s source, err error) (bool, error) {
	if errors.Is(err, oci.ErrUnsupported) {
		return false, fmt.Errorf("unpack %s: %w", slash(s.name), err)
	}
	return false, nil
}

type unpacker struct {
	d     *Draft
	dst   string
	at    statter // sees dst as the root
	owner *owner
	dirs  []dirTime
}

// dirTime is the time that an archive has for the directory name.
type dirTime struct {
	name string
	time time.Time
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if h.Uid < 0 || h.Gid < 0 {
		return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, oci.ErrInvalid)
	}
	name := path.Clean(h.Name)
	if name == "." {
		return nil // whatever it is: the destination stays as it is
	}
	p, err := u.place(name)
	if err != nil {
		return err
	}
	was := u.d.stat(p)
	if p == u.dst && h.Typeflag != tar.TypeDir {
		return fmt.Errorf("is no directory but names the root: %w", oci.ErrInvalid)
	}
	if was != nil && (was.Type != layer.Dir || h.Typeflag != tar.TypeDir) {
		if err := u.d.remove(p); err != nil {
			return err
		}
		was = nil
	}
	i, err := u.inode(h, r, p, was)
	if err != nil {
		return err
	}
	if err := u.attributes(i, h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		u.dirs = append(u.dirs, dirTime{name, i.e.ModTime})
	}
	return nil
}

// place is where name goes. The destination is the archive's root, whose parent
// is itself: docker unpacks in a chroot. Directories that the archive does not
// name are made.
func (u *unpacker) place(name string) (string, error) {
	name = path.Join("/", name)
	dir, err := u.directory(path.Dir(name))
	if err != nil {
		return "", err
	}
	if _, err := u.d.mkdirAll(dir, defaultDirMode, &owner{}, u.d.now); err != nil {
		return "", err
	}
	return path.Join(dir, path.Base(name)), nil
}

// directory follows the symlinks in name, inside the destination, as the kernel
// does: what a link names has to be there, only name's own end may be missing.
func (u *unpacker) directory(name string) (string, error) {
	at, link, links := ".", "", 0
	for rest := name; link != "" || rest != ""; {
		var c string
		linked := link != ""
		if linked {
			c, link, _ = strings.Cut(link, "/")
		} else {
			c, rest, _ = strings.Cut(rest, "/")
		}
		switch c {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, c)
		e := u.at(next)
		switch {
		case e == nil && linked:
			return "", pathError("open", name, syscall.ENOENT)
		case e == nil:
			return path.Join(u.dst, next, rest), nil
		case e.Type == layer.Dir:
			at = next
		case e.Type != layer.Symlink:
			return "", pathError("open", name, syscall.ENOTDIR)
		default:
			if links++; links > maxLinks {
				return "", pathError("open", name, syscall.ELOOP)
			}
			if strings.HasPrefix(e.Link, "/") {
				at = "."
			}
			link = e.Link + "/" + link
		}
	}
	return path.Join(u.dst, at), nil
}

// inode makes what h is at p, or returns the directory that is there.
func (u *unpacker) inode(h *tar.Header, r io.Reader, p string, was *layer.Entry) (*inode, error) {
	i := &inode{}
	switch h.Typeflag {
	case tar.TypeDir:
		if was != nil {
			return u.d.own(p).inode, nil
		}
		i.e.Type = layer.Dir
	case tar.TypeReg:
		i.e.Type = layer.Regular
		if err := u.d.keep(i, r); err != nil {
			return nil, err
		}
	case tar.TypeLink:
		target := path.Join("/", h.Linkname)
		dir, err := u.directory(path.Dir(target))
		if err != nil {
			return nil, err
		}
		if err := u.d.link(path.Join(dir, path.Base(target)), p); err != nil {
			return nil, err
		}
		return u.d.own(p).inode, nil
	case tar.TypeSymlink:
		i.e.Type, i.e.Link = layer.Symlink, h.Linkname
	case tar.TypeChar:
		i.e.Type, i.e.DevMajor, i.e.DevMinor = layer.Char, h.Devmajor, h.Devminor
	case tar.TypeBlock:
		i.e.Type, i.e.DevMajor, i.e.DevMinor = layer.Block, h.Devmajor, h.Devminor
	case tar.TypeFifo:
		i.e.Type = layer.Fifo
	default:
		return nil, fmt.Errorf("unhandled tar header type %d: %w", h.Typeflag, oci.ErrUnsupported)
	}
	err := u.d.put("open", p, i)
	return i, err
}

// attributes gives i what h says, in the order of docker's system calls: a new
// owner takes a file's capability, which h may give anew.
func (u *unpacker) attributes(i *inode, h *tar.Header) error {
	i.e.UID, i.e.GID = h.Uid, h.Gid
	if u.owner != nil {
		i.e.UID, i.e.GID = u.owner.uid, u.owner.gid
	}
	if i.e.Type != layer.Dir {
		delete(i.e.Xattrs, capability)
	}
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, layer.PAXXattr)
		if !ok {
			continue
		}
		if name == capability && !isCapability(v) {
			return fmt.Errorf("xattr %s: %d bytes that are none: %w", name, len(v), oci.ErrInvalid)
		}
		if i.e.Xattrs == nil {
			i.e.Xattrs = map[string]string{}
		}
		i.e.Xattrs[name] = v
	}
	switch {
	case i.e.Type != layer.Symlink:
		i.e.Mode = uint32(h.Mode) & 0o7777
	case h.Typeflag == tar.TypeLink:
		return nil // a further name of a symlink changes only its owner
	default:
		i.e.Mode = 0o777
	}
	i.e.ModTime = h.ModTime
	if h.ModTime.Before(time.Unix(0, 0)) || h.ModTime.After(time.Unix(0, 1<<63-1)) {
		i.e.ModTime = time.Unix(0, 0)
	}
	return nil
}

// isCapability tells whether Linux takes v for a file's capabilities: version
// 2, or 3 with the user namespace it is for.
func isCapability(v string) bool {
	return len(v) == 20 && v[3] == 2 || len(v) == 24 && v[3] == 3
}

// dirTimes gives directories the times that the archive has for them, which
// were overtaken by what was put into them. By now a name may be a file's or
// lead elsewhere, where the time goes then, or nowhere: docker fails.
func (u *unpacker) dirTimes() error {
	for _, x := range u.dirs {
		p, err := u.at.resolve(x.name, true)
		if err != nil {
			return err
		}
		n := u.d.own(path.Join(u.dst, p))
		if n == nil {
			return pathError("chtimes", x.name, syscall.ENOENT)
		}
		n.inode.e.ModTime = x.time
	}
	return nil
}

// keep reads r to its end into the spool.
func (d *Draft) keep(i *inode, r io.Reader) error {
	if d.spool == nil {
		d.spool = &spool{}
	}
	h := digest.SHA256.Hash()
	off, n, err := d.spool.write(io.TeeReader(r, h))
	if err != nil {
		return err
	}
	i.content, i.e.Size = content{spool: d.spool, off: off, size: n}, n
	i.e.Digest = digest.NewDigest(digest.SHA256, h)
	return nil
}
