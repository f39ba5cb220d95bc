package build

import (
	"context"
	"fmt"
	"path"
	"sort"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// now is the time that a layer made now gets in an image's history.
func (s *step) now() time.Time { return time.Now().UTC() }

// merge stacks its inputs' layers: an input's layers are laid over those of
// the inputs before it. Layers are independent of what lies below them, so
// nothing is copied; this is what makes COPY --link cheap.
func (s *step) merge(ctx context.Context) ([]*Snapshot, error) {
	var layers []Layer
	for _, in := range s.in {
		in, err := in.layered(ctx, s.opt.Store, s.start)
		if err != nil {
			return nil, err
		}
		if in == nil {
			continue
		}
		layers = append(layers, in.Layers...)
	}
	return []*Snapshot{newSnapshot(s.opt.Store, layers, "")}, nil
}

// diff yields what has to be laid over lower to get upper. Where lower's
// layers are the bottom of upper's, that is the rest of them; else the two
// trees are compared and the difference becomes one layer.
func (s *step) diff(ctx context.Context, op *pb.DiffOp) ([]*Snapshot, error) {
	pick := func(i int64) (*Snapshot, error) {
		if i < 0 {
			return nil, nil
		}
		if int(i) >= len(s.in) {
			return nil, fmt.Errorf("diff names input %d of %d: %w", i, len(s.in), oci.ErrInvalid)
		}
		return s.in[i].layered(ctx, s.opt.Store, s.start)
	}
	lower, err := pick(op.GetLower().GetInput())
	if err != nil {
		return nil, err
	}
	upper, err := pick(op.GetUpper().GetInput())
	if err != nil {
		return nil, err
	}
	if upper == nil && lower == nil {
		return []*Snapshot{nil}, nil
	}
	if rest, ok := above(lower, upper); ok {
		return []*Snapshot{newSnapshot(s.opt.Store, rest, "")}, nil
	}
	l, err := s.difference(ctx, lower, upper, s.v.Name)
	if err != nil {
		return nil, err
	}
	return []*Snapshot{newSnapshot(s.opt.Store, []Layer{*l}, "")}, nil
}

func above(lower, upper *Snapshot) ([]Layer, bool) {
	a, b := lower.DiffIDs(), upper.DiffIDs()
	if len(a) > len(b) {
		return nil, false
	}
	for i := range a {
		if a[i] != b[i] {
			return nil, false
		}
	}
	if upper == nil {
		return nil, true
	}
	return upper.Layers[len(a):], true
}

// difference writes the changes from lower to upper as one layer.
func (e *Engine) difference(ctx context.Context, lower, upper *Snapshot, createdBy string) (*Layer, error) {
	lv, err := lower.View(ctx)
	if err != nil {
		return nil, err
	}
	uv, err := upper.View(ctx)
	if err != nil {
		return nil, err
	}
	changes, err := tree.Diff(lv, uv)
	if err != nil {
		return nil, err
	}
	entries, err := changeEntries(changes, uv)
	if err != nil {
		return nil, err
	}
	l, err := e.writeLayer(ctx, entries, uv)
	if err == nil {
		l.CreatedBy, l.Created = createdBy, time.Now().UTC()
	}
	return l, err
}

// writeLayer puts a layer of entries, which are in order, into the store.
func (e *Engine) writeLayer(ctx context.Context, entries []*layer.Entry, view tree.View) (*Layer, error) {
	w, err := e.opt.Store.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	for _, e := range entries {
		if err := writeEntry(ctx, w.Writer, e, view); err != nil {
			return nil, err
		}
	}
	toc, err := w.Commit(ctx)
	if err != nil {
		return nil, err
	}
	return plainLayer(toc), nil
}

// changeEntries are the lines of the layer that makes the changes, in
// canonical order: what is new, whiteouts, and the directories above them.
func changeEntries(changes []tree.Change, upper tree.View) ([]*layer.Entry, error) {
	set := map[string]*layer.Entry{}
	for _, c := range changes {
		if c.Kind == 'D' {
			set[c.Path] = &layer.Entry{Path: c.Path, Type: layer.Whiteout}
		} else {
			e := *c.New
			set[c.Path] = &e
		}
		for dir := path.Dir(c.Path); set[dir] == nil; dir = path.Dir(dir) {
			e, err := upper.Lstat(dir)
			if err != nil {
				return nil, err
			}
			set[dir] = e
			if dir == "." {
				break
			}
		}
	}
	delete(set, ".")
	entries := make([]*layer.Entry, 0, len(set))
	for _, e := range set {
		entries = append(entries, e)
	}
	sort.Slice(entries, func(i, j int) bool { return layer.Less(entries[i], entries[j]) })
	firsts := tree.FirstNames{}
	for _, e := range entries {
		firsts.Relink(e, e.Path)
	}
	return entries, nil
}

// writeEntry writes e as a build does.
func writeEntry(ctx context.Context, w *layer.Writer, e *layer.Entry, view tree.View) error {
	one := *e
	one.Xattrs = layer.BuiltXattrs(e.Xattrs)
	return tree.WriteEntry(ctx, w, &one, view)
}
