package frontend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"
	"syscall"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// reference is a lazy result: the edge of a graph that is solved when somebody
// needs it. A nil reference is scratch.
type reference struct {
	engine *build.Engine
	edge   build.Edge
	def    *pb.Definition

	once sync.Once
	snap *build.Snapshot
	err  error
}

func (r *reference) solve(ctx context.Context) (*build.Snapshot, error) {
	if r == nil {
		return nil, nil
	}
	r.once.Do(func() { r.snap, r.err = r.engine.Solve(ctx, r.edge) })
	return r.snap, r.err
}

// ToState implements client.Reference.
func (r *reference) ToState() (llb.State, error) {
	op, err := llb.NewDefinitionOp(r.def)
	if err != nil {
		return llb.State{}, err
	}
	return llb.NewState(op), nil
}

// Evaluate implements client.Reference.
func (r *reference) Evaluate(ctx context.Context) error {
	_, err := r.solve(ctx)
	return err
}

// lookup finds a path, symlinks followed inside the tree.
func (r *reference) lookup(ctx context.Context, name string) (tree.View, string, *layer.Entry, error) {
	snap, err := r.solve(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	view, err := snap.View(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	p := strings.TrimPrefix(path.Clean("/"+name), "/")
	if p == "" {
		p = "."
	}
	if p, err = tree.Resolve(view, p, true); err != nil {
		return nil, "", nil, err
	}
	e, err := view.Lstat(p)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return nil, "", nil, err
	}
	if err != nil {
		// BuildKit's words, which scripts know: the path as it was asked for.
		return nil, "", nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	}
	return view, p, e, nil
}

// ReadFile implements client.Reference.
func (r *reference) ReadFile(ctx context.Context, req client.ReadRequest) ([]byte, error) {
	view, p, e, err := r.lookup(ctx, req.Filename)
	if err != nil {
		return nil, err
	}
	if e.Type != layer.Regular {
		return nil, fmt.Errorf("%s is no regular file: %w", req.Filename, oci.ErrInvalid)
	}
	f, err := view.Open(ctx, p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var in io.Reader = f
	if rng := req.Range; rng != nil {
		if rng.Offset > 0 {
			if _, err := io.CopyN(io.Discard, f, int64(rng.Offset)); err != nil && err != io.EOF {
				return nil, err
			}
		}
		if rng.Length > 0 {
			in = io.LimitReader(f, int64(rng.Length))
		}
	}
	return io.ReadAll(in)
}

// StatFile implements client.Reference.
func (r *reference) StatFile(ctx context.Context, req client.StatRequest) (*fstypes.Stat, error) {
	_, p, e, err := r.lookup(ctx, req.Path)
	if err != nil {
		return nil, err
	}
	return stat(p, e), nil
}

// ReadDir implements client.Reference.
func (r *reference) ReadDir(ctx context.Context, req client.ReadDirRequest) ([]*fstypes.Stat, error) {
	view, p, _, err := r.lookup(ctx, req.Path)
	if err != nil {
		return nil, err
	}
	entries, err := view.ReadDir(p)
	if err != nil {
		return nil, err
	}
	var out []*fstypes.Stat
	for _, e := range entries {
		if req.IncludePattern != "" {
			if ok, err := patternmatcher.MatchesOrParentMatches(path.Base(e.Path), []string{req.IncludePattern}); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		out = append(out, stat(path.Base(e.Path), e))
	}
	return out, nil
}

// stat describes e as fsutil does, with Go's mode bits.
func stat(name string, e *layer.Entry) *fstypes.Stat {
	st := &fstypes.Stat{
		Path: name, Mode: uint32(e.FileMode()), Uid: uint32(e.UID), Gid: uint32(e.GID),
		Size: e.Size, ModTime: e.ModTime.UnixNano(),
	}
	if e.Type == layer.Symlink {
		st.Linkname = e.Link
	}
	return st
}
