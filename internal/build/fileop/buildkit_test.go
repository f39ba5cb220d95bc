package fileop_test

import (
	stdtar "archive/tar"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/continuity/fs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/go-archive"
	"github.com/moby/go-archive/compression"
	fscopy "github.com/tonistiigi/fsutil/copy"
)

// reference applies an action to the real directory dst with the libraries
// that BuildKit uses, in the way that its backend does.
func reference(ctx context.Context, dst string, a *pb.FileAction, src string) error {
	switch t := a.Action.(type) {
	case *pb.FileAction_Mkdir:
		p, err := fs.RootPath(dst, t.Mkdir.Path)
		if err != nil {
			return err
		}
		ch := chowner(t.Mkdir.Owner)
		if t.Mkdir.MakeParents {
			_, err = fscopy.MkdirAll(p, os.FileMode(t.Mkdir.Mode)&0o777, ch, stamp(t.Mkdir.Timestamp))
			return err
		}
		if err := os.Mkdir(p, os.FileMode(t.Mkdir.Mode)&0o777); err != nil {
			if os.IsExist(err) {
				return nil
			}
			return err
		}
		return finish(p, ch, t.Mkdir.Timestamp)
	case *pb.FileAction_Mkfile:
		p, err := fs.RootPath(dst, filepath.Join("/", t.Mkfile.Path))
		if err != nil {
			return err
		}
		tmp := filepath.Join(filepath.Dir(p), ".tmp")
		if err := os.WriteFile(tmp, t.Mkfile.Data, 0o600); err != nil {
			return err
		}
		if err := os.Chmod(tmp, os.FileMode(t.Mkfile.Mode)&0o777); err != nil {
			return err
		}
		if err := finish(tmp, chowner(t.Mkfile.Owner), t.Mkfile.Timestamp); err != nil {
			return err
		}
		return os.Rename(tmp, p)
	case *pb.FileAction_Symlink:
		p, err := fs.RootPath(dst, filepath.Join("/", t.Symlink.Newpath))
		if err != nil {
			return err
		}
		if err := os.Symlink(t.Symlink.Oldpath, p); err != nil {
			return err
		}
		return finish(p, chowner(t.Symlink.Owner), t.Symlink.Timestamp)
	case *pb.FileAction_Rm:
		all := []string{t.Rm.Path}
		if t.Rm.AllowWildcard {
			var err error
			if all, err = fscopy.ResolveWildcards(dst, filepath.Join("/", t.Rm.Path), false); err != nil {
				return err
			}
		}
		for _, p := range all {
			dir, base := filepath.Split(filepath.Join("/", p))
			if base == "" {
				return fmt.Errorf("empty path")
			}
			dir, err := fs.RootPath(dst, dir)
			if err != nil {
				return err
			}
			if _, err := os.Lstat(filepath.Join(dir, base)); err != nil {
				if t.Rm.AllowNotFound {
					continue // os.RemoveAll would open a fifo above it, and wait
				}
				return err
			}
			if err := os.RemoveAll(filepath.Join(dir, base)); err != nil {
				return err
			}
		}
		return nil
	case *pb.FileAction_Copy:
		return referenceCopy(ctx, dst, t.Copy, src)
	}
	return fmt.Errorf("action %T", a.Action)
}

