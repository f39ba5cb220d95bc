// Package auth answers a registry's challenges: Basic, and Bearer tokens as
// docker's token servers hand them out (distribution specification, "Token
// Authentication"), anonymous ones included.
//
// It keeps these promises:
//   - credentials are asked for only once a registry has challenged, and only
//     those of that registry's host; one Authorizer belongs to one registry;
//   - they are sent to the registry itself (Basic) or to the token server that
//     it names (Bearer), which is another host at docker.io; a token server is
//     spoken to over https, unless the registry itself is on plain http;
//   - no secret is part of an error.
//
// Why not oras-go's: this needs half of it in 400 lines, and it must sit inside
// a request loop of ours, which resends bodies that can't be sent twice, goes
// on with broken transfers, and drops credentials at the first step away from
// the registry. Its client also costs each command 3 ms at start-up.
package auth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/strake-project/strake/internal/oci"
)

// Credentials are what a user has for one registry. The zero value is nobody.
type Credentials struct {
	Username, Password string
	// IdentityToken is a refresh token that a token server gave at login.
	IdentityToken string
	// RegistryToken is sent as it is, as a Bearer token.
	RegistryToken string
}

// Empty tells whether there are none.
func (c Credentials) Empty() bool { return c == Credentials{} }

// Lookup finds the credentials for a registry host, such as "ghcr.io" or
// "127.0.0.1:5000"; for Docker Hub it is asked for "docker.io". Having none is
// no error.
type Lookup func(ctx context.Context, host string) (Credentials, error)

// Authorizer holds what one registry's challenges led to. Its methods may be
// called from many goroutines.
type Authorizer struct {
	// Host is what Lookup is asked for.
	Host string
	// Lookup may be nil: nobody.
	Lookup Lookup
	// Send sends one request to a token server. It must follow no redirect to
	// another host with the request's Authorization.
	Send func(*http.Request) (*http.Response, error)
	// PlainHTTP allows a token server on plain http; it is asked when needed,
	// because only the first answer tells how the registry is spoken to.
	PlainHTTP func(realm *url.URL) bool

	mu     sync.Mutex
	looked bool
	creds  Credentials
	scheme string // of the last challenge: "basic", "bearer"
	bearer challenge
	basic  string
	tokens map[string]token // by scopes
}

type token struct {
	value   string
	expires time.Time
}

// maxToken bounds a token server's answer.
const maxToken = 1 << 20

// Header returns the Authorization header for a request that needs scopes, ""
// where none is known to be needed yet. After a first challenge it fetches a
// token for other scopes by itself, which saves a refused request.
func (a *Authorizer) Header(ctx context.Context, scopes []string) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch a.scheme {
	case "basic":
		return a.basic, nil
	case "bearer":
		return a.token(ctx, scopes)
	}
	return "", nil
}

// Challenge learns from a 401. used is the header that the refused request
// had. If it returns nil, the request is worth sending again with a new Header.
func (a *Authorizer) Challenge(ctx context.Context, h http.Header, scopes []string, used string) error {
	all := parseChallenges(h.Values("Www-Authenticate"))
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, scheme := range []string{"bearer", "basic"} {
		for _, c := range all {
			if c.scheme == scheme {
				return a.answer(ctx, c, scopes, used)
			}
		}
	}
	if len(all) == 0 {
		return &Error{} // it asks for nothing: the 401 itself says it best
	}
	return &Error{Text: "registry asks for credentials in a way that strake does not know"}
}

func (a *Authorizer) answer(ctx context.Context, c challenge, scopes []string, used string) error {
	if err := a.lookup(ctx); err != nil {
		return err
	}
	if c.scheme == "basic" {
		switch {
		case a.creds.Username == "" && a.creds.Password == "":
			return &Error{Text: "authorization failed: no basic auth credentials"}
		case used != "" && used == a.basic:
			return &Error{} // the 401 itself says it best
		}
		a.scheme, a.basic = "basic", basic(a.creds)
		return nil
	}
	key := scopeKey(scopes)
	if t, ok := a.tokens[key]; ok && used != t.value && a.scheme == "bearer" && time.Now().Before(t.expires) {
		return nil // another request, sent at the same time, has fetched it
	}
	if used != "" && c.params["error"] != "invalid_token" {
		if err := c.message(); err != nil {
			return err
		}
	}
	a.scheme, a.bearer = "bearer", c
	delete(a.tokens, key)
	_, err := a.token(ctx, scopes)
	return err
}

