package build

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// lazy is where a snapshot comes from whose layers may not be in the store: an
// image that only its registry has, or a step that a cache knows. Nothing is
// fetched before something reads it.
type lazy interface {
	// resolve returns the outputs with their layers in the store.
	resolve(ctx context.Context) ([]*Snapshot, error)
	// resolved is what resolve has returned, nil before.
	resolved() []*Snapshot
	// origins lists the layers of output i before that; false where nobody has
	// them.
	origins(i int) ([]origin, bool)
	// content is the content digest, if it is known, of what the copy which
	// takes from the output of.
	content(ctx context.Context, of, which oci.Digest) (oci.Digest, error)
}

// origin is where the bytes of a layer are: in the store, or, where src is set,
// in a repository or a cache.
type origin struct {
	layer Layer
	blob  oci.Descriptor
	src   content.Source
	ref   ref.Ref
}

// outputLayers lists the layers of a snapshot, also of one that is still
// elsewhere; false where nobody has them.
func outputLayers(s *Snapshot) ([]origin, bool) {
	if s == nil {
		return nil, true
	}
	if s.lazy != nil {
		out := s.lazy.resolved()
		if out == nil {
			return s.lazy.origins(s.index)
		}
		s = out[s.index]
	}
	if s == nil || s.view != nil {
		return nil, s == nil
	}
	list := make([]origin, len(s.Layers))
	for i, l := range s.Layers {
		list[i] = origin{layer: l}
	}
	return list, true
}

// contentOf is the content digest of what cp takes from in, which a cache may
// know of a step whose layers are not here.
func (s *step) contentOf(ctx context.Context, in *Snapshot, cp *pb.FileActionCopy) (oci.Digest, error) {
	var of, which oci.Digest
	if in != nil && in.view == nil {
		b, err := cp.MarshalVT()
		if err != nil {
			return "", err
		}
		of, which = in.key, digestOf("copy", keyVersion, string(b))
	}
	var d oci.Digest
	var err error
	if in != nil && in.lazy != nil && in.lazy.resolved() == nil {
		if d, err = in.lazy.content(ctx, of, which); err != nil {
			return "", err
		}
	}
	if d == "" {
		if in != nil && len(in.Layers) == 0 { // only an image's are known beforehand
			in, err = in.local(ctx)
		}
		if err == nil {
			d, err = s.selected(ctx, in, cp)
		}
		if err != nil {
			return "", err
		}
	}
	if of != "" {
		s.journal.content(of, which, d)
	}
	return d, nil
}

// local returns the output that s stands for, with its layers in the store.
func (s *Snapshot) local(ctx context.Context) (*Snapshot, error) {
	if s == nil || s.lazy == nil {
		return s, nil
	}
	out, err := s.lazy.resolve(ctx)
	if err != nil {
		return nil, err
	}
	if s.index >= len(out) {
		return nil, errors.New("a step has fewer outputs than its operation")
	}
	return out[s.index], nil
}

// localInputs fetches or makes the inputs that are not here yet.
func (s *step) localInputs(ctx context.Context) error {
	in := append([]*Snapshot(nil), s.in...)
	err := each(ctx, len(in), func(ctx context.Context, i int) (err error) {
		in[i], err = in[i].local(ctx)
		return err
	})
	s.in = in
	return err
}

// transfers shows what is fetched as progress of a vertex.
func (e *Engine) transfers(vertex oci.Digest) func(content.Event) {
	var mu sync.Mutex
	started := map[oci.Digest]time.Time{}
	return func(ev content.Event) {
		if !oci.IsLayer(ev.Descriptor.MediaType) || vertex == "" {
			return
		}
		now := time.Now()
		mu.Lock()
		at, ok := started[ev.Descriptor.Digest]
		if !ok {
			started[ev.Descriptor.Digest], at = now, now
		}
		mu.Unlock()
		s := &Status{Vertex: vertex, ID: string(ev.Descriptor.Digest), Current: ev.Current, Total: ev.Descriptor.Size, Started: at}
		switch ev.Kind {
		case content.Done:
			s.Completed = &now
		case content.Progressed:
		default:
			return
		}
		e.Emit(Event{Status: s})
	}
}
