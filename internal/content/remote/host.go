package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/oci"
)

// host is one registry: how it is reached, and what it was told about us.
type host struct {
	c      *Client
	domain string // as in references: "docker.io"
	addr   string // where that is: "registry-1.docker.io"
	plain  bool   // may have a bad certificate or speak plain http
	auth   *auth.Authorizer

	probe sync.Mutex // held while the first request finds out the scheme

	mu     sync.Mutex
	scheme string // "https" or "http" once it answered, "" before
	own    http.RoundTripper
	other  http.RoundTripper // for other hosts: without its client certificates
}

func newHost(c *Client, domain string) *host {
	h := &host{c: c, domain: domain, addr: domain}
	if domain == "docker.io" {
		h.addr = "registry-1.docker.io"
	}
	h.plain = c.insecure(h.addr)
	h.auth = &auth.Authorizer{
		Host: domain, Lookup: c.opt.Credentials,
		Send:      h.sendToken,
		PlainHTTP: h.mayBePlain,
	}
	return h
}

// insecure tells whether hostport may be spoken to without a good certificate.
func (c *Client) insecure(hostport string) bool {
	name := (&url.URL{Host: hostport}).Hostname()
	addr, _ := netip.ParseAddr(name)
	if name == "localhost" || addr.Unmap().IsLoopback() {
		return true
	}
	for _, in := range c.opt.Insecure {
		if in == hostport || in == name {
			return true
		}
		if p, err := netip.ParsePrefix(in); err == nil && addr.IsValid() && p.Contains(addr.Unmap()) {
			return true
		}
	}
	return false
}

// mayBePlain tells whether u, another place that the registry names, may be on
// plain http: if it is such a host itself, or the registry is on plain http.
func (h *host) mayBePlain(u *url.URL) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.scheme == "http" || h.c.insecure(u.Host) && h.plain
}

// isOwn tells whether u is the registry itself: the same scheme, host and port.
func (h *host) isOwn(u *url.URL) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return u.Scheme == h.scheme && hostPort(u.Scheme, u.Host) == hostPort(h.scheme, h.addr)
}

func hostPort(scheme, host string) string {
	u := url.URL{Host: strings.ToLower(host)}
	if u.Port() != "" {
		return u.Host
	}
	if scheme == "http" {
		return u.Host + ":80"
	}
	return u.Host + ":443"
}

// transports makes the connection pools at the first request: reading
// certificates is not needed to construct a client.
func (h *host) transports() (own, other http.RoundTripper, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.own != nil {
		return h.own, h.other, nil
	}
	if rt := h.c.opt.Transport; rt != nil {
		h.own, h.other = rt, rt
		return rt, rt, nil
	}
	conf, err := h.c.tlsConfig(h.addr, h.plain)
	if err != nil {
		return nil, nil, err
	}
	h.own, h.other = newTransport(conf), newTransport(nil)
	return h.own, h.other, nil
}

func newTransport(conf *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		// http2 puts all layers on one connection, with one flow control window
		// and, in Go, one reader; docker.io's CDN does offer it. HTTP/1.1 gives
		// each layer its own connection.
		TLSClientConfig:     conf,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		// Blobs are bytes: nothing may be unpacked on the way.
		DisableCompression: true,
		ReadBufferSize:     64 << 10,
		WriteBufferSize:    64 << 10,
		// A header of megabytes is an attack.
		MaxResponseHeaderBytes: 256 << 10,
	}
}

func defaultCertDirs() []string {
	dirs := []string{"/etc/docker/certs.d"}
	if conf, err := os.UserConfigDir(); err == nil {
		dirs = append(dirs, filepath.Join(conf, "docker", "certs.d"))
	}
	return dirs
}

