// Package archive reads and writes images in files: docker-save archives and
// OCI layouts.
//
// What it writes is the docker-save tar of docker 25 and later: an OCI layout
// (blobs/sha256/…, index.json, oci-layout) with docker's manifest.json and
// repositories beside it, so that every docker since 1.10 and every OCI tool
// loads it. The bytes are the same for the same images.
//
// What it reads: that form; the older docker form (manifest.json that names
// layer tars, some of them symlinks); OCI layouts as a tar or a directory; and
// each tar plain or compressed with gzip, bzip2, xz or zstd. An older form has
// no OCI manifest: one is made, the same for the same archive.
//
// Nothing is ever extracted. A tar is read once from end to end to learn where
// its members lie, and its blobs are then read in place. So a member's name
// can do no harm; one that points outside the archive is refused all the same.
// Contents are verified by whoever stores them, as for every content.Source.
package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Archive is an open archive. It implements content.Source, RangeOpener,
// TagLister and ReferrerLister; its Has makes it a source that may lack some
// platforms of an index. Its methods may be called from many goroutines.
type Archive struct {
	files  files
	images []Image
	// blobs tells where content lies that is not at blobs/ALGORITHM/HEX:
	// the layers and configs of the older form, and the manifests made for it.
	blobs map[oci.Digest]blob
	// manifests are all manifests and indexes that the images reach.
	manifests map[oci.Digest]manifest
}

// Image is one image of an archive.
type Image struct {
	// Ref is its name with a tag; the zero Ref where it has none.
	Ref ref.Ref
	// Target is its manifest or index.
	Target oci.Descriptor
}

// blob is content in a member of the archive or, where body is set, in memory.
type blob struct {
	member string
	body   []byte
}

type manifest struct {
	oci.Descriptor
	subject oci.Digest
}

// Open opens the archive at path: a tar or the directory of an OCI layout. A
// compressed tar is unpacked into a file in scratch, which is gone when the
// Archive is closed. What is no archive fails with oci.ErrInvalid and, where
// docker has words for it, docker's words.
func Open(ctx context.Context, path, scratch string) (*Archive, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if info.IsDir() {
		f.Close()
		return openDir(ctx, path)
	}
	return read(ctx, f, scratch)
}

// Read reads an archive from a stream, such as standard input. A plain tar in
// a file that can seek is read in place; everything else is spooled to a file
// in scratch. Closing the Archive does not close r.
func Read(ctx context.Context, r io.Reader, scratch string) (*Archive, error) {
	if f, ok := r.(*os.File); ok {
		return read(ctx, keepOpen{f}, scratch)
	}
	return spool(ctx, r, scratch)
}

func openDir(ctx context.Context, path string) (*Archive, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return resolve(ctx, dir{root})
}

// resolve learns what images there are in files, which it closes on failure.
func resolve(ctx context.Context, fs files) (*Archive, error) {
	a := &Archive{files: fs, blobs: map[oci.Digest]blob{}, manifests: map[oci.Digest]manifest{}}
	if err := a.load(ctx); err != nil {
		fs.Close()
		return nil, err
	}
	return a, nil
}

// Close closes the file and removes what was spooled.
func (a *Archive) Close() error { return a.files.Close() }

// Images lists what the archive's index names, in its order.
func (a *Archive) Images() []Image { return a.images }

// Resolve implements content.Source.
func (a *Archive) Resolve(ctx context.Context, r ref.Ref) (oci.Descriptor, error) {
	if r.Digest != "" {
		if m, ok := a.manifests[r.Digest]; ok {
			return m.Descriptor, nil
		}
	} else {
		// Of several with one name the last one wins, as it would in docker.
		for i := len(a.images) - 1; i >= 0; i-- {
			if im := a.images[i]; im.Ref.Tag == r.Tag && im.Ref.Repository() == r.Repository() {
				return im.Target, nil
			}
		}
	}
	return oci.Descriptor{}, fmt.Errorf("%s is not in the archive: %w", r.Familiar(), oci.ErrNotFound)
}

// Open implements content.Source.
func (a *Archive) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	return a.OpenAt(ctx, d, 0, -1)
}

