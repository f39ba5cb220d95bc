package git

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// git sends a header that it was given to every host that the first answer
// redirects to. So where there are credentials it follows no redirect; we ask
// where the repository is, and tell it.

const maxMoves = 5

// authorize sends the header to what is below scope.
func (c *config) authorize(scope string) {
	c.scopes = append(c.scopes, scope)
	c.set("http."+scope+".extraheader", "Authorization: "+c.auth)
	c.set("http."+scope+".followRedirects", "false")
}

var movedPattern = regexp.MustCompile(`unable to access '([^'\n]+)': The requested URL returned error: 30[12378]`)

// follow tells whether the error is a redirect that git did not follow, and has
// git go to where it leads from now on: with the credentials on the same host,
// without them elsewhere.
func (r *runner) follow(ctx context.Context, err error) bool {
	var failed *Error
	if r.conf.auth == "" || !errors.As(err, &failed) {
		return false
	}
	m := movedPattern.FindStringSubmatch(failed.Stderr)
	if m == nil {
		return false
	}
	from := strings.TrimSuffix(m[1], "/")
	old, err := url.Parse(from)
	if err != nil || !slices.ContainsFunc(r.conf.scopes, func(s string) bool { return below(from, s) }) {
		return false
	}
	to, err := r.moved(ctx, from)
	if err != nil {
		return false // git's own error is the one to report
	}
	r.conf.set("url."+to.String()+".insteadOf", from)
	if sameServer(old, to) {
		r.conf.authorize(to.String())
	}
	return true
}

// sameServer is true of one scheme, host and port, and of a host that takes us
// from http to https.
func sameServer(old, to *url.URL) bool {
	if !strings.EqualFold(old.Host, to.Host) {
		return false
	}
	return old.Scheme == to.Scheme || to.Scheme == "https" && to.Port() == ""
}

// below tells whether git matches repo by a configuration for scope.
func below(repo, scope string) bool {
	scope = strings.TrimSuffix(scope, "/")
	rest, ok := strings.CutPrefix(repo, scope)
	return ok && (rest == "" || rest[0] == '/')
}

// moved asks where a repository is.
func (r *runner) moved(ctx context.Context, from string) (*url.URL, error) {
	const path = "/info/refs"
	ctx, cancel := context.WithTimeout(ctx, r.g.stall())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from+path+"?service=git-upload-pack", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", r.conf.auth)
	// git's own, which hosts of repositories tell from a browser's.
	req.Header.Set("User-Agent", "git/2.0 (strake)")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	to, err := resp.Location()
	if err != nil {
		return nil, err
	}
	to.User, to.RawQuery, to.Fragment = nil, "", ""
	base, ok := strings.CutSuffix(to.Path, path)
	if !ok || to.Scheme != "https" && (to.Scheme != "http" || req.URL.Scheme != "http") || strings.ContainsAny(to.Host+base, "\n\x00") {
		return nil, errors.New("a redirect to what is no repository")
	}
	to.Path, to.RawPath = base, ""
	return to, nil
}
