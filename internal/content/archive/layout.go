package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/google/renameio/v2"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Layout is the OCI layout in a directory, read and written in place. It is a
// content.Sink and Source. What it has already stays; a name that it has moves.
type Layout struct {
	root *os.Root
	dir  string
	mu   sync.Mutex
}

// OpenLayout opens the layout in dir, or begins one there.
func OpenLayout(dir string) (*Layout, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Layout{root: root, dir: dir}, nil
}

// Close lets go of the directory.
func (l *Layout) Close() error { return l.root.Close() }

// AcceptsSparseIndex implements content.SparseSink.
func (l *Layout) AcceptsSparseIndex() {}

// Has implements content.Sink.
func (l *Layout) Has(_ context.Context, d oci.Descriptor) (bool, error) {
	if err := d.Digest.Validate(); err != nil {
		return false, fmt.Errorf("digest %q: %w", d.Digest, oci.ErrInvalid)
	}
	fi, err := l.root.Stat(blobName(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && fi.Mode().IsRegular() && fi.Size() == d.Size, err
}

// Put implements content.Sink: a blob is written aside, checked and renamed.
func (l *Layout) Put(ctx context.Context, d oci.Descriptor, r io.Reader) error {
	if ok, err := l.Has(ctx, d); err != nil || ok {
		return err
	}
	name := blobName(d.Digest)
	if err := l.root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	tmp := fmt.Sprintf("%s.strake-%d", name, os.Getpid())
	f, err := l.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer l.root.Remove(tmp) // after the rename there is none
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, reader{ctx, oci.Verify(r, d)}, make([]byte, 256<<10))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return l.root.Rename(tmp, name)
}

// Tag implements content.Sink.
func (l *Layout) Tag(_ context.Context, r ref.Ref, d oci.Descriptor) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	dir, err := l.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil { // other processes write it too
		return err
	}
	ix := oci.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeIndex}
	body, err := l.root.ReadFile(indexFile)
	if err == nil {
		err = json.Unmarshal(body, &ix)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Join(l.dir, indexFile), err)
	}
	d.Annotations = naming(d.Annotations, r)
	ix.Manifests = slices.DeleteFunc(ix.Manifests, func(old oci.Descriptor) bool {
		if r.Tag == "" {
			return old.Digest == d.Digest && old.Annotations[annotationName] == ""
		}
		return old.Annotations[annotationName] == r.String()
	})
	ix.Manifests = append(ix.Manifests, d)
	for _, f := range []struct {
		name  string
		value any
	}{{layoutFile, v1.ImageLayout{Version: v1.ImageLayoutVersion}}, {indexFile, ix}} {
		body, err := json.Marshal(f.value)
		if err != nil {
			return err
		}
		if err := renameio.WriteFile(filepath.Join(l.dir, f.name), body, 0o644); err != nil {
			return err
		}
	}
	return nil
}
