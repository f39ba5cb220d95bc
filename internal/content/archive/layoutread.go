package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// ReadLayout opens the layout that is in dir, for reading. It fails with
// oci.ErrNotFound where there is none.
func ReadLayout(dir string) (*Layout, error) {
	root, err := os.OpenRoot(dir)
	if err == nil {
		if _, err = root.Stat(indexFile); err == nil {
			return &Layout{root: root, dir: dir}, nil
		}
		root.Close()
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s is no OCI layout: %w", dir, oci.ErrNotFound)
	}
	return nil, err
}

// Resolve implements content.Source. Of r its digest or its tag alone counts.
func (l *Layout) Resolve(_ context.Context, r ref.Ref) (oci.Descriptor, error) {
	f, err := l.root.Open(indexFile)
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, oci.MaxManifestSize))
	if err != nil {
		return oci.Descriptor{}, err
	}
	var ix oci.Index
	if err := json.Unmarshal(b, &ix); err != nil {
		return oci.Descriptor{}, fmt.Errorf("%s: %v: %w", indexFile, err, oci.ErrInvalid)
	}
	for _, d := range ix.Manifests {
		if r.Digest != "" && d.Digest == r.Digest || r.Digest == "" && d.Annotations[annotationRefName] == r.Tag {
			return d, nil
		}
	}
	if r.Digest == "" {
		return oci.Descriptor{}, fmt.Errorf("tag %s: %w", r.Tag, oci.ErrNotFound)
	}
	// A manifest stays when its name moves on.
	if r.Digest.Validate() == nil {
		if fi, err := l.root.Stat(blobName(r.Digest)); err == nil {
			return oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: r.Digest, Size: fi.Size()}, nil
		}
	}
	return oci.Descriptor{}, fmt.Errorf("%s: %w", r.Digest, oci.ErrNotFound)
}

// Open implements content.Source.
func (l *Layout) Open(_ context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w", d.Digest, oci.ErrInvalid)
	}
	f, err := l.root.Open(blobName(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("the layout lacks %s: %w", d.Digest, oci.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}
