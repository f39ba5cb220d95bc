package registry

import (
	"net/http/httptest"
	"testing"

	"github.com/strake-project/strake/internal/content/store"
)

// serve starts a registry over a fresh store.
func serve(t *testing.T) (*httptest.Server, *store.Store) {
	t.Helper()
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := New(s, Options{})
	srv := httptest.NewServer(g)
	t.Cleanup(func() {
		srv.Close()
		g.Close()
		s.Close()
	})
	return srv, s
}

func TestBase(t *testing.T) {
	srv, _ := serve(t)
	r, err := srv.Client().Get(srv.URL + "/v2/")
	if err != nil || r.StatusCode != 200 {
		t.Fatal(r, err)
	}
	r.Body.Close()
}
