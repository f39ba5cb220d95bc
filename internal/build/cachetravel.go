package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/build/cache"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/userns"
)

// mountKey names a cache mount's directory: by its id and initial content.
func mountKey(ctx context.Context, opt *pb.CacheOpt, in *Snapshot) (oci.Digest, error) {
	if in == nil {
		return digestOf("cache", opt.ID), nil
	}
	k, err := in.Key(ctx)
	return digestOf("cache", opt.ID, string(k)), err
}

// noteMounts notes the cache mounts of a command, whether it ran or was cached,
// where an export takes them along.
func (s *step) noteMounts(ctx context.Context) error {
	op := s.v.Op.GetExec()
	if op == nil || !slices.ContainsFunc(s.opt.CacheTo, func(c CacheExport) bool { return c.Mounts }) {
		return nil
	}
	for _, m := range op.Mounts {
		if m.MountType != pb.MountType_CACHE || m.CacheOpt == nil || int(m.Input) >= len(s.in) {
			continue
		}
		var in *Snapshot
		if m.Input >= 0 {
			in = s.in[m.Input]
		}
		k, err := mountKey(ctx, m.CacheOpt, in)
		if err != nil {
			return err
		}
		s.journal.mount(cache.Mount{Key: k.Encoded(), ID: m.CacheOpt.ID, Sharing: strings.ToLower(m.CacheOpt.Sharing.String())})
	}
	return nil
}

func (j *journal) mount(m cache.Mount) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.mounts == nil {
		j.mounts = map[string]cache.Mount{}
	}
	j.mounts[m.Key] = m
}

// packMounts adds the build's cache mounts to the document, and those of the
// imported caches that this build did not use. One that cannot be packed, such
// as one that another build goes on writing to, is left out with a warning.
func (e *Engine) packMounts(ctx context.Context, w *Work, d *draft, blobs []cache.Blob, c content.Compression) ([]cache.Blob, error) {
	seen := map[string]bool{}
	for _, key := range sortedKeys(e.journal.mounts) {
		m := e.journal.mounts[key]
		b, err := e.packMount(ctx, &m, c)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			w.warn(fmt.Sprintf("WARNING: cache mount %s is left out: %v\n", m.ID, err))
		}
		if b != nil {
			seen[key] = true
			m.Blob = len(blobs)
			blobs = append(blobs, *b)
			d.doc.Mounts = append(d.doc.Mounts, m)
		}
	}
	for _, from := range e.imports.caches {
		for _, m := range from.part.Mounts {
			if !seen[m.Key] {
				seen[m.Key] = true
				blob := from.part.Blobs[m.Blob]
				m.Blob = len(blobs)
				blobs = append(blobs, cache.Blob{Descriptor: blob, From: from.src})
				d.doc.Mounts = append(d.doc.Mounts, m)
			}
		}
	}
	return blobs, nil
}

func (w *Work) warn(text string) {
	w.e.Emit(Event{Log: &Log{Vertex: w.v.Digest, Stream: 2, Data: []byte(text), At: time.Now()}})
}

// mountWait is how long an export waits for a build that uses a cache mount.
const mountWait = 30 * time.Second

// packMount packs a cache mount's content, or returns nil where there is none.
// Nobody else uses the mount meanwhile.
func (e *Engine) packMount(ctx context.Context, m *cache.Mount, c content.Compression) (*cache.Blob, error) {
	base := filepath.Join(e.opt.Store.Root(), "caches", m.Key)
	if _, err := os.Stat(filepath.Join(base, "0", "data")); err != nil {
		return nil, nil
	}
	wait, cancel := context.WithTimeout(ctx, mountWait)
	defer cancel()
	dir, unlock, err := lockCache(wait, base, pb.CacheSharingOpt_LOCKED)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("another build uses it: %w", oci.ErrConflict)
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	data := filepath.Join(dir, "data")
	var st unix.Stat_t
	if err := unix.Lstat(data, &st); err != nil {
		return nil, nil // pruned while we waited
	}
	m.UID, m.GID, m.Mode = int(st.Uid), int(st.Gid), st.Mode&0o7777
	scratch, err := e.opt.Store.Scratch(ctx)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(scratch, m.Key)
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	zip, err := layer.Compress(struct{ io.Writer }{io.MultiWriter(f, h)}, layer.Packing(c))
	if err != nil {
		return nil, err
	}
	toc, err := layer.Pack(ctx, zip, data)
	if err = errors.Join(err, zip.Close()); err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	m.DiffID, m.Size = toc.DiffID, toc.Size
	types := map[content.Compression]string{content.Uncompressed: oci.MediaTypeLayer, content.Gzip: oci.MediaTypeLayerGzip, content.Zstd: oci.MediaTypeLayerZstd}
	d := oci.Descriptor{MediaType: types[c], Digest: digest.NewDigest(digest.SHA256, h), Size: fi.Size()}
	return &cache.Blob{Descriptor: d, From: fileSource(path)}, nil
}

// fileSource is a file that holds the one blob that it is asked for.
type fileSource string

// Resolve implements content.Source.
func (f fileSource) Resolve(context.Context, ref.Ref) (oci.Descriptor, error) {
	return oci.Descriptor{}, oci.ErrNotFound
}

// Open implements content.Source.
func (f fileSource) Open(context.Context, oci.Descriptor) (io.ReadCloser, error) {
	return os.Open(string(f))
}

// restoreMount fills a cache mount that has no content yet with what an
// imported cache has of it. What fails is a warning: the mount begins empty.
func (s *step) restoreMount(ctx context.Context, key oci.Digest, id, dir, data string, sharing pb.CacheSharingOpt) error {
	if s.imports.done == nil || !vacant(data, sharing) {
		return nil
	}
	select {
	case <-s.imports.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for _, from := range s.imports.caches {
		for i := range from.part.Mounts {
			m := &from.part.Mounts[i]
			if m.Key != key.Encoded() {
				continue
			}
			err := makeMount(dir, data, func(tmp string) error { return unpackMount(ctx, from, m, tmp) })
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				s.warn(fmt.Sprintf("WARNING: cache mount %s of %s: %v; it begins empty\n", id, from.name, err))
			}
			return nil
		}
	}
	return nil
}

// vacant tells whether a cache mount can be filled. An empty one that others
// may have mounted this moment cannot.
func vacant(data string, sharing pb.CacheSharingOpt) bool {
	list, err := os.ReadDir(data)
	if errors.Is(err, os.ErrNotExist) {
		return true
	}
	return err == nil && len(list) == 0 && sharing != pb.CacheSharingOpt_SHARED
}

// unpackMount makes a mount's content in dir.
func unpackMount(ctx context.Context, from *importedCache, m *cache.Mount, dir string) error {
	blob := from.part.Blobs[m.Blob]
	r, err := from.src.Open(ctx, blob)
	if err != nil {
		return err
	}
	defer r.Close()
	plain, _, err := layer.Decompress(oci.Verify(r, blob))
	if err != nil {
		return err
	}
	defer plain.Close()
	toc, err := layer.Unpack(ctx, oci.Verify(plain, oci.Descriptor{Digest: m.DiffID, Size: m.Size}), dir, layer.UnpackOptions{Unprivileged: userns.Inside()})
	if err != nil {
		return err
	}
	if toc.DiffID != m.DiffID {
		return &oci.DigestError{Want: m.DiffID, Got: toc.DiffID}
	}
	if err := os.Lchown(dir, m.UID, m.GID); err != nil {
		return err
	}
	return unix.Chmod(dir, m.Mode&0o7777)
}
