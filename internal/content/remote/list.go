package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Bounds of lists: no honest registry comes near.
const (
	maxPages    = 10_000
	maxEntries  = 1_000_000
	maxListBody = 8 << 20
)

// pages reads a paged list: each page's body is given to page, which returns
// how many entries it had, until no Link leads on.
func (r *Repository) pages(ctx context.Context, rq *request, page func(resp *http.Response, body []byte) (int, error)) error {
	seen := map[string]bool{}
	for entries := 0; ; {
		resp, err := r.h.do(ctx, rq, http.StatusOK)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxListBody+1))
		resp.Body.Close()
		if err != nil {
			return &networkError{method: rq.method, url: redact(resp.Request.URL), err: err}
		}
		if len(body) > maxListBody {
			return fmt.Errorf("%s: list of more than %d bytes: %w", redact(resp.Request.URL), maxListBody, oci.ErrInvalid)
		}
		n, err := page(resp, body)
		if err != nil {
			return err
		}
		next, ok := nextPage(resp.Header.Values("Link"))
		if !ok {
			return nil
		}
		u, err := resp.Request.URL.Parse(next)
		if err != nil {
			return fmt.Errorf("%s: Link %q: %w", redact(resp.Request.URL), oneLine(next, 200), oci.ErrInvalid)
		}
		// Only path and query count: a list goes on where it began.
		u = &url.URL{Path: u.Path, RawQuery: u.RawQuery}
		if entries += n; entries > maxEntries || len(seen) > maxPages || seen[u.String()] {
			return fmt.Errorf("%s: the registry's list does not end: %w", redact(resp.Request.URL), oci.ErrInvalid)
		}
		seen[u.String()] = true
		rq = &request{method: rq.method, url: u, header: rq.header, scopes: rq.scopes}
	}
}

// nextPage finds </v2/…?last=…>; rel="next" (RFC 8288).
func nextPage(headers []string) (string, bool) {
	for _, h := range headers {
		for h != "" {
			_, rest, ok := strings.Cut(h, "<")
			if !ok {
				break
			}
			target, rest, ok := strings.Cut(rest, ">")
			if !ok {
				break
			}
			params, after, _ := strings.Cut(rest, ",")
			for _, p := range strings.Split(params, ";") {
				k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
				if strings.EqualFold(k, "rel") && strings.EqualFold(strings.Trim(v, `"`), "next") {
					return target, true
				}
			}
			h = after
		}
	}
	return "", false
}

// Tags implements content.TagLister.
func (r *Repository) Tags(ctx context.Context, of ref.Ref) ([]string, error) {
	if err := r.check(of); err != nil {
		return nil, err
	}
	var all []string
	rq := &request{method: http.MethodGet, path: r.path("tags", "list") + "?n=1000", scopes: r.pullScope()}
	err := r.pages(ctx, rq, func(resp *http.Response, body []byte) (int, error) {
		var list struct {
			Tags []string `json:"tags"`
		}
		if err := json.Unmarshal(body, &list); err != nil {
			return 0, fmt.Errorf("%s: %v: %w", redact(resp.Request.URL), err, oci.ErrInvalid)
		}
		for _, t := range list.Tags {
			if _, err := ref.Parse("x:" + t); err == nil { // it will be printed, and pulled
				all = append(all, t)
			}
		}
		return len(list.Tags), nil
	})
	if err != nil {
		return nil, fmt.Errorf("tags of %s: %w", r.name.Familiar(), err)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Referrers implements content.ReferrerLister, by the API, or, with a registry
// older than v1.1 of the specification, by the tag that stands for it.
func (r *Repository) Referrers(ctx context.Context, d oci.Descriptor, artifactType string) ([]oci.Descriptor, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, err
	}
	path := r.path("referrers", string(d.Digest))
	if artifactType != "" {
		path += "?artifactType=" + url.QueryEscape(artifactType)
	}
	var all []oci.Descriptor
	rq := &request{method: http.MethodGet, path: path, scopes: r.pullScope(), header: http.Header{"Accept": {oci.MediaTypeIndex}}}
	err := r.pages(ctx, rq, func(resp *http.Response, body []byte) (int, error) {
		ix, err := readIndex(body)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", redact(resp.Request.URL), err)
		}
		all = append(all, ix.Manifests...)
		return len(ix.Manifests), nil
	})
	if errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrUnsupported) {
		all, err = r.taggedReferrers(ctx, d.Digest)
	}
	if err != nil {
		return nil, fmt.Errorf("referrers of %s: %w", d.Digest, err)
	}
	// Filtering is the registry's choice, so it is ours.
	return slices.DeleteFunc(all, func(m oci.Descriptor) bool {
		return artifactType != "" && m.ArtifactType != artifactType
	}), nil
}

func readIndex(body []byte) (oci.Index, error) {
	var ix oci.Index
	if err := json.Unmarshal(body, &ix); err != nil {
		return ix, fmt.Errorf("index: %v: %w", err, oci.ErrInvalid)
	}
	for _, m := range ix.Manifests {
		if err := checkDigest(m.Digest); err != nil {
			return ix, err
		}
		if m.Size < 0 {
			return ix, fmt.Errorf("%s has the size %d: %w", m.Digest, m.Size, oci.ErrInvalid)
		}
	}
	return ix, nil
}

// referrersTag: distribution specification v1.1, "Referrers Tag Schema".
func referrersTag(d oci.Digest) string {
	hex := d.Encoded()
	return string(d.Algorithm())[:min(32, len(d.Algorithm()))] + "-" + hex[:min(64, len(hex))]
}

func (r *Repository) taggedReferrers(ctx context.Context, d oci.Digest) ([]oci.Descriptor, error) {
	h, err := r.getManifest(ctx, referrersTag(d), "")
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ix, err := readIndex(h.body)
	return ix.Manifests, err
}

// linkReferrer adds a manifest that names a subject to the subject's referrers
// tag, which the specification asks of clients where the registry does not say
// that it keeps referrers itself.
func (r *Repository) linkReferrer(ctx context.Context, d oci.Descriptor, body []byte) error {
	var m struct {
		Subject      *oci.Descriptor `json:"subject"`
		ArtifactType string          `json:"artifactType"`
		Config       *struct {
			MediaType string `json:"mediaType"`
		} `json:"config"`
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(body, &m) != nil || m.Subject == nil {
		return nil
	}
	if err := checkDigest(m.Subject.Digest); err != nil {
		return err
	}
	entry := oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
	if entry.ArtifactType == "" && m.Config != nil {
		entry.ArtifactType = m.Config.MediaType
	}
	have, err := r.taggedReferrers(ctx, m.Subject.Digest)
	if err != nil {
		return fmt.Errorf("referrers of %s: %w", m.Subject.Digest, err)
	}
	if slices.ContainsFunc(have, func(o oci.Descriptor) bool { return o.Digest == d.Digest }) {
		return nil
	}
	ix := oci.Index{MediaType: oci.MediaTypeIndex, Manifests: append(have, entry)}
	ix.SchemaVersion = 2
	list, err := json.Marshal(ix)
	if err != nil {
		return err
	}
	_, err = r.sendManifest(ctx, referrersTag(m.Subject.Digest), oci.DescriptorOf(oci.MediaTypeIndex, list), list)
	return err
}
