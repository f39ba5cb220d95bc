package remote_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/strake-project/strake/internal/content/remote"
)

// TestSearch: a hub that has the search API, one that fails, one that answers
// nonsense, and a registry that has a catalog only.
func TestSearch(t *testing.T) {
	serve := func(h http.HandlerFunc) string {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://")
	}
	c := client(remote.Options{Credentials: nobody})
	hub := serve(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/search" || r.URL.Query().Get("q") != "a b&c" || r.URL.Query().Get("n") != "2" {
			t.Errorf("asked for %s", r.URL)
		}
		fmt.Fprint(w, `{"num_results":3,"results":[{"name":"x","description":"d","star_count":7,"is_official":true},{"name":"y"},{"name":"z"}]}`)
	})
	found, err := c.Search(t.Context(), hub, "a b&c", 2)
	if err != nil || len(found) != 2 || found[0] != (remote.Found{Name: "x", Description: "d", Stars: 7, Official: true}) {
		t.Errorf("found %+v, %v", found, err)
	}
	broken := serve(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusForbidden) })
	if _, err := c.Search(t.Context(), broken, "x", 5); err == nil || err.Error() != "Unexpected status code 403" {
		t.Errorf("a hub that refuses: %v", err)
	}
	nonsense := serve(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>") })
	if _, err := c.Search(t.Context(), nonsense, "x", 5); err == nil || !strings.Contains(err.Error(), "no list of search results") {
		t.Errorf("a hub that talks nonsense: %v", err)
	}
	catalog := serve(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.String() {
		case "/v2/_catalog?n=1000":
			w.Header().Set("Link", `</v2/_catalog?last=b>; rel="next"`)
			fmt.Fprint(w, `{"repositories":["team/web","b","BAD NAME web"]}`)
		case "/v2/_catalog?last=b":
			fmt.Fprint(w, `{"repositories":["web2"]}`)
		default:
			http.NotFound(w, r)
		}
	})
	found, err = c.Search(t.Context(), catalog, "web", 5)
	if err != nil || len(found) != 2 || found[0].Name != "team/web" || found[1].Name != "web2" {
		t.Errorf("of a catalog: %+v, %v", found, err)
	}
	if found, err = c.Search(t.Context(), catalog, "web", 1); err != nil || len(found) != 1 {
		t.Errorf("one of a catalog: %+v, %v", found, err)
	}
}
