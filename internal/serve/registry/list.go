package registry

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"sort"
	"strconv"

	"github.com/opencontainers/image-spec/specs-go"

	"github.com/strake-project/strake/internal/oci"
)

// page cuts a sorted list to what the n and last parameters ask for, and tells
// the client by a Link header (RFC 5988) where the next page begins.
func page(q query, all []string) ([]string, error) {
	args := q.r.URL.Query()
	if last := args.Get("last"); last != "" {
		i := sort.SearchStrings(all, last)
		if i < len(all) && all[i] == last {
			i++
		}
		all = all[i:]
	}
	if !args.Has("n") {
		return all, nil
	}
	n, ok := number(args.Get("n"))
	if !ok {
		return nil, fault(codePageInvalid, http.StatusBadRequest, "n=%q is no number", args.Get("n"))
	}
	if n == 0 {
		return []string{}, nil
	}
	if n < int64(len(all)) {
		all = all[:n]
		next := url.Values{"n": {strconv.FormatInt(n, 10)}, "last": {all[n-1]}}
		q.w.Header().Set("Link", "<"+q.r.URL.EscapedPath()+"?"+next.Encode()+`>; rel="next"`)
	}
	return all, nil
}

func (g *Registry) json(q query, mediaType string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, err = q.w.Write(body)
	return err
}

// tags lists a repository's tags in the order of their bytes.
func (g *Registry) tags(q query) error {
	all, err := g.store.Tags(q.ctx(), q.repo)
	if errors.Is(err, oci.ErrNotFound) {
		e := fault(codeNameUnknown, http.StatusNotFound, "repository name not known to registry")
		e.Detail = map[string]string{"name": q.name}
		return e
	}
	if err != nil {
		return err
	}
	if all, err = page(q, all); err != nil {
		return err
	}
	if all == nil {
		all = []string{}
	}
	return g.json(q, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{q.name, all})
}

// catalog lists the repositories that have a tag, by the names under which
// they are served.
func (g *Registry) catalog(q query) error {
	all, err := g.names(q.ctx())
	if err != nil {
		return err
	}
	if all, err = page(q, all); err != nil {
		return err
	}
	return g.json(q, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{all})
}

// names lists the repositories by the names under which they are served, sorted.
func (g *Registry) names(ctx context.Context) ([]string, error) {
	repos, err := g.store.Repositories(ctx)
	if err != nil {
		return nil, err
	}
	all := []string{}
	for _, r := range repos {
		name := r.FamiliarName()
		if back, err := target(name); err == nil && back.Repository() == r.Repository() {
			all = append(all, name)
		}
	}
	sort.Strings(all)
	return all, nil
}

// referrers lists the manifests whose subject a digest is. There may be none;
// that is an empty list, not an error.
func (g *Registry) referrers(q query) error {
	kind := q.r.URL.Query().Get("artifactType")
	found, err := g.store.Referrers(q.ctx(), oci.Descriptor{Digest: q.digest}, kind)
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	ix := oci.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeIndex, Manifests: []oci.Descriptor{}}
	for _, d := range found {
		hidden, err := g.hidden(q.ctx(), q.repo, d.Digest)
		if err != nil {
			return err
		}
		if !hidden {
			ix.Manifests = append(ix.Manifests, d)
		}
	}
	if kind != "" {
		q.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return g.json(q, oci.MediaTypeIndex, ix)
}
