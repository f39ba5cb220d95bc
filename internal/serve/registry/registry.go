// Package registry serves a store as an OCI registry: the distribution API
// v1.1 over HTTP, pulls and pushes, with deletion, listing and referrers.
//
// Invariants and choices:
//   - A repository's NAME is an image's familiar name: what a client pushes to
//     HOST/NAME:TAG is the image NAME:TAG of the store, and an image built or
//     pulled there is served under the name that its list shows. target is the
//     one place that maps them.
//   - Content is one for the whole store: whoever knows the digest of a blob or
//     manifest can read it through any repository, and a mount always succeeds
//     for what is there. There are no users whom a wall between repositories
//     could protect; a server open to strangers needs a proxy that knows them.
//   - A delete hides content from one repository and lets go of it; the bytes
//     go when nothing else in the store needs them. So nobody breaks a local
//     image over HTTP.
//   - Every byte is verified by the store before anything refers to it. A
//     manifest is taken when its config and layers are there; an index may
//     lack some of its platforms, and a subject may come later.
//   - What was uploaded and is named by no manifest yet is leased for one to
//     two hours, as is what a client was told exists.
package registry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Store is what is served; *store.Store is one.
type Store interface {
	content.Source
	content.Sink
	content.RangeOpener
	content.TagLister
	content.ReferrerLister
	Untag(ctx context.Context, r ref.Ref) (oci.Descriptor, error)
	Repositories(ctx context.Context) ([]ref.Ref, error)
	Collect(ctx context.Context, from ...oci.Digest) (*store.Freed, error)
	TakeFile(ctx context.Context, d oci.Descriptor, path string) error
	Lease(ctx context.Context) (context.Context, func(), error)
	Scratch(ctx context.Context) (string, error)
	PutRecord(ctx context.Context, r store.Record) error
	GetRecord(ctx context.Context, bucket, key string) (*store.Record, error)
	DeleteRecord(ctx context.Context, bucket, key string) error
}

// Options for New; the zero value works.
type Options struct {
	Log *slog.Logger // requests at debug, faults at error; nil is silent
}

// Registry is an http.Handler. Close it when no request is under way.
type Registry struct {
	store   Store
	log     *slog.Logger
	leases  *leases
	uploads *uploads
}

// New returns the handler. It stores nothing until the first request.
func New(s Store, opt Options) *Registry {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Registry{store: s, log: opt.Log, leases: &leases{store: s}, uploads: &uploads{store: s, open: map[string]*upload{}}}
}

// Close drops unfinished uploads and lets go of what no manifest names.
func (g *Registry) Close() error {
	g.uploads.close()
	g.leases.close()
	return nil
}

// ServeHTTP implements http.Handler.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	h := w.Header()
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("X-Content-Type-Options", "nosniff")
	ctx, err := g.leases.context(r.Context())
	if err == nil {
		r = r.WithContext(ctx)
		r.Body = patient(w, r.Body)
		err = g.serve(w, r)
	}
	if err != nil {
		g.fail(w, r, err)
	}
	g.log.Debug("registry", "method", r.Method, "path", r.URL.Path, "length", h.Get("Content-Length"), "err", err, "took", time.Since(start))
}

func (g *Registry) serve(w http.ResponseWriter, r *http.Request) error {
	at, err := parsePath(r.URL.Path)
	if err != nil {
		return err
	}
	q := query{w: w, r: r, route: at}
	if at.name != "" {
		if q.repo, err = target(at.name); err != nil {
			return err
		}
	}
	var handlers map[string]func(query) error
	switch at.kind {
	case kindBase:
		handlers = map[string]func(query) error{"GET": g.base}
	case kindCatalog:
		handlers = map[string]func(query) error{"GET": g.catalog}
	case kindSearch:
		handlers = map[string]func(query) error{"GET": g.search}
	case kindTags:
		handlers = map[string]func(query) error{"GET": g.tags}
	case kindReferrers:
		handlers = map[string]func(query) error{"GET": g.referrers}
	case kindManifest:
		handlers = map[string]func(query) error{"GET": g.getManifest, "PUT": g.putManifest, "DELETE": g.deleteManifest}
	case kindBlob:
		handlers = map[string]func(query) error{"GET": g.getBlob, "DELETE": g.deleteBlob}
	case kindUploads:
		handlers = map[string]func(query) error{"POST": g.startUpload}
	case kindUpload:
		handlers = map[string]func(query) error{"GET": g.uploadStatus, "PATCH": g.patchUpload, "PUT": g.finishUpload, "DELETE": g.cancelUpload}
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet // net/http leaves out the body
	}
	if handle := handlers[method]; handle != nil {
		return handle(q)
	}
	var allowed []string
	for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		if handlers[m] != nil {
			allowed = append(allowed, m)
		}
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return fault(codeUnsupported, http.StatusMethodNotAllowed, "method %s is not supported here", r.Method)
}

// query is one request.
type query struct {
	w http.ResponseWriter
	r *http.Request
	route
	repo ref.Ref // the repository, as the store names it
}

func (q query) ctx() context.Context { return q.r.Context() }

func (g *Registry) base(q query) error {
	q.w.Header().Set("Content-Type", "application/json")
	_, err := io.WriteString(q.w, "{}")
	return err
}

// target maps a repository's NAME to the image's name in the store.
func target(name string) (ref.Ref, error) {
	if !validName(name) {
		return ref.Ref{}, fault(codeNameInvalid, http.StatusBadRequest, "repository name %q must be lowercase words separated by . _ __ - or /, at most %d bytes", name, maxName)
	}
	r, err := ref.Parse(name)
	if err != nil || r.Tag != "" || r.Digest != "" {
		return ref.Ref{}, fault(codeNameInvalid, http.StatusBadRequest, "repository name %q is no image name", name)
	}
	return r, nil
}

// hidden says that a repository deleted a digest that the store may still have
// for others. Its record is removed when somebody puts the content again.
const hiddenBucket = "registry.deleted"

func hiddenKey(repo ref.Ref, d oci.Digest) string { return repo.Repository() + "@" + string(d) }

func (g *Registry) hide(ctx context.Context, repo ref.Ref, d oci.Digest) error {
	return g.store.PutRecord(ctx, store.Record{Bucket: hiddenBucket, Key: hiddenKey(repo, d)})
}

func (g *Registry) show(ctx context.Context, repo ref.Ref, d oci.Digest) error {
	if hidden, err := g.hidden(ctx, repo, d); err != nil || !hidden {
		return err
	}
	return g.store.DeleteRecord(ctx, hiddenBucket, hiddenKey(repo, d))
}

func (g *Registry) hidden(ctx context.Context, repo ref.Ref, d oci.Digest) (bool, error) {
	_, err := g.store.GetRecord(ctx, hiddenBucket, hiddenKey(repo, d))
	if errors.Is(err, oci.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// find looks up a digest in a repository. It fails with oci.ErrNotFound.
func (g *Registry) find(ctx context.Context, repo ref.Ref, d oci.Digest) (oci.Descriptor, error) {
	if hidden, err := g.hidden(ctx, repo, d); err != nil {
		return oci.Descriptor{}, err
	} else if hidden {
		return oci.Descriptor{}, oci.ErrNotFound
	}
	return g.store.Resolve(ctx, repo.WithDigest(d))
}
