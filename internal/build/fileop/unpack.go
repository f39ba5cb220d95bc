package fileop

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

const paxXattr = "SCHILY.xattr."

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
		return false, nil
	}
	defer plain.Close()
	tr := tar.NewReader(plain)
	hdr, err := tr.Next()
	if err != nil {
		return false, nil
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
	u.dirTimes()
	if err := d.spool.flush(); err != nil {
		return false, err
	}
	// What lies behind the tar's end belongs to a damaged or truncated packing
	// only if it cannot be unpacked.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return false, fmt.Errorf("unpack %s: %w: %w", slash(s.name), err, oci.ErrInvalid)
	}
	return true, nil
}

type unpacker struct {
	d     *Draft
	dst   string
	at    statter // sees dst as the root
	owner *owner
	dirs  []dirTime
}

type dirTime struct {
	path string
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
	if name == ".." || strings.HasPrefix(name, "../") {
		// The destination is the archive's root, whose parent is itself: docker
		// unpacks in a chroot.
		name = path.Clean("./" + path.Join("/", name))
	}
	p, err := u.place(name)
	if err != nil {
		return err
	}
	was := u.d.stat(p)
	if p == u.dst {
		switch {
		case name == ".":
			return nil // whatever it is: the destination stays as it is
		case h.Typeflag == tar.TypeDir && name == "/":
			u.attributes(u.d.own(p).inode, h)
			u.dirs = append(u.dirs, dirTime{p, u.d.own(p).inode.e.ModTime})
			return nil
		case h.Typeflag == tar.TypeDir:
			return nil
		}
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
	u.attributes(i, h)
	if h.Typeflag == tar.TypeDir {
		u.dirs = append(u.dirs, dirTime{p, i.e.ModTime})
	}
	return nil
}

// place is where name goes: symlinks in the directories above it are followed,
// inside the destination. Directories that the archive does not name are made.
func (u *unpacker) place(name string) (string, error) {
	dir, err := u.at.resolve(path.Dir(path.Join("/", name)), true)
	if err != nil {
		return "", err
	}
	dir = path.Join(u.dst, dir)
	if _, err := u.d.mkdirAll(dir, defaultDirMode, &owner{}, u.d.now); err != nil {
		return "", err
	}
	return path.Join(dir, path.Base(slash(name))), nil
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
		target, err := u.place(path.Clean(path.Join("/", h.Linkname)))
		if err != nil {
			return nil, err
		}
		if err := u.d.link(target, p); err != nil {
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
	_, err := u.d.put("open", p, i)
	return i, err
}

func (u *unpacker) attributes(i *inode, h *tar.Header) {
	i.e.UID, i.e.GID = h.Uid, h.Gid
	if u.owner != nil {
		i.e.UID, i.e.GID = u.owner.uid, u.owner.gid
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, paxXattr); ok {
			if i.e.Xattrs == nil {
				i.e.Xattrs = map[string]string{}
			}
			i.e.Xattrs[name] = v
		}
	}
	if i.e.Type == layer.Symlink {
		i.e.Mode = 0o777
	} else {
		i.e.Mode = uint32(h.Mode) & 0o7777
	}
	i.e.ModTime = h.ModTime
	if h.ModTime.Before(time.Unix(0, 0)) || h.ModTime.After(time.Unix(0, 1<<63-1)) {
		i.e.ModTime = time.Unix(0, 0)
	}
}

// dirTimes gives directories the times that the archive has for them, which
// were overtaken by what was put into them.
func (u *unpacker) dirTimes() {
	for _, x := range u.dirs {
		if n := u.d.own(x.path); n != nil && n.inode.e.Type == layer.Dir {
			n.inode.e.ModTime = x.time
		}
	}
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
