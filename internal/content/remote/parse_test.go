package remote

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes 5-9/*")
	f.Add("bytes */10")
	f.Fuzz(func(t *testing.T, s string) {
		if start, total, ok := contentRange(s); ok && (start < 0 || total < -1) {
			t.Errorf("%q gives %d, %d", s, start, total)
		}
	})
}

func FuzzNextPage(f *testing.F) {
	f.Add(`</v2/x/tags/list?last=a>; rel="next"`)
	f.Add(`<a>; rel=prev, <b>; x=y; rel=next`)
	f.Fuzz(func(t *testing.T, s string) {
		if next, ok := nextPage([]string{s}); ok && !strings.Contains(s, "<"+next+">") {
			t.Errorf("%q gives %q", s, next)
		}
	})
}

func FuzzManifestType(f *testing.F) {
	f.Add("", []byte(`{"layers":[],"schemaVersion":2}`))
	f.Add("text/plain", []byte(`{"manifests":[]}`))
	f.Fuzz(func(t *testing.T, said string, body []byte) {
		if got, err := manifestType(said, body); err == nil && !strings.HasPrefix(got, "application/vnd.") {
			t.Errorf("%q, %q gives %q", said, body, got)
		}
	})
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"https://user:pass@h/v2/x?digest=sha256:ab&_state=s#frag":         "https://h/v2/x?digest=sha256:ab",
		"https://cdn.test/blob?X-Amz-Signature=s&X-Amz-Credential=c":      "https://cdn.test/blob",
		"https://auth.test/token?scope=repository:a:pull&refresh_token=r": "https://auth.test/token?scope=repository:a:pull",
		"http://127.0.0.1:5000/v2/a/manifests/latest":                     "http://127.0.0.1:5000/v2/a/manifests/latest",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := redact(u); got != want {
			t.Errorf("redact(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": -1, "x": -1, "-5": -1, "0": 0, "7": 7 * time.Second,
		now.Add(9 * time.Second).Format(http.TimeFormat): 9 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):      0,
		"99999999999999999999":                           -1,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("%q is %v, want %v", in, got, want)
		}
	}
}
