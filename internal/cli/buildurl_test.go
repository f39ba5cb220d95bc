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
	a, _, _ := testApp("strake")
	body, err := a.fetchDockerfile(t.Context(), s.URL+"/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); err != nil || string(b) != "FROM scratch\n" {
		t.Errorf("%q, %v", b, err)
	}
	_, err = a.fetchDockerfile(t.Context(), strings.Replace(s.URL, "http://", "http://u:secret@", 1)+"/other")
	if err == nil || !strings.Contains(err.Error(), "404") || strings.Contains(err.Error(), "secret") {
		t.Errorf("a missing Dockerfile: %v", err)
	}
}

// A password in the URL of an archive is neither in the image nor in an error.
func TestImportPassword(t *testing.T) {
	conf, err := importConfig(&importOptions{source: "http://u:secret@host/x.tar?a=b"})
	if want := "Imported from http://u:xxxxx@host/x.tar?a=b"; err != nil || conf.History[0].Comment != want {
		t.Errorf("%+v, %v", conf, err)
	}
	a, _, _ := testApp("strake")
	if _, err := a.openImport(t.Context(), "http://u:secret@127.0.0.1:1/x\x7f"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a bad URL: %v", err)
	}
}
