package build

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/containerd/platforms"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// pulled is an image that the build uses. Where only its registry has it, its
// layers are fetched once something reads them.
type pulled struct {
	engine   *Engine
	ref      ref.Ref
	platform oci.Platform
	once     sync.Once
	top      oci.Descriptor // what the name points at
	manifest oci.Descriptor
	config   []byte
	layers   []Layer
	err      error

	elsewhere *content.Found // nil where the store has it
	vertex    oci.Digest     // whose progress shows what is fetched
	fetching  sync.Once
	out       []*Snapshot
	fetchErr  error
	have      atomic.Bool
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
	s.mu.Lock()
	img.vertex = s.v.Digest
	s.mu.Unlock()
	s.journal.bases(img)
	return img.snapshot(), true, nil
}

// snapshot is the image's layers, wherever the image came from.
func (img *pulled) snapshot() *Snapshot {
	snap := newSnapshot(img.engine.opt.Store, img.layers, img.key())
	if img.elsewhere != nil {
		snap.lazy = img
	}
	return snap
}

func (img *pulled) key() oci.Digest {
	keys := []string{"image"}
	for _, l := range img.layers {
		keys = append(keys, string(l.DiffID))
	}
	return digestOf(keys...)
}

// pull finds an image, once for each name and platform.
func (e *Engine) pull(ctx context.Context, r ref.Ref, p oci.Platform, always bool) (*pulled, error) {
	id := fmt.Sprint(r, " ", platforms.Format(p), " ", always)
	e.mu.Lock()
	img := e.pulled[id]
	if img == nil && r.Digest != "" {
		img = e.found[pinned(r, r.Digest, p)] // the frontend pins what it resolved
	}
	if img == nil {
		img = &pulled{engine: e, ref: r, platform: p}
		e.pulled[id] = img
	}
	e.mu.Unlock()
	img.once.Do(func() {
		if img.err = e.find(ctx, img, r, p, always); img.err == nil {
			e.mu.Lock()
			e.found[pinned(r, img.top.Digest, p)] = img
			e.mu.Unlock()
		}
	})
	return img, img.err
}

func pinned(r ref.Ref, d oci.Digest, p oci.Platform) string {
	return fmt.Sprint(r.WithDigest(d), " ", platforms.Format(p))
}

func (e *Engine) find(ctx context.Context, img *pulled, r ref.Ref, p oci.Platform, always bool) error {
	found, err := e.opt.Find(ctx, r, p, always)
	if err != nil {
		return err
	}
	img.top = found.Descriptor
	if found.Local {
		if err := found.Fetch(ctx, nil); err != nil {
			return err
		}
		return e.load(ctx, img, e.opt.Store, r, p)
	}
	img.elsewhere = found
	return e.load(ctx, img, found.Source, r, p)
}

// load reads what img.top, which src has, holds for p.
func (e *Engine) load(ctx context.Context, img *pulled, src content.Source, r ref.Ref, p oci.Platform) error {
	var err error
	var body []byte
	if img.manifest, body, err = content.Manifest(ctx, src, img.top, p); err != nil {
		return err
	}
	m, err := oci.ParseManifest(img.manifest, body)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Familiar(), err)
	}
	if img.config, err = content.ReadAll(ctx, src, m.Config); err != nil {
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

// ResolveImage returns what a reference points at, and its config for p. name
// is shown as a vertex of its own.
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

// resolve implements lazy.
func (img *pulled) resolve(ctx context.Context) ([]*Snapshot, error) {
	img.fetching.Do(func() {
		e := img.engine
		e.mu.Lock()
		vertex := img.vertex
		e.mu.Unlock()
		if img.fetchErr = img.elsewhere.Fetch(ctx, e.transfers(vertex)); img.fetchErr == nil {
			img.out = []*Snapshot{newSnapshot(e.opt.Store, img.layers, img.key())}
			img.have.Store(true)
		}
	})
	return img.out, img.fetchErr
}

// resolved implements lazy.
func (img *pulled) resolved() []*Snapshot {
	if !img.have.Load() {
		return nil
	}
	return img.out
}

// origins implements lazy.
func (img *pulled) origins(int) ([]origin, bool) {
	list := make([]origin, len(img.layers))
	for i, l := range img.layers {
		list[i] = origin{layer: l, blob: l.Descriptor, src: img.elsewhere.Source, ref: img.ref}
	}
	return list, true
}

// content implements lazy: any cache may know what a copy takes from an image.
func (img *pulled) content(ctx context.Context, of, which oci.Digest) (oci.Digest, error) {
	caches, err := img.engine.imported(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range caches {
		if d := c.contents[[2]oci.Digest{of, which}]; d != "" {
			return d, nil
		}
	}
	return img.engine.knownContent(ctx, of, which)
}
