package build

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/build/local"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
)

// source solves a source operation: an image, a directory of the client, or
// what lies elsewhere.
func (s *step) source(ctx context.Context, op *pb.SourceOp) ([]*Snapshot, error) {
	scheme, rest, ok := strings.Cut(op.Identifier, "://")
	if !ok {
		return nil, fmt.Errorf("source %q: %w", op.Identifier, oci.ErrInvalid)
	}
	var (
		snap   *Snapshot
		cached bool
		err    error
	)
	s.begin()
	switch scheme {
	case "docker-image":
		snap, cached, err = s.image(ctx, rest, op.Attrs[pb.AttrImageResolveMode] == pb.AttrImageResolveModeForcePull)
	case "local":
		snap, err = s.local(ctx, rest, op.Attrs)
	case "http", "https":
		snap, cached, err = s.http(ctx, op)
	case "git":
		snap, cached, err = s.gitTree(ctx, op)
	case "oci-layout":
		snap, err = s.ociLayout(ctx, op)
	default:
		err = fmt.Errorf("source %s: %w", op.Identifier, oci.ErrUnsupported)
	}
	s.end(cached, err)
	return []*Snapshot{snap}, err
}

func (s *step) platform() oci.Platform {
	p := s.v.Op.Platform
	if p == nil {
		return content.Host()
	}
	return platforms.Normalize(oci.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion})
}

// imageLayers pairs a manifest's layers with their diffIDs and history.
func imageLayers(m *oci.Manifest, config *oci.Image) ([]Layer, error) {
	if len(m.Layers) != len(config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("manifest has %d layers and config %d: %w", len(m.Layers), len(config.RootFS.DiffIDs), oci.ErrInvalid)
	}
	layers := make([]Layer, len(m.Layers))
	for i, d := range m.Layers {
		if !oci.IsLayer(d.MediaType) {
			return nil, fmt.Errorf("layer with media type %q: %w", d.MediaType, oci.ErrUnsupported)
		}
		layers[i] = Layer{DiffID: config.RootFS.DiffIDs[i], Descriptor: d}
	}
	i := 0
	for _, h := range config.History {
		if h.EmptyLayer || i >= len(layers) {
			continue
		}
		layers[i].CreatedBy = h.CreatedBy
		if h.Created != nil {
			layers[i].Created = *h.Created
		}
		i++
	}
	return layers, nil
}

// local opens a directory of the client.
func (s *step) local(ctx context.Context, name string, attrs map[string]string) (*Snapshot, error) {
	dir, ok := s.opt.Locals[name]
	if !ok {
		return nil, fmt.Errorf("no local directory named %q: %w", name, oci.ErrNotFound)
	}
	opt := local.Options{CacheDir: filepath.Join(s.opt.Store.Root(), "contexts")}
	for attr, list := range map[string]*[]string{
		pb.AttrIncludePatterns: &opt.Include,
		pb.AttrExcludePatterns: &opt.Exclude,
		pb.AttrFollowPaths:     &opt.Follow,
	} {
		if v := attrs[attr]; v != "" {
			if err := json.Unmarshal([]byte(v), list); err != nil {
				return nil, fmt.Errorf("%s: %v: %w", attr, err, oci.ErrInvalid)
			}
		}
	}
	opt.Exclude = append(opt.Exclude, s.storeIn(dir)...)
	d, err := local.Open(ctx, dir, opt)
	if err != nil {
		return nil, err
	}
	s.opened(d)
	if err := s.loadLocal(ctx, name, d); err != nil {
		return nil, err
	}
	return &Snapshot{store: s.opt.Store, view: d}, nil
}
