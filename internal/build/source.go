package build

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/build/local"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
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

// image makes an image's layers a snapshot. They stay packed.
func (s *step) image(ctx context.Context, name string, always bool) (*Snapshot, bool, error) {
	r, err := ref.ParseImage(name)
	if err != nil {
		return nil, false, err
	}
	img, err := s.pull(ctx, r, s.platform(), always && r.Digest == "")
	if err != nil {
		return nil, false, err
	}
	s.journal.bases(img.layers)
	return imageSnapshot(s.opt.Store, img), true, nil
}

// imageSnapshot is an image's layers, wherever the image came from.
func imageSnapshot(st *store.Store, img *pulled) *Snapshot {
	keys := []string{"image"}
	for _, l := range img.layers {
		keys = append(keys, string(l.DiffID))
	}
	return newSnapshot(st, img.layers, digestOf(keys...))
}

func (s *step) platform() oci.Platform {
	p := s.v.Op.Platform
	if p == nil {
		return content.Host()
	}
	return platforms.Normalize(oci.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion})
}

// pulled is an image that the build uses.
type pulled struct {
	ref      ref.Ref
	platform oci.Platform
	once     sync.Once
	top      oci.Descriptor // what the name points at
	manifest oci.Descriptor
	config   []byte
	layers   []Layer
	err      error
}

// pull makes an image local, once for each name and platform.
func (e *Engine) pull(ctx context.Context, r ref.Ref, p oci.Platform, always bool) (*pulled, error) {
	id := func(r ref.Ref, always bool) string { return fmt.Sprint(r, " ", platforms.Format(p), " ", always) }
	e.mu.Lock()
	img := e.pulled[id(r, always)]
	if img == nil {
		img = &pulled{ref: r, platform: p}
		e.pulled[id(r, always)] = img
	}
	e.mu.Unlock()
	img.once.Do(func() {
		img.err = e.fetch(ctx, img, r, p, always)
		if img.err == nil && r.Digest == "" { // the frontend pins what it resolved
			e.mu.Lock()
			defer e.mu.Unlock()
			pinned := r
			pinned.Digest = img.top.Digest
			e.pulled[id(pinned, false)] = img
		}
	})
	return img, img.err
}

func (e *Engine) fetch(ctx context.Context, img *pulled, r ref.Ref, p oci.Platform, always bool) error {
	var err error
	if img.top, err = e.opt.Pull(ctx, r, p, always); err != nil {
		return err
	}
	return e.load(ctx, img, r, p)
}

// load reads what img.top, which is in the store, holds for p.
func (e *Engine) load(ctx context.Context, img *pulled, r ref.Ref, p oci.Platform) error {
	var err error
	var body []byte
	if img.manifest, body, err = content.Manifest(ctx, e.opt.Store, img.top, p); err != nil {
		return err
	}
	m, err := oci.ParseManifest(img.manifest, body)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Familiar(), err)
	}
	if img.config, err = content.ReadAll(ctx, e.opt.Store, m.Config); err != nil {
		return err
	}
	config, err := oci.ParseConfig(m.Config, img.config)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Familiar(), err)
	}
	img.layers, err = imageLayers(m, config)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Familiar(), err)
	}
	return nil
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

// ResolveImage returns what a reference points at, and its config for p. The
// image is local afterwards. name is shown as a vertex of its own.
func (e *Engine) ResolveImage(ctx context.Context, r ref.Ref, p oci.Platform, always bool, name string) (oci.Digest, []byte, error) {
	var img *pulled
	err := e.Work(name, func(*Work) (err error) {
		img, err = e.pull(ctx, r.WithDefaultTag(), p, always)
		return err
	})
	if err != nil {
		return "", nil, err
	}
	return img.top.Digest, img.config, nil
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