// tlsConfig reads the host's own roots and client certificates.
func (c *Client) tlsConfig(addr string, plain bool) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	var roots *x509.CertPool
	for _, dir := range c.opt.CertDirs {
		dir = filepath.Join(dir, addr)
		files, err := os.ReadDir(dir)
		if err != nil {
			continue // none for this host
		}
		for _, f := range files {
			name := filepath.Join(dir, f.Name())
			switch filepath.Ext(name) {
			case ".crt":
				pem, err := os.ReadFile(name)
				if err != nil {
					return nil, err
				}
				if roots == nil {
					if roots, err = x509.SystemCertPool(); err != nil {
						roots = x509.NewCertPool()
					}
				}
				if !roots.AppendCertsFromPEM(pem) {
					return nil, fmt.Errorf("%s holds no certificate: %w", name, oci.ErrInvalid)
				}
			case ".cert":
				cert, err := tls.LoadX509KeyPair(name, strings.TrimSuffix(name, ".cert")+".key")
				if err != nil {
					return nil, fmt.Errorf("client certificate %s: %v: %w", name, err, oci.ErrInvalid)
				}
				conf.Certificates = append(conf.Certificates, cert)
			}
		}
	}
	conf.RootCAs = roots
	// A user who gave roots for a loopback registry wants them used.
	conf.InsecureSkipVerify = plain && roots == nil
	return conf, nil
}

// send sends one request to the registry, without redirects, and finds out at
// the first one whether the registry speaks https. req's URL has no scheme and
// host yet if it is the registry's own.
func (h *host) send(req *http.Request, anyFailure bool) (*http.Response, error) {
	own, _, err := h.transports()
	if err != nil {
		return nil, err
	}
	scheme := h.known()
	if scheme == "" {
		h.probe.Lock()
		defer h.probe.Unlock()
		scheme = h.known()
	}
	try := func(scheme string) (*http.Response, error) {
		req.URL.Scheme, req.URL.Host = scheme, h.addr
		return own.RoundTrip(req)
	}
	if scheme != "" {
		return try(scheme)
	}
	resp, err := try("https")
	if err == nil {
		h.settle("https")
		return resp, nil
	}
	if !h.plain || req.Body != nil || req.Context().Err() != nil || !anyFailure && !notTLS(err, h.addr) {
		return nil, err
	}
	resp, plainErr := try("http")
	if plainErr != nil {
		if !anyFailure {
			req.URL.Scheme, plainErr = "https", err
		}
		return nil, plainErr
	}
	h.settle("http")
	return resp, nil
}

func (h *host) known() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.scheme
}

func (h *host) settle(scheme string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.scheme = scheme
}

// notTLS tells whether a failure of https means that plain http is worth a
// try: the other side answered something else, or hung up, or nothing listens
// on 443 and the reference names no port.
func notTLS(err error, addr string) bool {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return (&url.URL{Host: addr}).Port() == ""
	}
	var dial *net.OpError
	return !errors.As(err, &dial) || dial.Op != "dial"
}

// sendToken sends a request to a token server. It follows no redirect: a token
// server that moves is named anew by the registry's challenge.
func (h *host) sendToken(req *http.Request) (*http.Response, error) {
	own, other, err := h.transports()
	if err != nil {
		return nil, err
	}
	rt := other
	if h.isOwn(req.URL) {
		rt = own
	}
	req.Header.Set("User-Agent", h.c.opt.UserAgent)
	ctx, cancel := context.WithTimeoutCause(req.Context(), h.c.opt.Timing.Stall, errStalled)
	resp, err := rt.RoundTrip(req.WithContext(ctx))
	if err != nil {
		if context.Cause(ctx) == errStalled {
			err = errStalled
		}
		cancel()
		return nil, &networkError{method: req.Method, url: redact(req.URL), err: err}
	}
	h.c.opt.Log.DebugContext(req.Context(), "token request", "method", req.Method, "url", redact(req.URL), "status", resp.StatusCode)
	resp.Body = &cancelBody{resp.Body, ctx, cancel}
	return resp, nil
}

type cancelBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelFunc
}

func (b *cancelBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

func (b *cancelBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && context.Cause(b.ctx) == errStalled {
		err = errStalled
	}
	return n, err
}