func referenceCopy(ctx context.Context, dst string, a *pb.FileActionCopy, src string) error {
	if !a.CreateDestPath {
		p, err := fs.RootPath(dst, filepath.Join("/", a.Dest))
		if err != nil {
			return err
		}
		if _, err := os.Lstat(filepath.Dir(p)); err != nil {
			return err
		}
	}
	ch := chowner(a.Owner)
	all := []string{withSlash(a.Src)}
	if a.AllowWildcard {
		var err error
		if all, err = fscopy.ResolveWildcards(src, withSlash(a.Src), a.FollowSymlink); err != nil {
			return err
		}
		if len(all) == 0 && !a.AllowEmptyWildcard {
			return fmt.Errorf("%s not found", withSlash(a.Src))
		}
	}
	for _, s := range all {
		if a.AttemptUnpackDockerCompatibility {
			if ok, err := referenceUnpack(ctx, src, s, dst, a); ok || err != nil {
				if err != nil {
					return err
				}
				continue
			}
		}
		err := fscopy.Copy(ctx, src, s, dst, withSlash(a.Dest), func(ci *fscopy.CopyInfo) {
			ci.IncludePatterns, ci.ExcludePatterns = a.IncludePatterns, a.ExcludePatterns
			ci.Chown, ci.Utime = ch, stamp(a.Timestamp)
			if a.ModeStr != "" {
				ci.ModeStr = a.ModeStr
			} else if m := int(a.Mode); m != -1 {
				ci.Mode = &m
			}
			ci.CopyDirContents, ci.FollowLinks = a.DirCopyContents, a.FollowSymlink
			ci.AlwaysReplaceExistingDestPaths = a.AlwaysReplaceExistingDestPaths
		}, fscopy.AllowXAttrErrors)
		if err != nil {
			return err
		}
	}
	return nil
}

func referenceUnpack(ctx context.Context, srcRoot, s, dstRoot string, a *pb.FileActionCopy) (bool, error) {
	p, err := fs.RootPath(srcRoot, s)
	if err != nil {
		return false, err
	}
	if fi, err := os.Lstat(p); err != nil || !fi.Mode().IsRegular() {
		return false, nil
	}
	f, err := os.Open(p)
	if err != nil {
		return false, nil
	}
	defer f.Close()
	r, err := compression.DecompressStream(f)
	if err != nil {
		return false, nil
	}
	defer r.Close()
	if _, err := stdtar.NewReader(r).Next(); err != nil {
		return false, nil
	}
	dst, err := fs.RootPath(dstRoot, withSlash(a.Dest))
	if err != nil {
		return false, err
	}
	if _, err := fscopy.MkdirAll(dst, 0o755, chowner(a.Owner), stamp(a.Timestamp)); err != nil {
		return false, err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return false, err
	}
	// Like BuildKit's chrootarchive: in a process of its own that sees no more
	// than the destination.
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Stdin, cmd.Env = f, []string{untarVariable + "=" + dst}
	if a.Owner != nil {
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s_OWNER=%d:%d", untarVariable, a.Owner.User.GetByID(), a.Owner.Group.GetByID()))
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return true, fmt.Errorf("%v: %s", err, out)
	}
	return true, nil
}

const untarVariable = "STRAKE_TEST_UNTAR"

// untar is what the process that referenceUnpack starts does.
func untar() error {
	dir := os.Getenv(untarVariable)
	if err := syscall.Chroot(dir); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	opt := &archive.TarOptions{BestEffortXattrs: true}
	if o := os.Getenv(untarVariable + "_OWNER"); o != "" {
		opt.ChownOpts = &archive.ChownOpts{}
		if _, err := fmt.Sscanf(o, "%d:%d", &opt.ChownOpts.UID, &opt.ChownOpts.GID); err != nil {
			return err
		}
	}
	return archive.Untar(os.Stdin, "/", opt)
}

func withSlash(s string) string {
	c := filepath.Join("/", s)
	switch {
	case c == "/":
	case strings.HasSuffix(s, "/."):
		c += "/."
	case strings.HasSuffix(s, "/"):
		c += "/"
	}
	return c
}

func stamp(ts int64) *time.Time {
	if ts == -1 {
		return nil
	}
	t := time.Unix(0, ts)
	return &t
}

// chowner of numeric owners; names are tested elsewhere.
func chowner(o *pb.ChownOpt) fscopy.Chowner {
	return func(was *fscopy.User) (*fscopy.User, error) {
		if o == nil {
			return was, nil
		}
		return &fscopy.User{UID: int(o.User.GetByID()), GID: int(o.Group.GetByID())}, nil
	}
}

func finish(p string, ch fscopy.Chowner, ts int64) error {
	if err := fscopy.Chown(p, nil, ch); err != nil {
		return err
	}
	return fscopy.Utimes(p, stamp(ts))
}