// message is why a registry refuses a token: "insufficient_scope".
func (c challenge) message() error {
	if c.params["error"] == "" {
		return nil
	}
	return &Error{Text: "server message: " + clean(c.params["error"]) + ": authorization failed"}
}

// Refusal is what a 401 says about the token that was sent, nil if nothing.
func Refusal(h http.Header) error {
	for _, c := range parseChallenges(h.Values("Www-Authenticate")) {
		if err := c.message(); err != nil {
			return err
		}
	}
	return nil
}

func (a *Authorizer) lookup(ctx context.Context) error {
	if a.looked || a.Lookup == nil {
		return nil
	}
	c, err := a.Lookup(ctx, a.Host)
	if err != nil {
		return fmt.Errorf("credentials for %s: %w", a.Host, err)
	}
	a.creds, a.looked = c, true
	return nil
}

func basic(c Credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

// token returns a Bearer header for scopes, from the cache or the token server.
func (a *Authorizer) token(ctx context.Context, scopes []string) (string, error) {
	if a.creds.RegistryToken != "" {
		return "Bearer " + a.creds.RegistryToken, nil
	}
	key := scopeKey(scopes)
	if t, ok := a.tokens[key]; ok && time.Now().Before(t.expires) {
		return t.value, nil
	}
	t, err := a.fetch(ctx, mergeScopes(append([]string{a.bearer.params["scope"]}, scopes...)))
	if err != nil {
		return "", err
	}
	if a.tokens == nil {
		a.tokens = map[string]token{}
	}
	a.tokens[key] = t
	return t.value, nil
}

func (a *Authorizer) fetch(ctx context.Context, scopes []string) (token, error) {
	realm, err := url.Parse(a.bearer.params["realm"])
	if err != nil || realm.Host == "" {
		return token{}, &Error{Text: "registry names no token server"}
	}
	realm.User = nil
	if realm.Scheme != "https" && (realm.Scheme != "http" || a.PlainHTTP == nil || !a.PlainHTTP(realm)) {
		return token{}, &Error{Text: fmt.Sprintf("registry names the token server %s://%s, which is not https: credentials are not sent there", clean(realm.Scheme), clean(realm.Host))}
	}
	q := url.Values{}
	if s := a.bearer.params["service"]; s != "" {
		q.Set("service", s)
	}
	what := "anonymous token"
	var req *http.Request
	if a.creds.IdentityToken != "" {
		what = "oauth token"
		q.Set("grant_type", "refresh_token")
		q.Set("refresh_token", a.creds.IdentityToken)
		q.Set("client_id", "strake")
		q.Set("scope", strings.Join(scopes, " "))
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(q.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
	} else {
		q["scope"] = scopes
		for k, v := range realm.Query() {
			if _, ok := q[k]; !ok {
				q[k] = v
			}
		}
		if a.creds.Username != "" {
			q.Set("account", a.creds.Username)
		}
		realm.RawQuery = q.Encode()
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
		if err == nil && a.creds.Username != "" {
			what = "oauth token"
			req.Header.Set("Authorization", basic(a.creds))
		}
	}
	if err != nil {
		return token{}, &Error{Text: "registry names an impossible token server"}
	}
	t, err := a.exchange(req)
	if err != nil {
		return token{}, fmt.Errorf("failed to fetch %s: %w", what, err)
	}
	return t, nil
}

// exchange sends req to the token server and reads the token.
func (a *Authorizer) exchange(req *http.Request) (token, error) {
	where := (&url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: req.URL.Path}).String()
	resp, err := a.Send(req)
	if err != nil {
		return token{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		e := &Error{
			Text:   fmt.Sprintf("unexpected status from %s request to %s: %d %s", req.Method, where, resp.StatusCode, http.StatusText(resp.StatusCode)),
			Status: resp.StatusCode, Said: refusal(resp),
		}
		if e.Said != "" {
			e.Text += ": " + e.Said
		}
		return token{}, e
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxToken))
	if err != nil {
		return token{}, fmt.Errorf("%s: %w", where, err)
	}
	var got struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &got); err != nil {
		// err would quote the body
		return token{}, &Error{Text: "unable to decode token response of " + where, Status: resp.StatusCode}
	}
	if got.Token == "" {
		got.Token = got.AccessToken
	}
	if got.Token == "" || strings.ContainsAny(got.Token, "\r\n") {
		return token{}, &Error{Text: "authorization server did not include a token in the response of " + where, Status: resp.StatusCode}
	}
	// The specification's default, and least, is 60 seconds. A request that is
	// sent in a token's last seconds could be refused.
	life := time.Duration(min(max(got.ExpiresIn, 60), 24*3600)) * time.Second
	return token{value: "Bearer " + got.Token, expires: time.Now().Add(life - 5*time.Second)}, nil
}