// OpenAt implements content.RangeOpener.
func (a *Archive) OpenAt(ctx context.Context, d oci.Descriptor, offset, length int64) (io.ReadCloser, error) {
	at, size, closer, err := a.find(d)
	if err != nil {
		return nil, err
	}
	offset = min(max(offset, 0), size)
	if length < 0 || length > size-offset {
		length = size - offset
	}
	return struct {
		*io.SectionReader
		io.Closer
	}{io.NewSectionReader(at, offset, length), closer}, nil
}

// Has tells whether d is in the archive; it makes Copy leave out the platforms
// that a sparse archive lacks.
func (a *Archive) Has(ctx context.Context, d oci.Descriptor) (bool, error) {
	_, size, closer, err := a.find(d)
	if errors.Is(err, oci.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	closer.Close()
	return size == d.Size, nil
}

func (a *Archive) find(d oci.Descriptor) (io.ReaderAt, int64, io.Closer, error) {
	b, err := a.locate(d.Digest)
	if err != nil {
		return nil, 0, nil, err
	}
	if b.member == "" {
		return bytesAt(b.body), int64(len(b.body)), io.NopCloser(nil), nil
	}
	at, size, closer, err := a.files.Open(b.member)
	if errors.Is(err, oci.ErrNotFound) {
		err = fmt.Errorf("the archive lacks %s: %w", d.Digest, oci.ErrNotFound)
	}
	return at, size, closer, err
}

func (a *Archive) locate(d oci.Digest) (blob, error) {
	if err := d.Validate(); err != nil {
		return blob{}, fmt.Errorf("digest %q: %w", d, oci.ErrInvalid)
	}
	if b, ok := a.blobs[d]; ok {
		return b, nil
	}
	return blob{member: "blobs/" + d.Algorithm().String() + "/" + d.Encoded()}, nil
}

// Tags implements content.TagLister.
func (a *Archive) Tags(ctx context.Context, r ref.Ref) ([]string, error) {
	seen := map[string]bool{}
	var tags []string
	for _, im := range a.images {
		if im.Ref.Tag != "" && im.Ref.Repository() == r.Repository() && !seen[im.Ref.Tag] {
			seen[im.Ref.Tag] = true
			tags = append(tags, im.Ref.Tag)
		}
	}
	sort.Strings(tags)
	return tags, nil
}

// Referrers implements content.ReferrerLister.
func (a *Archive) Referrers(ctx context.Context, d oci.Descriptor, artifactType string) ([]oci.Descriptor, error) {
	var found []oci.Descriptor
	for _, m := range a.manifests {
		if m.subject == d.Digest && (artifactType == "" || artifactType == m.ArtifactType) {
			found = append(found, m.Descriptor)
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Digest < found[j].Digest })
	return found, nil
}

// body reads a manifest, index or config.
func (a *Archive) body(d oci.Descriptor) ([]byte, error) {
	r, err := a.OpenAt(context.Background(), d, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return oci.ReadAll(r, d)
}

// learn notes the manifest or index d and what an index names, as far as it is
// here. Depth bounds indexes in indexes.
func (a *Archive) learn(d oci.Descriptor, depth int) error {
	if _, known := a.manifests[d.Digest]; known {
		return nil
	}
	if depth == 0 {
		return fmt.Errorf("%s: an index in an index in an index: %w", d.Digest, oci.ErrInvalid)
	}
	body, err := a.body(d)
	if err != nil {
		return err
	}
	children, err := oci.Children(d.MediaType, body)
	if err != nil {
		return fmt.Errorf("%s: %w", d.Digest, err)
	}
	var m oci.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return fmt.Errorf("%s: %v: %w", d.Digest, err, oci.ErrInvalid)
	}
	note := manifest{Descriptor: oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, ArtifactType: m.ArtifactType}}
	if m.Subject != nil {
		note.subject, note.Annotations = m.Subject.Digest, m.Annotations
		if note.ArtifactType == "" && oci.IsManifest(d.MediaType) {
			note.ArtifactType = m.Config.MediaType
		}
	}
	a.manifests[d.Digest] = note
	if !oci.IsIndex(d.MediaType) {
		return nil
	}
	for _, c := range children {
		if !oci.IsManifest(c.MediaType) && !oci.IsIndex(c.MediaType) {
			continue
		}
		if err := a.learn(c, depth-1); err != nil && !errors.Is(err, oci.ErrNotFound) {
			return err
		}
	}
	return nil
}
