package build

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/build/fileop"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/tree"
)

// file runs a file operation: copies, made directories and files, removals.
// No tree is written; each output is one layer, written in one pass over the
// sources.
func (s *step) file(ctx context.Context, op *pb.FileOp) ([]*Snapshot, error) {
	outputs := 0
	for _, a := range op.Actions {
		outputs = max(outputs, int(a.Output)+1)
	}
	if outputs == 0 || outputs > len(op.Actions) {
		return nil, fmt.Errorf("file operation with %d outputs of %d actions: %w", outputs, len(op.Actions), oci.ErrInvalid)
	}
	out := make([]*Snapshot, outputs)
	f := &fileStep{step: s, op: op}
	for i, a := range op.Actions {
		if a.Output < 0 {
			continue
		}
		var err error
		if out[a.Output], err = f.output(ctx, i); err != nil {
			return nil, err
		}
	}
	return out, nil
}

type fileStep struct {
	*step
	op *pb.FileOp
	// spool is where unpacked archives wait; made when the first draft is.
	spool string
}

// output makes the layer that ends in action i.
func (f *fileStep) output(ctx context.Context, i int) (*Snapshot, error) {
	d, base, err := f.draft(ctx, i)
	if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if !keep {
			d.Close()
		}
	}()
	if base, err = base.layered(ctx, f.opt.Store, f.start); err != nil {
		return nil, err
	}
	l, err := writeDraft(ctx, f.opt.Store, d)
	if errors.Is(err, oci.ErrInvalid) && base == nil && f.op.Actions[i].GetCopy().GetAttemptUnpackDockerCompatibility() {
		// A context that came as a tar may have names that no layer has, such as
		// .wh.x. They matter only if something copies them.
		keep = true
		f.opened(d)
		return &Snapshot{store: f.opt.Store, view: d}, nil
	}
	if err != nil {
		return nil, err
	}
	l.CreatedBy, l.Created = f.v.Name, f.now()
	return base.over(f.opt.Store, *l, ""), nil
}

// open returns a draft over view.
func (f *fileStep) open(ctx context.Context, view tree.View) (*fileop.Draft, error) {
	if f.spool == "" && unpacks(f.op) {
		dir, err := f.opt.Store.Scratch(ctx)
		if err != nil {
			return nil, err
		}
		f.spool = dir
	}
	d := fileop.New(view)
	if f.spool != "" {
		d.SpoolIn(f.spool)
	}
	return d, nil
}

// unpacks tells whether op has an ADD of an archive.
func unpacks(op *pb.FileOp) bool {
	for _, a := range op.Actions {
		if a.GetCopy().GetAttemptUnpackDockerCompatibility() {
			return true
		}
	}
	return false
}

// draft applies action i, and the actions that it continues, to the input that
// they begin with, and returns that input too. Each output has its own draft,
// so that actions shared by several outputs are done once for each: that keeps
// every output a single layer over its input.
func (f *fileStep) draft(ctx context.Context, i int) (*fileop.Draft, *Snapshot, error) {
	a := f.op.Actions[i]
	d, base, err := f.input(ctx, a.Input, i)
	if err != nil {
		return nil, nil, err
	}
	var src tree.View
	if a.GetCopy() != nil {
		if src, err = f.view(ctx, a.SecondaryInput, i); err != nil {
			return nil, nil, err
		}
	}
	users := func(input int64) (tree.View, error) { return f.view(ctx, input, i) }
	if err := d.Apply(ctx, a, src, users, f.start); err != nil {
		return nil, nil, err
	}
	return d, base, nil
}

// input opens what action i changes: an input of the step, scratch, or an
// earlier action's result.
func (f *fileStep) input(ctx context.Context, n int64, i int) (*fileop.Draft, *Snapshot, error) {
	if n < 0 {
		d, err := f.open(ctx, nil)
		return d, nil, err
	}
	if int(n) < len(f.in) {
		v, err := f.in[n].View(ctx)
		if err != nil {
			return nil, nil, err
		}
		d, err := f.open(ctx, v)
		return d, f.in[n], err
	}
	earlier := int(n) - len(f.in)
	if earlier >= i {
		return nil, nil, fmt.Errorf("file action %d uses the result of action %d: %w", i, earlier, oci.ErrInvalid)
	}
	return f.draft(ctx, earlier)
}

// view shows what action i reads from.
func (f *fileStep) view(ctx context.Context, n int64, i int) (tree.View, error) {
	if n >= 0 && int(n) < len(f.in) {
		return f.in[n].View(ctx)
	}
	if n < 0 {
		return tree.New(nil, nil), nil
	}
	d, _, err := f.input(ctx, n, i)
	return d, err
}