// refusal is what a token server says beside its status, in docker's words:
// "unauthorized: incorrect username or password".
func refusal(resp *http.Response) string {
	var said struct {
		Details string `json:"details"`
		Errors  []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // half an answer is no worse than none
	if json.Unmarshal(body, &said) != nil {
		return ""
	}
	var words []string
	for _, e := range said.Errors[:min(len(said.Errors), 3)] {
		words = append(words, strings.ToLower(strings.ReplaceAll(clean(e.Code), "_", " "))+": "+clean(e.Message))
	}
	if len(words) == 0 && said.Details != "" && resp.StatusCode == http.StatusUnauthorized {
		words = append(words, "unauthorized: "+clean(said.Details))
	}
	return strings.Join(words, "; ")
}

// Error says that the registry or its token server lets us not in.
// errors.Is(err, oci.ErrUnauthorized) is true of it, or oci.ErrTooMany where
// the token server said that.
type Error struct {
	// Text is "" where the registry's own 401 says all.
	Text   string
	Status int // of the token server, else 0
	// Said are the token server's own words, if it had any.
	Said string
}

func (e *Error) Error() string {
	if e.Text == "" {
		return "the registry refuses the credentials"
	}
	return e.Text
}

// Is gives the kind.
func (e *Error) Is(target error) bool {
	switch e.Status {
	case http.StatusOK: // what it answered is nonsense
		return false
	case http.StatusTooManyRequests:
		return target == oci.ErrTooMany
	case http.StatusForbidden:
		return target == oci.ErrDenied
	}
	if e.Status >= 500 {
		return false
	}
	return target == oci.ErrUnauthorized
}

// Temporary tells whether the token server may answer otherwise soon.
func Temporary(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Status >= 500 || e.Status == http.StatusTooManyRequests)
}

func scopeKey(scopes []string) string { return strings.Join(mergeScopes(scopes), " ") }

// mergeScopes brings several "type:name:action,action" into one for each
// resource, sorted. What has another form passes as it is.
func mergeScopes(scopes []string) []string {
	actions := map[string]map[string]bool{}
	var out []string
	for _, s := range strings.Fields(strings.Join(scopes, " ")) {
		i := strings.LastIndexByte(s, ':')
		if i < 0 {
			out = append(out, s)
			continue
		}
		m := actions[s[:i]]
		if m == nil {
			m = map[string]bool{}
			actions[s[:i]] = m
		}
		for _, act := range strings.Split(s[i+1:], ",") {
			m[act] = true
		}
	}
	for resource, m := range actions {
		var acts []string
		for act := range m {
			acts = append(acts, act)
		}
		sort.Strings(acts)
		out = append(out, resource+":"+strings.Join(acts, ","))
	}
	sort.Strings(out)
	return out
}

// clean makes a registry's words fit for one line on a terminal.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 200)]
}
