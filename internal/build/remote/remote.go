// Package remote sends a build to a BuildKit daemon, by BuildKit's own client
// library, and takes the image into the store. The daemon compiles and runs the
// Dockerfile; through the session it asks this side for the context, secrets,
// credentials and layouts, and gives it the image's content, of which only
// what the store does not have yet travels.
package remote

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Options are one build. Store and Frontend are needed.
type Options struct {
	Store *store.Store
	// Frontend are the Dockerfile frontend's options, as for package frontend.
	Frontend map[string]string
	// Locals, Layouts, Uploads, Secret, GitAgent and Events are what they are
	// to build.Options.
	Locals   map[string]string
	Layouts  map[string]content.Source
	Uploads  map[string]io.Reader
	Secret   func(ctx context.Context, id string) ([]byte, error)
	GitAgent string
	Events   func(build.Event)
	// Agents are the ssh agents and keys that RUN --mount=type=ssh may use.
	Agents []sshprovider.AgentConfig
	// Credentials are those of registries. The daemon is given tokens where a
	// registry has them, and passwords only where it has not.
	Credentials auth.Lookup

	// Names are the image's names.
	Names []ref.Ref
	// Load takes the image into the store, as Attrs of BuildKit's exporter say.
	Load  bool
	Attrs map[string]string
	// Exports are further outputs, which the daemon pushes or sends.
	Exports []client.ExportEntry
	// CacheFrom and CacheTo are where the daemon imports and exports cache.
	CacheFrom, CacheTo []client.CacheOptionsEntry
	// Entitlements are what the build is allowed beyond the ordinary.
	Entitlements []string
}

// Result is what the daemon made.
type Result struct {
	build.Exported
	// Metadata is what a sub-request (lint, outline, targets) answered; then
	// there is no image.
	Metadata map[string][]byte
	// Response is what the exporters said: "containerimage.digest" and others.
	Response map[string]string
}

// Build runs one build. Called under the build's lease. An error of the
// Dockerfile carries its source, as package frontend's do.
func (c *Conn) Build(ctx context.Context, o Options) (*Result, error) {
	solve, sink, err := o.solve(ctx)
	if err != nil {
		return nil, err
	}
	defer sink.close()
	_, sub := solve.FrontendAttrs["requestid"]
	if sub {
		solve.Exports = nil
	}
	progress := make(chan *client.SolveStatus)
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&relay{emit: o.emit}).run(progress)
	}()
	out := &Result{}
	resp, err := c.client.Build(ctx, *solve, "strake", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		res, err := g.Solve(ctx, gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: g.BuildOpts().Opts})
		if err == nil && sub {
			out.Metadata = res.Metadata
		}
		return res, err
	}, progress)
	<-done
	if err != nil {
		return nil, o.failed(ctx, err)
	}
	out.Response = resp.ExporterResponse
	if sub {
		return out, nil
	}
	return out, o.finish(ctx, sink, out)
}

// failed is err without what every error of a solve begins with, which the
// caller says; a build that was ended from here says so.
func (o *Options) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for strings.HasPrefix(err.Error(), "failed to solve: ") {
		inner := errors.Unwrap(err)
		if inner == nil {
			break
		}
		err = inner
	}
	return err
}

// solve is the request, and where the image's content arrives.
func (o *Options) solve(ctx context.Context) (*client.SolveOpt, *sink, error) {
	s := &client.SolveOpt{
		FrontendAttrs:       maps.Clone(o.Frontend),
		LocalMounts:         map[string]fsutil.FS{},
		OCIStores:           layouts(ctx, o.Layouts),
		CacheImports:        o.CacheFrom,
		CacheExports:        o.CacheTo,
		AllowedEntitlements: o.Entitlements,
		Exports:             o.Exports,
	}
	for name, dir := range o.Locals {
		fs, err := fsutil.NewFS(dir)
		if err != nil {
			return nil, nil, fmt.Errorf("context %s: %w", name, err)
		}
		s.LocalMounts[name] = fs
	}
	s.Session = []session.Attachable{newCredentials(o.Credentials)}
	if o.Secret != nil {
		s.Session = append(s.Session, secretsprovider.NewSecretProvider(secretStore(o.Secret)))
	}
	agents := o.Agents
	if o.GitAgent != "" && len(agents) == 0 {
		agents = []sshprovider.AgentConfig{{Paths: []string{o.GitAgent}}}
	}
	if len(agents) > 0 {
		a, err := sshprovider.NewSSHAgentProvider(agents)
		if err != nil {
			return nil, nil, err
		}
		s.Session = append(s.Session, a)
	}
	if len(o.Uploads) > 0 {
		up := uploadprovider.New()
		for id, r := range o.Uploads {
			url := up.Add(io.NopCloser(r))
			for k, v := range s.FrontendAttrs {
				if v == build.UploadURL(id) {
					s.FrontendAttrs[k] = url
				}
			}
		}
		s.Session = append(s.Session, up)
	}
	sink, err := newSink(ctx, o.Store)
	if err != nil {
		return nil, nil, err
	}
	if o.Load {
		attrs := map[string]string{}
		maps.Copy(attrs, o.Attrs)
		attrs["tar"] = "false"
		s.Exports = append(s.Exports, client.ExportEntry{Type: client.ExporterOCI, Attrs: attrs, OutputStore: sink})
	}
	return s, sink, nil
}

// finish makes what arrived an image of the store.
func (o *Options) finish(ctx context.Context, sink *sink, out *Result) error {
	out.ID = oci.Digest(out.Response["containerimage.config.digest"])
	if d := out.Response["containerimage.descriptor"]; d != "" {
		b, err := base64.StdEncoding.DecodeString(d)
		if err == nil {
			err = json.Unmarshal(b, &out.Target)
		}
		if err != nil {
			return fmt.Errorf("the builder answered with a bad descriptor: %v: %w", err, oci.ErrInvalid)
		}
		out.Target.Annotations = nil
	}
	if !o.Load {
		return nil
	}
	name := "importing to the store"
	v := build.Vertex{Digest: digest.FromString(name), Name: name}
	now := time.Now()
	v.Started = &now
	o.emit(build.Event{Vertex: &v})
	err := o.take(ctx, sink, out)
	end := time.Now()
	done := v
	done.Completed = &end
	if err != nil {
		done.Error = err.Error()
	}
	o.emit(build.Event{Vertex: &done})
	return err
}

// take puts the image into the store and names it.
func (o *Options) take(ctx context.Context, sink *sink, out *Result) error {
	if err := sink.keep(ctx, out.Target); err != nil {
		return err
	}
	if out.ID == "" {
		d, body, err := content.Manifest(ctx, o.Store, out.Target, content.Host())
		if err != nil {
			return err
		}
		m, err := oci.ParseManifest(d, body)
		if err != nil {
			return err
		}
		out.ID = m.Config.Digest
	}
	for _, n := range o.Names {
		if err := o.Store.Tag(ctx, n, out.Target); err != nil {
			return err
		}
	}
	return nil
}

func (o *Options) emit(e build.Event) {
	if o.Events != nil {
		o.Events(e)
	}
}
