package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/oci"
)

// request is one call of the API, however many HTTP requests it takes.
type request struct {
	method string
	path   string   // of the registry, with a query; or
	url    *url.URL // anywhere: from a Location
	header http.Header
	scopes []string
	// body makes the body anew for each HTTP request; nil is none.
	body func() (io.ReadCloser, error)
	size int64
	// once leaves it to the caller to go on after a failure.
	once bool
	// busy is a blob's size that the registry may have to hash or move before
	// it answers.
	busy int64
	// ping tries plain http after any failure of https, and reports its
	// failure, as docker does at login.
	ping bool
	// called is the method that errors name, where it is not method.
	called string
}

// maxRedirects is docker's, and Go's.
const maxRedirects = 10

// do sends rq, answers challenges, follows redirects and tries again where that
// may help, until an answer has one of the statuses ok. Other answers are
// errors. The caller closes the body.
func (h *host) do(ctx context.Context, rq *request, ok ...int) (*http.Response, error) {
	if rq.body != nil && h.known() == "" {
		// Whether the registry speaks https is found out without a body.
		if err := h.c.Ping(ctx, h.domain); err != nil && h.known() == "" {
			return nil, err
		}
	}
	challenged := false
	for try := 1; ; {
		resp, used, err := h.follow(ctx, rq)
		if err == nil && slices.Contains(ok, resp.StatusCode) {
			return resp, nil
		}
		if err == nil && resp.StatusCode == http.StatusUnauthorized && h.isOwn(resp.Request.URL) {
			fail := newError(resp, time.Now())
			if !challenged {
				err = h.auth.Challenge(ctx, resp.Header, rq.scopes, used)
				if err == nil {
					challenged = true
					continue
				}
				var refused *auth.Error
				if errors.As(err, &refused) && refused.Text == "" {
					err = fail // the credentials are wrong
				}
			} else if err = auth.Refusal(resp.Header); err == nil {
				err = fail
			}
		} else if err == nil {
			err = newError(resp, time.Now())
		}
		wait, again := h.again(err, try)
		if rq.once || !again {
			return nil, rq.name(err)
		}
		h.c.opt.Log.DebugContext(ctx, "trying again", "in", wait, "after", err)
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		try++
	}
}

// name puts rq's name for itself into err.
func (rq *request) name(err error) error {
	if rq.called == "" {
		return err
	}
	switch e := err.(type) {
	case *networkError:
		e.method = rq.called
	case *Error:
		e.Method = rq.called
	}
	return err
}

// follow sends rq once, and on to where it is redirected. It returns the
// Authorization that the registry was sent.
func (h *host) follow(ctx context.Context, rq *request) (resp *http.Response, used string, err error) {
	u, method := rq.url, rq.method
	if u == nil {
		if u, err = url.Parse(rq.path); err != nil {
			return nil, "", fmt.Errorf("%q: %w", rq.path, oci.ErrInvalid)
		}
	}
	// Once away, never again trusted: a chain of redirects may come back to
	// the registry with a path that somebody else chose.
	left := u.Host != "" && !h.isOwn(u)
	for hop := 0; ; hop++ {
		var sent string
		if !left {
			if sent, err = h.auth.Header(ctx, rq.scopes); err != nil {
				return nil, "", fmt.Errorf("failed to authorize: %w", err)
			}
			used = sent
		}
		resp, err = h.roundTrip(ctx, rq, method, u, sent, left)
		if err != nil {
			return nil, used, err
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
			if method != http.MethodGet && method != http.MethodHead {
				return resp, used, nil
			}
		case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, used, nil
		}
		drain(resp.Body)
		if hop == maxRedirects {
			return nil, used, fmt.Errorf("%s %s: stopped after %d redirects: %w", method, redact(u), maxRedirects, oci.ErrInvalid)
		}
		if u, err = h.location(resp); err != nil {
			return nil, used, err
		}
		left = left || !h.isOwn(u)
	}
}

