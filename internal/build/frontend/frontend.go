// Package frontend stands between BuildKit's Dockerfile frontend and our
// engine: it gives the frontend the gateway client it asks everything of, runs
// it, and turns what comes back into images to export. What a Dockerfile means
// is therefore what docker says it means.
package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	commonexptypes "github.com/moby/buildkit/exporter/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/dockerfile/version"
	"github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	caps "github.com/moby/buildkit/util/apicaps/pb"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Result is what a Dockerfile came to.
type Result struct {
	Images []build.Image
	// Index tells that several platforms were asked for, or an index was.
	Index bool
	// Metadata is what a sub-request (lint, outline, targets) answered.
	Metadata map[string][]byte
}

// Version is that of the Dockerfile frontend.
func Version() string { return version.Version() }

// Build runs the Dockerfile frontend with BuildKit's frontend options
// ("filename", "target", "build-arg:NAME", "platform", …) over engine, and
// solves its results.
func Build(ctx context.Context, engine *build.Engine, opts map[string]string) (*Result, error) {
	release, err := engine.Foresee(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	c := newGateway(engine, maps.Clone(opts))
	res, err := builder.Build(ctx, c)
	if err != nil {
		return nil, err
	}
	out := &Result{Metadata: res.Metadata}
	if res.Ref == nil && len(res.Refs) == 0 && len(res.Metadata[exptypes.ExporterPlatformsKey]) == 0 {
		return out, nil // a sub-request
	}
	var ps exptypes.Platforms
	if err := json.Unmarshal(res.Metadata[exptypes.ExporterPlatformsKey], &ps); err != nil {
		return nil, fmt.Errorf("frontend answered without platforms: %v: %w", err, oci.ErrInvalid)
	}
	out.Index = len(res.Refs) > 0
	out.Images = make([]build.Image, len(ps.Platforms))
	for i, p := range ps.Platforms {
		suffix := ""
		r := res.Ref
		if out.Index {
			suffix = "/" + p.ID
			r = res.Refs[p.ID]
		}
		img := build.Image{
			Config:     res.Metadata[exptypes.ExporterImageConfigKey+suffix],
			BaseConfig: res.Metadata[exptypes.ExporterImageBaseConfigKey+suffix],
			Platform:   p.Platform,
		}
		if s := res.Metadata[commonexptypes.ExporterEpochKey+suffix]; len(s) > 0 {
			sec, err := strconv.ParseInt(string(s), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("SOURCE_DATE_EPOCH %q: %w", s, oci.ErrInvalid)
			}
			t := time.Unix(sec, 0).UTC()
			img.Epoch = &t
		}
		out.Images[i] = img
		ours, ok := r.(*reference)
		if !ok && r != nil {
			return nil, fmt.Errorf("frontend answered with a foreign reference %T: %w", r, oci.ErrInvalid)
		}
		if ours != nil {
			out.Images[i].Edge = ours.edge
		}
		if out.Images[i].Snapshot, err = ours.solve(ctx); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// gateway implements BuildKit's gateway client, all that a frontend may ask.
type gateway struct {
	engine *build.Engine
	opts   client.BuildOpts
}

func newGateway(engine *build.Engine, opts map[string]string) *gateway {
	return &gateway{engine: engine, opts: client.BuildOpts{
		Opts:      opts,
		SessionID: "strake",
		Product:   "strake",
		Workers:   []client.WorkerInfo{{ID: "strake", Platforms: []oci.Platform{engine.DefaultPlatform()}}},
		LLBCaps:   capSet(pb.Caps.All(), pb.Caps),
		Caps:      capSet(gwpb.Caps.All(), gwpb.Caps),
	}}
}

func capSet(all []*caps.APICap, list apicaps.CapList) apicaps.CapSet { return list.CapSet(all) }

// BuildOpts implements client.Client. Each caller gets options of its own: the
// frontend writes to them.
func (g *gateway) BuildOpts() client.BuildOpts { return g.opts }

// Inputs implements client.Client: our builds start from named directories.
func (g *gateway) Inputs(context.Context) (map[string]llb.State, error) {
	return map[string]llb.State{}, nil
}

// NewContainer implements client.Client.
func (g *gateway) NewContainer(context.Context, client.NewContainerRequest) (client.Container, error) {
	return nil, fmt.Errorf("containers for frontends are %w", oci.ErrUnsupported)
}

// Solve implements client.Client. It is lazy: nothing runs before somebody
// reads from the result, or the build exports it.
func (g *gateway) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	if req.Frontend != "" {
		return g.forward(ctx, req)
	}
	edge, err := build.Load(req.Definition)
	if err != nil {
		return nil, err
	}
	if err := g.engine.Check(edge); err != nil {
		return nil, err
	}
	r := &reference{engine: g.engine, edge: edge, def: req.Definition}
	if req.Evaluate {
		if err := r.Evaluate(ctx); err != nil {
			return nil, err
		}
	}
	res := client.NewResult()
	res.SetRef(r)
	return res, nil
}

// forward runs the frontend that a Dockerfile's syntax line names. Docker's own
// is the one that is linked in, whatever its version; others would have to run
// as images.
func (g *gateway) forward(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	source := req.FrontendOpt["source"]
	r, err := ref.Parse(source)
	if err == nil && (r.Repository() == "docker.io/docker/dockerfile" || r.Repository() == "docker.io/docker/dockerfile-upstream") {
		inner := newGateway(g.engine, maps.Clone(req.FrontendOpt))
		return builder.Build(ctx, inner)
	}
	return nil, fmt.Errorf("syntax %q: frontends other than docker/dockerfile are %w", source, oci.ErrUnsupported)
}

// Warn implements client.Client.
func (g *gateway) Warn(_ context.Context, vertex oci.Digest, msg string, opts client.WarnOpts) error {
	w := &build.Warning{Vertex: vertex, Short: msg, URL: opts.URL, Level: opts.Level, Source: opts.SourceInfo, Range: opts.Range}
	for _, d := range opts.Detail {
		w.Detail = append(w.Detail, string(d))
	}
	if opts.SourceInfo != nil {
		w.File = opts.SourceInfo.Filename
	}
	if len(opts.Range) > 0 && opts.Range[0].Start != nil {
		w.Line = int(opts.Range[0].Start.Line)
	}
	g.engine.Emit(build.Event{Warning: w})
	return nil
}

// ResolveSourceMetadata implements client.Client.
func (g *gateway) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	scheme, name, _ := strings.Cut(op.Identifier, "://")
	switch scheme {
	case "docker-image":
	case "http", "https":
		return g.resolveHTTP(ctx, op, opt)
	case "git":
		return g.resolveGit(ctx, op, opt)
	case "oci-layout":
		return g.resolveLayout(ctx, op, opt)
	default:
		return &sourceresolver.MetaResponse{Op: op}, nil
	}
	r, err := ref.ParseImage(name)
	if err != nil {
		return nil, err
	}
	p := g.engine.DefaultPlatform()
	always := false
	if io := opt.ImageOpt; io != nil {
		if io.Platform != nil {
			p = platforms.Normalize(*io.Platform)
		}
		always = io.ResolveMode == pb.AttrImageResolveModeForcePull
	}
	log := opt.LogName
	if log == "" {
		log = "[internal] load metadata for " + r.String()
	}
	d, config, err := g.engine.ResolveImage(ctx, r, p, always, log)
	if err != nil {
		return nil, err
	}
	return &sourceresolver.MetaResponse{Op: op, Image: &sourceresolver.ResolveImageResponse{Digest: d, Config: config}}, nil
}

func (g *gateway) resolveGit(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	c, err := g.engine.ResolveGit(ctx, op, opt.GitOpt != nil && opt.GitOpt.ReturnObject)
	if err != nil {
		return nil, err
	}
	return &sourceresolver.MetaResponse{Op: op, Git: &sourceresolver.ResolveGitResponse{
		Checksum: c.ID, Ref: c.Ref, CommitChecksum: c.Peeled, CommitObject: c.Object, TagObject: c.Tag,
	}}, nil
}

func (g *gateway) resolveLayout(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	p := g.engine.DefaultPlatform()
	if o := opt.OCILayoutOpt; o != nil && o.Platform != nil {
		p = platforms.Normalize(*o.Platform)
	}
	log := opt.LogName
	if log == "" {
		log = "[internal] load metadata for " + op.Identifier
	}
	d, config, err := g.engine.ResolveLayout(ctx, op, p, log)
	if err != nil {
		return nil, err
	}
	return &sourceresolver.MetaResponse{Op: op, Image: &sourceresolver.ResolveImageResponse{Digest: d, Config: config}}, nil
}

func (g *gateway) resolveHTTP(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	if opt.HTTPOpt != nil && opt.HTTPOpt.ChecksumReq != nil {
		return nil, fmt.Errorf("checksums of a download with a suffix are %w", oci.ErrUnsupported)
	}
	f, err := g.engine.ResolveHTTP(ctx, op)
	if err != nil {
		return nil, err
	}
	return &sourceresolver.MetaResponse{Op: op, HTTP: &sourceresolver.ResolveHTTPResponse{
		Digest: f.Digest, Filename: f.Name, LastModified: f.LastModified,
	}}, nil
}

// ResolveImageConfig implements client.Client.
func (g *gateway) ResolveImageConfig(ctx context.Context, name string, opt sourceresolver.Opt) (string, oci.Digest, []byte, error) {
	return sourceresolver.NewImageMetaResolver(g).ResolveImageConfig(ctx, name, opt)
}
