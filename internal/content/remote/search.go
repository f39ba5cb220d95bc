package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Found is a repository that a search found, as Docker Hub describes it.
type Found struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Stars       int    `json:"star_count"`
	Official    bool   `json:"is_official"`
	Automated   bool   `json:"is_automated"`
}

// Search asks domain's registry for repositories that fit term, limit of them
// at most: by the search API of Docker Hub or, with a registry that has none,
// by the names in its catalog.
func (c *Client) Search(ctx context.Context, domain, term string, limit int) ([]Found, error) {
	if domain == "docker.io" {
		domain = "index.docker.io"
	}
	h := c.host(domain)
	query := url.Values{"q": {term}, "n": {strconv.Itoa(limit)}}
	resp, err := h.do(ctx, &request{method: http.MethodGet, path: "/v1/search?" + query.Encode()}, http.StatusOK)
	var said *Error
	if errors.As(err, &said) && domain != "index.docker.io" && (said.Status == http.StatusNotFound || said.Status == http.StatusMethodNotAllowed) {
		return c.searchCatalog(ctx, domain, term, limit)
	}
	if errors.As(err, &said) {
		return nil, worded{fmt.Sprintf("Unexpected status code %d", said.Status), err}
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxListBody+1))
	if err != nil {
		return nil, &networkError{method: http.MethodGet, url: redact(resp.Request.URL), err: err}
	}
	var list struct {
		Results []Found `json:"results"`
	}
	if len(body) > maxListBody || json.Unmarshal(body, &list) != nil {
		return nil, fmt.Errorf("%s: the answer is no list of search results: %w", redact(resp.Request.URL), oci.ErrInvalid)
	}
	return list.Results[:min(limit, len(list.Results))], nil
}

// searchCatalog finds the names of the catalog that hold term.
func (c *Client) searchCatalog(ctx context.Context, domain, term string, limit int) ([]Found, error) {
	var all []Found
	enough := errors.New("enough")
	repo := c.Repository(ref.Ref{Domain: domain})
	rq := &request{method: http.MethodGet, path: "/v2/_catalog?n=1000", scopes: []string{"registry:catalog:*"}}
	err := repo.pages(ctx, rq, func(resp *http.Response, body []byte) (int, error) {
		var list struct {
			Repositories []string `json:"repositories"`
		}
		if err := json.Unmarshal(body, &list); err != nil {
			return 0, fmt.Errorf("%s: %v: %w", redact(resp.Request.URL), err, oci.ErrInvalid)
		}
		for _, name := range list.Repositories {
			if !strings.Contains(name, term) {
				continue
			}
			if _, err := ref.Parse(name); err != nil { // it will be printed, and pulled
				continue
			}
			if all = append(all, Found{Name: name}); len(all) == limit {
				return 0, enough
			}
		}
		return len(list.Repositories), nil
	})
	if errors.Is(err, enough) {
		err = nil
	}
	return all, err
}
