package ocitest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// On makes a fault of requests with that method ("" is any) whose path contains
// part only.
func On(method, part string, fault Fault) Fault {
	return func(next http.Handler) http.Handler {
		faulty := fault(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if (method == "" || r.Method == method) && strings.Contains(r.URL.Path, part) {
				faulty.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// Longer makes a fault of requests with a body of more than n bytes.
func Longer(n int64, fault Fault) Fault {
	return func(next http.Handler) http.Handler {
		faulty := fault(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength > n {
				faulty.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// Times makes a fault of the first n requests that reach it.
func Times(n int64, fault Fault) Fault {
	var seen atomic.Int64
	return func(next http.Handler) http.Handler {
		faulty := fault(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if seen.Add(1) <= n {
				faulty.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// Answer replaces the registry's answer.
func Answer(h http.HandlerFunc) Fault {
	return func(http.Handler) http.Handler { return h }
}

// Fails answers with a status, and an error body if code is not empty.
func Fails(status int, code, message string) Fault {
	return Answer(func(w http.ResponseWriter, r *http.Request) {
		if code == "" {
			w.WriteHeader(status)
			return
		}
		WriteError(w, status, code, message)
	})
}

// WithHeader changes an answer's header; an empty value removes it.
func WithHeader(name, value string) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&headerWriter{ResponseWriter: w, name: name, value: value}, r)
		})
	}
}

type headerWriter struct {
	http.ResponseWriter
	name, value string
	done        bool
}

func (w *headerWriter) change() {
	if !w.done {
		w.done = true
		w.Header().Del(w.name)
		if w.value != "" {
			w.Header().Set(w.name, w.value)
		}
	}
}

func (w *headerWriter) WriteHeader(status int) {
	w.change()
	w.ResponseWriter.WriteHeader(status)
}

func (w *headerWriter) Write(p []byte) (int, error) {
	w.change()
	return w.ResponseWriter.Write(p)
}

// Cut ends the connection after n bytes of the answer's body.
func Cut(n int) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&cutWriter{w, n}, r)
		})
	}
}

type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if len(p) < w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	_, _ = w.ResponseWriter.Write(p[:w.left])
	w.ResponseWriter.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// CutRequest lets the registry have n bytes of the request's body, and then ends
// the connection.
func CutRequest(n int64) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(r.Body, n), failing{}), r.Body}
			next.ServeHTTP(w, r)
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// NoRange leaves the request's Range out of account.
func NoRange() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			next.ServeHTTP(w, r)
		})
	}
}

// Flip changes the first byte of the answer's body.
func Flip() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&flipWriter{ResponseWriter: w}, r)
		})
	}
}

type flipWriter struct {
	http.ResponseWriter
	done bool
}

func (w *flipWriter) Write(p []byte) (int, error) {
	if !w.done && len(p) > 0 {
		w.done = true
		p = append([]byte{p[0] ^ 1}, p[1:]...)
	}
	return w.ResponseWriter.Write(p)
}

// Endless answers with a body that does not end, and has no length.
func Endless(contentType string) Fault {
	return Answer(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		junk := []byte(strings.Repeat("[\"x\",", 1<<12))
		for r.Context().Err() == nil {
			if _, err := w.Write(junk); err != nil {
				return
			}
		}
	})
}

// Silent sends n bytes of the answer and then nothing more.
func Silent(n int) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&silentWriter{w, r, n}, r)
		})
	}
}

type silentWriter struct {
	http.ResponseWriter
	r    *http.Request
	left int
}

func (w *silentWriter) Write(p []byte) (int, error) {
	if len(p) < w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	_, _ = w.ResponseWriter.Write(p[:w.left])
	w.ResponseWriter.(http.Flusher).Flush()
	<-w.r.Context().Done()
	panic(http.ErrAbortHandler)
}

// Redirects answers with that status and Location; "{path}" in it is the
// request's path and query.
func Redirects(status int, location string) Fault {
	return Answer(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", strings.ReplaceAll(location, "{path}", r.URL.RequestURI()))
		w.WriteHeader(status)
	})
}

// BasicAuth lets in who has that user name and password.
func BasicAuth(user, password string) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="basic-realm"`)
				WriteError(w, 401, "UNAUTHORIZED", "authentication required")
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// Tokens is a token server on a host (port) of its own.
type Tokens struct {
	*httptest.Server
	// User and Password are asked for; empty lets anybody have a token.
	User, Password string
	// Refresh is the identity token that is asked for instead.
	Refresh string
	// Refuse answers with that status.
	Refuse int

	mu    sync.Mutex
	given map[string]string // token: scopes
	n     int
	asked []Asked
}

// NewTokens starts a token server over plain http.
func NewTokens(t testing.TB) *Tokens {
	s := &Tokens{given: map[string]string{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// Asked returns the requests so far.
func (s *Tokens) Asked() []Asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Asked(nil), s.asked...)
}

// Revoke makes every token given so far invalid.
func (s *Tokens) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.given)
}

// ServeHTTP implements http.Handler.
func (s *Tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, Asked{Method: r.Method, Path: r.URL.Path, Query: r.Form.Encode(), Authorization: r.Header.Get("Authorization")})
	user, password, _ := r.BasicAuth()
	switch {
	case s.Refuse != 0:
		w.WriteHeader(s.Refuse)
		return
	case s.User != "" && (user != s.User || password != s.Password),
		s.Refresh != "" && (r.Method != http.MethodPost || r.PostForm.Get("refresh_token") != s.Refresh):
		WriteError(w, 401, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	s.n++
	token := fmt.Sprintf("token-%d", s.n)
	s.given[token] = strings.Join(r.Form["scope"], " ")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 300})
}

// Bearer lets in who has a token of s; those with a scope that lacks the
// action that the request needs are told so.
func (s *Tokens) Bearer() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			action := "pull"
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				action = "push"
			}
			token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			s.mu.Lock()
			scope, ok := s.given[token]
			s.mu.Unlock()
			name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
			name, _, _ = strings.Cut(name, "/blobs/")
			if ok && (strings.Contains(scope, "repository:"+name+":") && strings.Contains(scope, action) || r.URL.Path == "/v2/") {
				next.ServeHTTP(w, r)
				return
			}
			challenge := fmt.Sprintf(`Bearer realm="%s/token",service="flaky",scope="repository:%s:%s"`, s.URL, name, action)
			if token != "" && ok {
				challenge += `,error="insufficient_scope"`
			} else if token != "" {
				challenge += `,error="invalid_token"`
			}
			w.Header().Set("WWW-Authenticate", challenge)
			WriteError(w, 401, "UNAUTHORIZED", "authentication required")
		})
	}
}

// Elsewhere is another host, which answers all requests alike and remembers
// them.
type Elsewhere struct {
	*httptest.Server
	mu    sync.Mutex
	asked []Asked
}

// NewElsewhere starts one.
func NewElsewhere(t testing.TB, h http.Handler) *Elsewhere {
	e := &Elsewhere{}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		e.asked = append(e.asked, Asked{Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Authorization: r.Header.Get("Authorization"), Range: r.Header.Get("Range")})
		e.mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(e.Close)
	return e
}

// Asked returns the requests so far.
func (e *Elsewhere) Asked() []Asked {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]Asked(nil), e.asked...)
}
