package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/util/gitutil"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/content/archive"
	"github.com/strake-project/strake/internal/oci"
)

// Contexts that are no directory: a tar on stdin, a URL, a git repository, an
// image in an OCI layout. Of the first three the frontend is given a URL, and
// the build reads it; nothing is unpacked to a directory.

// stdinUpload is the name of the stream that stdin is to the build.
const stdinUpload = "stdin"

// stdinContext reads a context, or the Dockerfile of an empty one, from stdin.
func (in *buildInput) stdinContext(stdin io.Reader, dockerfile string) error {
	r := bufio.NewReaderSize(stdin, 64<<10)
	head, err := r.Peek(1024)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("failed to peek context header from STDIN: %w", err)
	}
	if isArchive(head) {
		in.context, in.filename = build.UploadURL(stdinUpload), dockerfile
		in.uploads = map[string]io.Reader{stdinUpload: r}
		return nil
	}
	if dockerfile != "" {
		return errors.New("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
	}
	dir, err := in.tempDir()
	if err != nil {
		return err
	}
	in.locals["context"] = dir
	return in.stdinDockerfile(r)
}

// isArchive tells whether a stream that begins with head is a tar, packed or not.
func isArchive(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b\x08", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if strings.HasPrefix(string(head), magic) {
			return true
		}
	}
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil
}

// isRemote tells whether a context is a URL or a git repository.
func isRemote(path string) bool {
	if strings.HasPrefix(path, "http://") || strings.HasPrefix(path, "https://") {
		return true
	}
	_, ok, _ := dfgitutil.ParseGitRef(path) // what is wrong with it, the frontend says
	return ok
}

// remoteContext leaves path to the build. The Dockerfile lies in it, unless
// -f is stdin or an absolute path.
func (in *buildInput) remoteContext(path, dockerfile string, stdin io.Reader) error {
	in.context = path
	in.forwardAgent(path)
	switch {
	case dockerfile == "-":
		in.ownDockerfile = true
		return in.stdinDockerfile(stdin)
	case filepath.IsAbs(dockerfile):
		in.ownDockerfile = true
		in.locals["dockerfile"], in.filename = filepath.Dir(dockerfile), filepath.Base(dockerfile)
	default:
		in.filename = dockerfile
	}
	return nil
}

// forwardAgent lets git use the user's ssh agent where a context of the command
// line is a repository behind ssh. For one that only a Dockerfile names that
// would be to show the user's keys to whoever the Dockerfile likes.
func (in *buildInput) forwardAgent(context string) {
	if u, err := gitutil.ParseURL(context); err == nil && u.Scheme == gitutil.SSHProtocol {
		in.gitAgent = os.Getenv("SSH_AUTH_SOCK")
	}
}

// layout adds the image that spec names, PATH[:TAG][@DIGEST], as the context
// name.
func (in *buildInput) layout(name, spec string) error {
	path, digest, _ := strings.Cut(spec, "@")
	path, tag, tagged := strings.Cut(path, ":")
	if !tagged {
		tag = "latest"
	}
	if digest == "" {
		d, err := layoutDigest(path, tag, !tagged)
		if err != nil {
			return fmt.Errorf("build context %s: oci-layout reference %q could not be resolved: %w", name, spec, err)
		}
		digest = string(d)
	}
	scratch, err := in.tempDir()
	if err != nil {
		return err
	}
	// A directory is read in place, and a tar of one is fine too.
	a, err := archive.Open(context.Background(), path, scratch)
	if err != nil {
		return fmt.Errorf("build context %s: %w", name, err)
	}
	in.archives = append(in.archives, a)
	// The frontend parses the name as an image's.
	id := fmt.Sprintf("layout%d", len(in.archives))
	in.layouts[id] = a
	in.contexts[name] = "oci-layout://" + id + ":" + tag + "@" + digest
	return nil
}

// layoutDigest is what tag names in the index of the layout at path: the tag
// alone, or a whole name; or, for anyone, the only image where there is just one.
func layoutDigest(path, tag string, anyone bool) (oci.Digest, error) {
	f, err := os.Open(filepath.Join(path, "index.json"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	var index oci.Index
	if err := json.NewDecoder(io.LimitReader(f, 16<<20)).Decode(&index); err != nil {
		return "", fmt.Errorf("index.json: %v: %w", err, oci.ErrInvalid)
	}
	for _, d := range index.Manifests {
		if d.Annotations[imagespec.AnnotationRefName] == tag || strings.HasSuffix(d.Annotations["io.containerd.image.name"], ":"+tag) {
			return d.Digest, nil
		}
	}
	if anyone && len(index.Manifests) == 1 {
		return index.Manifests[0].Digest, nil
	}
	return "", fmt.Errorf("it has %d images and none with the tag %q: %w", len(index.Manifests), tag, oci.ErrNotFound)
}
