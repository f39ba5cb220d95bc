package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
	"github.com/strake-project/strake/internal/sandbox"
	"github.com/strake-project/strake/internal/userns"
)

// Cache mounts live below ROOT/caches, one directory for each id and initial
// content, which stay from build to build:
//
//	caches/KEY/N/data   what is mounted; N counts from 0 where sharing=private
//	                    needs several at once
//	caches/KEY/N/lock   flock: shared by users of sharing=shared, exclusive for
//	                    the others
//	caches/KEY/id       the id, for people
func (m *mounts) cache(ctx context.Context, mnt *pb.Mount) error {
	if mnt.CacheOpt == nil {
		return fmt.Errorf("cache mount without options: %w", oci.ErrInvalid)
	}
	in, err := m.input(ctx, mnt)
	if err != nil {
		return err
	}
	key, err := mountKey(ctx, mnt.CacheOpt, in)
	if err != nil {
		return err
	}
	base := filepath.Join(m.opt.Store.Root(), "caches", key.Encoded())
	if err := os.MkdirAll(base, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(base, "id"), []byte(mnt.CacheOpt.ID), 0o600); err != nil {
		return err
	}
	dir, unlock, err := lockCache(ctx, base, mnt.CacheOpt.Sharing)
	if err != nil {
		return err
	}
	m.closers = append(m.closers, unlock)
	m.changed(dir)
	data := filepath.Join(dir, "data")
	if err := m.restoreMount(ctx, key, mnt.CacheOpt.ID, dir, data, mnt.CacheOpt.Sharing); err != nil {
		return err
	}
	if err := fillCache(ctx, dir, data, in); err != nil {
		return err
	}
	if err := makeSelected(data, mnt.Selector); err != nil {
		return err
	}
	// The sandbox resolves the selector: what other steps write to the cache
	// meanwhile leads nowhere outside.
	m.list = append(m.list, sandbox.Mount{Type: "bind", Source: data, Selector: mnt.Selector, Destination: mnt.Dest, ReadOnly: mnt.Readonly})
	return nil
}

// makeSelected makes the directory that selector names in the cache at data.
func makeSelected(data, selector string) error {
	sel := strings.TrimPrefix(filepath.Clean("/"+selector), "/")
	if sel == "" {
		return nil
	}
	root, err := os.OpenRoot(data)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.MkdirAll(sel, 0o755)
}

// lockCache takes a slot of the cache at base: slot 0, shared or waited for,
// or the first free one.
func lockCache(ctx context.Context, base string, sharing pb.CacheSharingOpt) (string, func(), error) {
	for n := 0; ; {
		dir := filepath.Join(base, fmt.Sprint(n))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", nil, err
		}
		f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return "", nil, err
		}
		how := unix.LOCK_EX
		if sharing == pb.CacheSharingOpt_SHARED {
			how = unix.LOCK_SH
		}
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return dir, func() { f.Close() }, nil
		}
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return "", nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		if sharing == pb.CacheSharingOpt_PRIVATE {
			n++
			continue
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		}
	}
}

// fillCache makes the cache's first content from in, aside, and renames it, so
// that a killed build leaves no half of it.
func fillCache(ctx context.Context, dir, data string, in *Snapshot) error {
	if _, err := os.Lstat(data); err == nil {
		return nil
	}
	return makeMount(dir, data, func(tmp string) error {
		if err := os.Chmod(tmp, 0o755); err != nil || in == nil {
			return err
		}
		view, err := in.View(ctx)
		if err != nil {
			return err
		}
		return writeTree(ctx, view, tmp)
	})
}

// makeMount makes a mount's content by fill in a directory below dir and
// renames it to data, unless another build was first.
func makeMount(dir, data string, fill func(tmp string) error) error {
	tmp, err := os.MkdirTemp(dir, "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // after the rename there is none
	if err := fill(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, data); err != nil && !errors.Is(err, os.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// writeTree makes view's content on disk below dir, which is empty. It goes
// through the layer format, which knows how to do that safely.
func writeTree(ctx context.Context, view tree.View, dir string) error {
	pr, pw := io.Pipe()
	go func() {
		w := layer.NewWriter(pw)
		err := tree.Walk(view, ".", func(e *layer.Entry) error {
			c := *e
			if c.Type == layer.Regular {
				c.Link = "" // each name of a hard-linked file with its content
			}
			return writeEntry(ctx, w, &c, view)
		})
		if err == nil {
			_, err = w.Close()
		}
		pw.CloseWithError(err)
	}()
	_, err := layer.Unpack(ctx, pr, dir, layer.UnpackOptions{Unprivileged: userns.Inside()})
	pr.CloseWithError(err)
	return err
}

// emptyLayer is the layer of a command that changed nothing.
func emptyLayer(ctx context.Context, st *store.Store) (*layer.TOC, error) {
	w, err := st.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	return w.Commit(ctx)
}
