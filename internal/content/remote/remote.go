// Package remote is a client of registries: the OCI distribution API v1.1 and
// docker's registry v2 before it. A Repository is a content.Source and Sink,
// RangeOpener, Mounter, TagLister and ReferrerLister for one repository.
//
// Its invariants:
//   - Credentials and tokens go to the host that they are for. A redirect, an
//     upload's Location or a token server elsewhere gets none, nor does the
//     registry itself any more once a chain of redirects has left it.
//   - Nothing goes over plain http but to loopback addresses and to hosts that
//     Options.Insecure lists, https first.
//   - What a registry sends is bounded: manifests by oci.MaxManifestSize, blobs
//     by their descriptor, errors, lists and redirects by constants. A
//     manifest is verified here, because tags are resolved here; blobs are
//     verified by whoever stores them.
//   - A transfer that breaks goes on where it stopped, a bounded number of
//     times without progress.
//   - No error or log line holds a secret: credentials are never printed, and
//     of URLs only the parts that can't be a signature (see redact).
package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Options for New; the zero value is docker's behaviour.
type Options struct {
	// Credentials are asked for when a registry challenges; nil is docker's
	// config.json (auth.Docker).
	Credentials auth.Lookup
	// Insecure lists the registries, as HOST, HOST:PORT or CIDR, that may have
	// an unverifiable certificate or speak plain http, as docker's
	// insecure-registries does. Loopback addresses always may.
	Insecure []string
	// CertDirs are searched for HOST/*.crt (roots) and HOST/*.cert with *.key
	// (client certificates); nil is docker's /etc/docker/certs.d and
	// $XDG_CONFIG_HOME/docker/certs.d.
	CertDirs []string
	// UserAgent; "" is "strake".
	UserAgent string
	// Log gets a line for each request at debug level; nil is silent.
	Log *slog.Logger
	// Transport replaces the network, in tests.
	Transport http.RoundTripper
	// Timing of repetitions; zero values are the defaults.
	Timing Timing
}

// Timing says how patient the client is.
type Timing struct {
	// Attempts bounds the tries of one request, and the continuations of a
	// transfer without progress between them; 0 is 5.
	Attempts int
	// Backoff is the pause before the second try; it doubles, with jitter, up
	// to 30 times that. 0 is 200 ms.
	Backoff time.Duration
	// MaxWait bounds what a Retry-After is obeyed for; a longer one fails the
	// request at once. 0 is one minute.
	MaxWait time.Duration
	// Stall is how long a server may send nothing, and take nothing of what it
	// is sent, before the connection is given up for broken; 0 is one minute.
	Stall time.Duration
}

func (t Timing) withDefaults() Timing {
	if t.Attempts <= 0 {
		t.Attempts = 5
	}
	if t.Backoff <= 0 {
		t.Backoff = 200 * time.Millisecond
	}
	if t.MaxWait <= 0 {
		t.MaxWait = time.Minute
	}
	if t.Stall <= 0 {
		t.Stall = time.Minute
	}
	return t
}

// answer is how long a registry may be silent that was sent the last byte of a
// blob of that size: some of it may still be on the way, and it may hash all of
// it again, or move it to a storage service.
func (t Timing) answer(size int64) time.Duration {
	return 2*t.Stall + t.Stall*time.Duration(size/(64<<20))
}

// Client speaks to any number of registries; it keeps their connections and
// tokens. Its methods may be called from many goroutines.
type Client struct {
	opt Options

	mu    sync.Mutex
	hosts map[string]*host // by ref.Ref.Domain
}

// New returns a client. Nothing is read or dialled before it is needed.
func New(opt Options) *Client {
	if opt.Credentials == nil {
		opt.Credentials = auth.Docker("")
	}
	if opt.CertDirs == nil {
		opt.CertDirs = defaultCertDirs()
	}
	if opt.UserAgent == "" {
		opt.UserAgent = "strake"
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	opt.Timing = opt.Timing.withDefaults()
	return &Client{opt: opt, hosts: map[string]*host{}}
}

// host returns the one host for a registry.
func (c *Client) host(domain string) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hosts[domain]
	if h == nil {
		h = newHost(c, domain)
		c.hosts[domain] = h
	}
	return h
}

// Ping asks whether domain is a registry that lets the user in ("GET /v2/"). It
// fails with a *Error or *auth.Error where it does not.
func (c *Client) Ping(ctx context.Context, domain string) error {
	resp, err := c.host(domain).do(ctx, &request{method: http.MethodGet, path: "/v2/", ping: true}, http.StatusOK)
	var network *networkError
	if errors.As(err, &network) {
		return worded{strings.TrimPrefix(err.Error(), "failed to do request: "), err} // docker's login says it without
	}
	var refused *auth.Error
	if errors.As(err, &refused) && refused.Status != 0 {
		h := c.host(domain)
		words := cmp.Or(refused.Said, refused.Text)
		if refused.Said == "" && refused.Status != http.StatusOK {
			words = fmt.Sprintf("received unexpected HTTP status: %d %s", refused.Status, http.StatusText(refused.Status))
		}
		return worded{fmt.Sprintf("Get \"%s://%s/v2/\": %s", h.known(), h.addr, words), err}
	}
	if err != nil {
		return err
	}
	drain(resp.Body)
	return nil
}

// Repository is one repository of a registry. Its methods may be called from
// many goroutines.
type Repository struct {
	h    *host
	name ref.Ref // without tag and digest

	reading atomic.Bool // it was resolved: this is a pull, which needs no scope to push

	mu       sync.Mutex
	recent   []held                  // manifests read or put, the newest last
	sessions map[oci.Digest]*url.URL // uploads that a declined mount began
	missing  map[oci.Digest]bool     // what Has did not find
}

// Repository returns r's repository; r's tag and digest don't matter.
func (c *Client) Repository(r ref.Ref) *Repository {
	return &Repository{
		h:        c.host(r.Domain),
		name:     ref.Ref{Domain: r.Domain, Path: r.Path},
		sessions: map[oci.Digest]*url.URL{},
		missing:  map[oci.Digest]bool{},
	}
}

func (r *Repository) path(parts ...string) string {
	return "/v2/" + r.name.Path + "/" + strings.Join(parts, "/")
}

func (r *Repository) pullScope() []string {
	return []string{"repository:" + r.name.Path + ":pull"}
}

func (r *Repository) pushScope() []string {
	return []string{"repository:" + r.name.Path + ":pull,push"}
}

// check refuses a reference to another repository: it would be read from, or
// written to, the wrong place.
func (r *Repository) check(other ref.Ref) error {
	if other.Domain != r.name.Domain || other.Path != r.name.Path {
		return fmt.Errorf("%s is not in the repository %s: %w", other.Familiar(), r.name.Familiar(), oci.ErrInvalid)
	}
	return nil
}

// checkDigest keeps what is no digest out of URLs.
func checkDigest(d oci.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, oci.ErrInvalid)
	}
	return nil
}
