package cli

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestFetchDockerfile: what the URL has, or an error that keeps its password.
func TestFetchDockerfile(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/Dockerfile" {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, "FROM scratch\n")
	}))
	defer s.Close()
	body, err := fetchDockerfile(t.Context(), s.URL+"/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); err != nil || string(b) != "FROM scratch\n" {
		t.Errorf("%q, %v", b, err)
	}
	_, err = fetchDockerfile(t.Context(), strings.Replace(s.URL, "http://", "http://u:secret@", 1)+"/other")
	if err == nil || !strings.Contains(err.Error(), "404") || strings.Contains(err.Error(), "secret") {
		t.Errorf("a missing Dockerfile: %v", err)
	}
}
