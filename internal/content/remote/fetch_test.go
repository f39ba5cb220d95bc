package remote_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/content/remote"
)

// TestFetch: a file of an ordinary server; one that falls silent is given up,
// one that is slow is not, and another host learns neither password nor URL.
func TestFetch(t *testing.T) {
	over := make(chan struct{})
	var told http.Header
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told = r.Header.Clone()
		_, _ = io.WriteString(w, "there")
	}))
	defer other.Close()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/file":
			_, _ = io.WriteString(w, "file")
		case "/away":
			http.Redirect(w, r, other.URL+"/x", http.StatusFound)
		case "/circle":
			http.Redirect(w, r, "/circle", http.StatusFound)
		case "/slow":
			for range 8 {
				_, _ = io.WriteString(w, "drop")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(100 * time.Millisecond)
			}
		case "/half":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			fallthrough
		default:
			select {
			case <-over:
			case <-r.Context().Done():
			}
		}
	}))
	defer s.Close()
	defer close(over)
	c := remote.New(remote.Options{Credentials: nobody, CertDirs: []string{}, Timing: remote.Timing{Stall: 500 * time.Millisecond}})
	withPassword := strings.Replace(s.URL, "http://", "http://user:sesame@", 1)
	for path, want := range map[string]string{
		"/file": "file", "/slow": "dropdropdropdropdropdropdropdrop", "/away": "there",
		"/circle": "!stopped after 10 redirects", "/silent": "!the server sends nothing", "/half": "!the server sends nothing",
	} {
		got := ""
		resp, err := c.Fetch(t.Context(), withPassword+path)
		if err == nil {
			var b []byte
			b, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			got = string(b)
		}
		if err != nil {
			got = "!" + err.Error()
		}
		if !strings.HasPrefix(want, "!") && got != want || !strings.Contains(got, want[1:]) || strings.Contains(got, "sesame") {
			t.Errorf("%s: %q, not %q", path, got, want)
		}
	}
	if told.Get("Authorization") != "" || told.Get("Referer") != "" {
		t.Errorf("another host was told %v", told)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := remote.New(remote.Options{}).Fetch(ctx, s.URL+"/silent"); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}
