package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"

	"github.com/strake-project/strake/internal/oci"
)

func manifestUnknown(q query) *apiError {
	e := fault(codeManifestUnknown, http.StatusNotFound, "manifest unknown")
	e.Detail = map[string]string{"name": q.name, "reference": q.tag + string(q.digest)}
	return e
}

// resolve finds the manifest of a request, by tag or digest.
func (g *Registry) resolve(q query) (oci.Descriptor, error) {
	var d oci.Descriptor
	var err error
	if q.tag != "" {
		d, err = g.store.Resolve(q.ctx(), q.repo.WithTag(q.tag))
	} else {
		d, err = g.find(q.ctx(), q.repo, q.digest)
	}
	if errors.Is(err, oci.ErrNotFound) || err == nil && !oci.IsManifest(d.MediaType) && !oci.IsIndex(d.MediaType) {
		return d, manifestUnknown(q)
	}
	return d, err
}

// getManifest answers GET and HEAD.
func (g *Registry) getManifest(q query) error {
	d, err := g.resolve(q)
	if err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("Docker-Content-Digest", string(d.Digest))
	h.Set("Content-Type", d.MediaType)
	if notModified(q, d.Digest) {
		return nil
	}
	h.Set("Content-Length", strconv.FormatInt(d.Size, 10))
	if q.r.Method == http.MethodHead {
		return nil
	}
	r, err := g.store.Open(q.ctx(), d)
	if errors.Is(err, oci.ErrNotFound) {
		return manifestUnknown(q)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	body, err := oci.ReadAll(r, d)
	if err != nil {
		return err
	}
	_, err = q.w.Write(body)
	return err
}

// putManifest answers PUT by tag or by digest, the latter with any number of
// tags as parameters.
func (g *Registry) putManifest(q query) error {
	tags := q.r.URL.Query()["tag"]
	if q.tag != "" {
		tags = []string{q.tag}
	}
	for _, t := range tags {
		if !validTag(t) {
			return fault(codeTagInvalid, http.StatusBadRequest, "invalid tag %q", t)
		}
	}
	body, err := io.ReadAll(io.LimitReader(q.r.Body, oci.MaxManifestSize+1))
	if err != nil {
		return err
	}
	if len(body) > oci.MaxManifestSize {
		return fault(codeSizeInvalid, http.StatusRequestEntityTooLarge, "a manifest has at most %d bytes", oci.MaxManifestSize)
	}
	d, m, err := g.parseManifest(q, body)
	if err != nil {
		return err
	}
	if err := g.checkChildren(q, d, body); err != nil {
		return err
	}
	if err := g.store.Put(q.ctx(), d, bytes.NewReader(body)); err != nil {
		return manifestFault(err)
	}
	if err := g.name(q, d, m, tags); err != nil {
		return err
	}
	h := q.w.Header()
	if m.Subject != nil {
		h.Set("OCI-Subject", string(m.Subject.Digest))
	}
	if q.tag == "" {
		for _, t := range tags {
			h.Add("OCI-Tag", t)
		}
	}
	h.Set("Location", "/v2/"+q.name+"/manifests/"+string(d.Digest))
	h.Set("Docker-Content-Digest", string(d.Digest))
	h.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

// pushed is what the registry reads in a manifest or index.
type pushed struct {
	MediaType string          `json:"mediaType"`
	Subject   *oci.Descriptor `json:"subject"`
	Manifests []oci.Descriptor
}

// parseManifest learns what body is: its media type is the Content-Type's, its
// digest the one in the path or, for a tag, its SHA-256.
func (g *Registry) parseManifest(q query, body []byte) (d oci.Descriptor, m pushed, err error) {
	if err := json.Unmarshal(body, &m); err != nil {
		return d, m, fault(codeManifestInvalid, http.StatusBadRequest, "manifest invalid: %v", err)
	}
	mediaType := m.MediaType
	if header := q.r.Header.Get("Content-Type"); header != "" {
		if mediaType, _, err = mime.ParseMediaType(header); err != nil {
			return d, m, fault(codeManifestInvalid, http.StatusBadRequest, "Content-Type %q: %v", header, err)
		}
	}
	d = oci.DescriptorOf(mediaType, body)
	if q.digest != "" {
		if got := q.digest.Algorithm().FromBytes(body); got != q.digest {
			return d, m, fault(codeDigestInvalid, http.StatusBadRequest, "provided digest did not match uploaded content: it is %s", got)
		}
		d.Digest = q.digest
	}
	if !oci.IsManifest(mediaType) && !oci.IsIndex(mediaType) {
		return d, m, fault(codeManifestInvalid, http.StatusBadRequest, "media type %q is neither an image manifest nor an index of the OCI or of docker's schema 2", mediaType)
	}
	if m.Subject != nil {
		if m.Subject.Digest.Validate() != nil {
			return d, m, fault(codeManifestInvalid, http.StatusBadRequest, "subject digest %q is invalid", m.Subject.Digest)
		}
	}
	return d, m, nil
}

func manifestFault(err error) error {
	if errors.Is(err, oci.ErrInvalid) || errors.Is(err, oci.ErrUnsupported) || errors.Is(err, oci.ErrCorrupt) {
		return fault(codeManifestInvalid, http.StatusBadRequest, "manifest invalid: %v", err)
	}
	return err
}

// checkChildren refuses a manifest whose config or layers are missing. Layers
// that are not distributed are fetched from elsewhere. An index may lack
// platforms: a mirror need not hold them all.
func (g *Registry) checkChildren(q query, d oci.Descriptor, body []byte) error {
	children, err := oci.Children(d.MediaType, body)
	if err != nil {
		return manifestFault(err)
	}
	if oci.IsIndex(d.MediaType) {
		return nil
	}
	for _, c := range children {
		if undistributed(c) {
			continue
		}
		found, err := g.find(q.ctx(), q.repo, c.Digest)
		if errors.Is(err, oci.ErrNotFound) {
			e := fault(codeManifestBlobUnknown, http.StatusNotFound, "manifest blob unknown to registry: %s", c.Digest)
			e.Detail = map[string]string{"digest": string(c.Digest)}
			return e
		}
		if err != nil {
			return err
		}
		if found.Size != c.Size {
			return fault(codeManifestInvalid, http.StatusBadRequest, "blob %s has %d bytes, the manifest says %d", c.Digest, found.Size, c.Size)
		}
	}
	return nil
}

// undistributed are the layers that registries need not hold: docker's foreign
// ones and the OCI's old media types for them.
func undistributed(d oci.Descriptor) bool {
	return slices.Contains([]string{
		oci.MediaTypeDockerForeign,
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
	}, d.MediaType)
}

// name makes d reachable: under its tags, else by its digest. What an index
// holds, or a subject that is here, needs no name of its own.
func (g *Registry) name(q query, d oci.Descriptor, m pushed, tags []string) error {
	if err := g.show(q.ctx(), q.repo, d.Digest); err != nil {
		return err
	}
	for _, t := range tags {
		r := q.repo.WithTag(t)
		r.Digest = d.Digest
		if err := g.store.Tag(q.ctx(), r, d); err != nil {
			return err
		}
	}
	attached, err := g.attached(q.ctx(), m)
	if err != nil {
		return err
	}
	if len(tags) == 0 && !attached {
		if err := g.store.Tag(q.ctx(), q.repo.WithDigest(d.Digest), d); err != nil {
			return err
		}
	}
	for _, c := range m.Manifests {
		if _, err := g.store.Untag(q.ctx(), q.repo.WithDigest(c.Digest)); err != nil && !errors.Is(err, oci.ErrNotFound) {
			return err
		}
	}
	return nil
}

// attached tells whether m is found through a subject that is here.
func (g *Registry) attached(ctx context.Context, m pushed) (bool, error) {
	if m.Subject == nil {
		return false, nil
	}
	return g.store.Has(ctx, *m.Subject)
}

// deleteManifest removes a tag, or a manifest with every tag that points at it.
func (g *Registry) deleteManifest(q query) error {
	ctx := q.ctx()
	if q.tag != "" {
		_, err := g.store.Untag(ctx, q.repo.WithTag(q.tag))
		if errors.Is(err, oci.ErrNotFound) {
			return manifestUnknown(q)
		}
		if err != nil {
			return err
		}
		q.w.WriteHeader(http.StatusAccepted)
		return nil
	}
	d, err := g.resolve(q)
	if err != nil {
		return err
	}
	tags, err := g.store.Tags(ctx, q.repo)
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	for _, t := range tags {
		at, err := g.store.Resolve(ctx, q.repo.WithTag(t))
		if err != nil && !errors.Is(err, oci.ErrNotFound) {
			return err
		}
		if err != nil || at.Digest != d.Digest {
			continue
		}
		if _, err := g.store.Untag(ctx, q.repo.WithTag(t)); err != nil && !errors.Is(err, oci.ErrNotFound) {
			return err
		}
	}
	if _, err := g.store.Untag(ctx, q.repo.WithDigest(d.Digest)); err != nil && !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	if err := g.hide(ctx, q.repo, d.Digest); err != nil {
		return err
	}
	if _, err := g.store.Collect(ctx, d.Digest); err != nil {
		return fmt.Errorf("collect %s: %w", d.Digest, err)
	}
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}
