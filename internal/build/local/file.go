package local

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

const capability = "security.capability"

// known completes the entry of k from the cache, or from the file.
func (d *Dir) known(k *node, dirfd int, name string) {
	r, ok := d.cache.find(k.id)
	if ok {
		k.entry.Digest = r.digest()
	}
	if k.entry.Mode&0o111 == 0 || ok && !r.capable() {
		return // only what can be executed has a use for capabilities
	}
	if v := getCapability(dirfd, name); v != "" {
		k.entry.Xattrs = map[string]string{capability: v}
	}
}

// getCapability reads the one xattr that docker's layers keep.
func getCapability(dirfd int, name string) string {
	b := make([]byte, 64)
	n, err := unix.Lgetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, name), capability, b)
	if err != nil || n <= 0 {
		return ""
	}
	return string(b[:n])
}

// digest returns the digest of the regular file n, from the cache or by
// reading it.
func (d *Dir) digest(ctx context.Context, n *node) (oci.Digest, error) {
	if n.entry.Digest != "" {
		return n.entry.Digest, nil
	}
	if h := n.digest.Load(); h != nil {
		return h.digest, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	h, err := d.hash(n, make([]byte, 128<<10))
	if err != nil {
		return "", err
	}
	return h.digest, nil
}

func (d *Dir) hash(n *node, buf []byte) (*hashed, error) {
	began := time.Now()
	f, err := d.openFile(n)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := digest.SHA256.Hash()
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, buf); err != nil {
		return nil, err
	}
	d.loaded.Add(f.read)
	h := &hashed{digest: digest.NewDigest(digest.SHA256, sum), racy: n.id.racy(began)}
	if !n.digest.CompareAndSwap(nil, h) {
		return n.digest.Load(), nil
	}
	if !h.racy {
		d.cache.add(n.id, h.digest, len(n.entry.Xattrs) > 0)
	}
	return h, nil
}

// Hash computes the digests of the files at paths, on all cores.
func (d *Dir) Hash(ctx context.Context, paths []string) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), len(paths)) {
		g.Go(func() error {
			buf := make([]byte, 256<<10)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(paths) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				n, err := d.find("digest", paths[i])
				if err != nil {
					return err
				}
				if n.entry.Type != layer.Regular || n.entry.Digest != "" || n.digest.Load() != nil {
					continue
				}
				if _, err := d.hash(n, buf); err != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	// Now, and not only when closed: another build may begin at any moment.
	// Close tells of what goes wrong.
	_ = d.cache.save()
	return nil
}

// Prefetch lists all that is shown below p, on all cores.
func (d *Dir) Prefetch(ctx context.Context, p string) error {
	n, err := d.find("readdir", p)
	if err != nil || n.dir == nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	var down func(n *node) error
	down = func(n *node) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		kids, err := d.load(n)
		if err != nil {
			return err
		}
		for _, k := range kids {
			if k.dir == nil {
				continue
			}
			if g.TryGo(func() error { return down(k) }) {
				continue
			}
			if err := down(k); err != nil {
				return err
			}
		}
		return nil
	}
	g.Go(func() error { return down(n) })
	return g.Wait()
}

// racy tells whether the file may have been changed after it was read with no
// change to be seen in its identity: it was changed shortly before. How shortly
// is how far a file system's clock may lag behind ours: a tick of the kernel, or
// whole seconds where times have no fraction.
func (id identity) racy(read time.Time) bool {
	g := int64(50 * time.Millisecond)
	if id.ctime%1e9 == 0 {
		g = int64(2 * time.Second)
	}
	return id.ctime > read.UnixNano()-g
}

// reader opens n for reading into a layer.
func (d *Dir) reader(n *node) (io.ReadCloser, error) {
	f, err := d.openFile(n)
	if err != nil {
		return nil, err
	}
	if h := n.digest.Load(); h != nil && h.racy {
		// Its times would not show another change since it was hashed.
		f.sum, f.want = digest.SHA256.Hash(), h.digest
	}
	return f, nil
}

// file reads a regular file and checks that it stays what it was. It uses the
// descriptor as it is: an os.File costs three more system calls for each file.
type file struct {
	fd   int
	n    *node
	read int64
	done bool
	sum  hash.Hash
	want oci.Digest
}

func (d *Dir) openFile(n *node) (*file, error) {
	fd, err := d.openAt(n.path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			return nil, &ChangedError{n.path}
		}
		return nil, trouble("open", n.path, err)
	}
	f := &file{fd: fd, n: n}
	if err := f.same(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// same fails if the file is not what was looked at.
func (f *file) same() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return trouble("stat", f.n.path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || identityOf(&st) != f.n.id {
		return &ChangedError{f.n.path}
	}
	return nil
}

func (f *file) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := unix.Read(f.fd, p[:min(len(p), 1<<30)])
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(f.fd, p[:min(len(p), 1<<30)])
	}
	if err != nil {
		return 0, trouble("read", f.n.path, err)
	}
	if n == 0 {
		err = io.EOF
	}
	f.read += int64(n)
	if f.read > f.n.id.size {
		return 0, &ChangedError{f.n.path}
	}
	if f.sum != nil {
		f.sum.Write(p[:n])
	}
	// The last byte is not handed out before the check, so that nobody who
	// stops reading there misses it.
	if !f.done && (err == io.EOF || f.read == f.n.id.size) {
		if cerr := f.check(); cerr != nil {
			return 0, cerr
		}
	}
	return n, err
}

func (f *file) check() error {
	f.done = true
	if f.read != f.n.id.size {
		return &ChangedError{f.n.path}
	}
	if f.sum != nil && digest.NewDigest(digest.SHA256, f.sum) != f.want {
		return &ChangedError{f.n.path}
	}
	return f.same()
}

func (f *file) Close() error {
	if f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}