// location reads an answer's Location, which may be anywhere, and refuses what
// strake won't speak to.
func (h *host) location(resp *http.Response) (*url.URL, error) {
	base := resp.Request.URL
	u, err := base.Parse(resp.Header.Get("Location"))
	if err != nil || u.Host == "" || resp.Header.Get("Location") == "" {
		return nil, fmt.Errorf("%s answers %d without a Location that can be used: %w", redact(base), resp.StatusCode, oci.ErrInvalid)
	}
	u.User, u.Fragment = nil, ""
	if u.Scheme == "http" && base.Scheme == "https" && u.Hostname() == base.Hostname() {
		// A registry behind a proxy that unpacks TLS and does not tell it so.
		u.Scheme = "https"
		if u.Port() == "80" {
			u.Host = base.Host
		}
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && h.mayBePlain(u):
	default:
		return nil, fmt.Errorf("%s redirects to %s, which is not https: %w", redact(base), redact(u), oci.ErrInvalid)
	}
	return u, nil
}

// roundTrip is one HTTP request.
func (h *host) roundTrip(ctx context.Context, rq *request, method string, u *url.URL, authorization string, left bool) (*http.Response, error) {
	t := h.c.opt.Timing
	w := newWatch(ctx, t.Stall)
	answer := t.Stall
	if rq.body != nil {
		answer = t.answer(rq.busy)
		w.within(answer)
	}
	copied := *u
	req := (&http.Request{
		Method: method, URL: &copied, Header: rq.header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(w.ctx)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("User-Agent", h.c.opt.UserAgent)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	if rq.body != nil && method != http.MethodHead {
		body, err := rq.body()
		if err != nil {
			w.stop()
			return nil, err
		}
		req.Body, req.ContentLength = &watchedUpload{ReadCloser: body, w: w, left: rq.size, answer: answer}, rq.size
		if rq.size == 0 {
			body.Close()
			req.Body = http.NoBody
		}
	}
	var resp *http.Response
	var err error
	if left {
		_, other, terr := h.transports()
		if err = terr; err == nil {
			resp, err = other.RoundTrip(req)
		}
	} else {
		resp, err = h.send(req, rq.ping)
	}
	if err != nil {
		err = w.cause(err)
		w.stop()
		h.c.opt.Log.DebugContext(ctx, "request", "method", method, "url", redact(&copied), "err", err)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &networkError{method: method, url: redact(&copied), err: err}
	}
	h.c.opt.Log.DebugContext(ctx, "request", "method", method, "url", redact(&copied), "status", resp.StatusCode)
	w.answered.Store(true)
	w.pause()
	resp.Request = req
	resp.Body = &watchedBody{rc: resp.Body, w: w}
	return resp, nil
}

// again decides whether err, of the try-th try, is worth another one, and when.
func (h *host) again(err error, try int) (time.Duration, bool) {
	t := h.c.opt.Timing
	if try >= t.Attempts {
		return 0, false
	}
	wait := t.Backoff << min(try-1, 5)
	wait = min(wait, 30*t.Backoff)
	wait = wait/2 + rand.N(wait/2+1)
	var said *Error
	if errors.As(err, &said) {
		if said.Status == http.StatusTooManyRequests || said.Status == http.StatusRequestTimeout ||
			said.Status >= 500 && said.Status != http.StatusNotImplemented && said.Status != http.StatusInsufficientStorage {
			if said.wait > t.MaxWait {
				return 0, false
			}
			return max(wait, said.wait), true
		}
		return 0, false
	}
	if auth.Temporary(err) {
		return wait, true
	}
	var network *networkError
	return wait, errors.As(err, &network) && h.passing(network.err)
}

// passing tells whether a failure of the network may pass: nothing that a
// wrong name, port or certificate causes, since a user waits for the answer.
func (h *host) passing(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &dns):
		return dns.IsTemporary || dns.IsTimeout
	case errors.Is(err, syscall.ECONNREFUSED):
		return h.known() != "" // it was there a moment ago: it restarts
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errStalled),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return true
	}
	return errors.As(err, &op) && op.Op != "remote error" || isClosedIdle(err)
}

// isClosedIdle recognises what net/http gives no name: a kept connection that
// the server closed at the moment we used it, for a request with a body.
func isClosedIdle(err error) bool {
	s := err.Error()
	return s == "http: server closed idle connection" || s == "net/http: HTTP/1.x transport connection broken: http: CloseIdleConnections called"
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retryAfter reads a Retry-After header: seconds or a date. -1 is none.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 {
		return time.Duration(min(n, 1<<20)) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(at.Sub(now), 0)
	}
	return -1
}

// drain reads the rest of a small body, so that its connection is used again.
func drain(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, maxErrorBody)
	body.Close()
}
