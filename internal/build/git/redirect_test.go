package git

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestRedirectedCredentials: a repository that has moved to another host is
// fetched from there, and what opens the first host stays with it.
func TestRedirectedCredentials(t *testing.T) {
	l := newLab(t)
	l.sh("repo", base)
	var mu sync.Mutex
	var at []string // the first host's requests
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		at = append(at, r.Header.Get("Authorization"))
		mu.Unlock()
		http.Redirect(w, r, l.url+r.URL.Path+"?"+r.URL.RawQuery, http.StatusMovedPermanently)
	}))
	defer first.Close()
	l.refuse = func(r *http.Request) bool { return r.Header.Get("Authorization") != "" }
	for _, whole := range []bool{false, true} {
		s := &Source{Remote: first.URL + "/repo/.git", Auth: basic("user", "sesame"), AuthHost: whole}
		got, _, err := l.checkout(s)
		if err != nil || !strings.Contains(got, "sub/deep/s") {
			t.Errorf("%v: %q, %v", whole, got, err)
		}
	}
	// On the same host they go along.
	l.refuse = nil
	l.auth.Store(basic("user", "sesame"))
	l.sh("other", base)
	l.moved = map[string]string{"/old/.git": "/other/.git"}
	if got, _, err := l.checkout(&Source{Remote: l.url + "/old/.git", Auth: basic("user", "sesame")}); err != nil || !strings.Contains(got, "sub/deep/s") {
		t.Errorf("%q, %v", got, err)
	}
	if !slices.Contains(at, basic("user", "sesame")) {
		t.Errorf("the first host was sent %q", at)
	}
}

// TestSilent: a server that accepts and says nothing is given up, whatever its
// protocol, and a build that is ended does not wait for it.
func TestSilent(t *testing.T) {
	l := newLab(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close() // the kernel accepts
	l.git.Stall = time.Second
	for _, remote := range []string{"git://" + silent.Addr().String() + "/repo", "http://" + silent.Addr().String() + "/repo"} {
		for _, s := range []*Source{{Remote: remote}, {Remote: remote, Ref: strings.Repeat("a", 40)}} {
			if _, _, err := l.checkout(s); err == nil || !strings.Contains(err.Error(), "nothing came for 1s") && !strings.Contains(err.Error(), "Operation too slow") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v", remote, err)
			}
		}
		patient := &Git{Scratch: l.git.Scratch}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(300*time.Millisecond, cancel)
		if _, err := patient.Resolve(ctx, &Source{Remote: remote}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, ended: %v", remote, err)
		}
	}
}

func TestSameServer(t *testing.T) {
	for _, c := range []struct {
		old, to string
		want    bool
	}{
		{"https://a/x", "https://A/y", true},
		{"http://a/x", "https://a/x", true},
		{"https://a/x", "http://a/x", false},
		{"http://a:80/x", "https://a:80/x", false},
		{"https://a/x", "https://a:444/x", false},
		{"https://a/x", "https://a.b/x", false},
	} {
		old, _ := url.Parse(c.old)
		to, _ := url.Parse(c.to)
		if got := sameServer(old, to); got != c.want {
			t.Errorf("%s to %s: %v", c.old, c.to, got)
		}
	}
}
