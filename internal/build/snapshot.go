package build

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/build/fileop"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Layer is one layer of a Snapshot with what an image's history says of it.
type Layer struct {
	DiffID oci.Digest
	// Descriptor names its bytes: packed as a registry had them, or the plain
	// tar, whose digest is the diffID.
	Descriptor oci.Descriptor
	CreatedBy  string
	Created    time.Time
}

// Snapshot is what a vertex yields: an immutable file system tree. It is a
// stack of layers or, of a local source, a directory on disk. A nil Snapshot
// is scratch, the empty one.
type Snapshot struct {
	Layers []Layer

	store *store.Store
	// view is set for what is no stack of layers.
	view tree.View
	// lazy is set for output index of what may not be in the store yet: see
	// local. Layers are those of an image then; of a step they are not known.
	lazy  lazy
	index int

	once  sync.Once
	stack tree.View
	err   error

	keyOnce sync.Once
	key     oci.Digest
	keyErr  error
}

func newSnapshot(s *store.Store, layers []Layer, key oci.Digest) *Snapshot {
	return &Snapshot{Layers: layers, store: s, key: key}
}

// View shows the tree. Tables of contents are read only now.
func (s *Snapshot) View(ctx context.Context) (tree.View, error) {
	if s == nil {
		return tree.New(nil, nil), nil
	}
	if s.view != nil {
		return s.view, nil
	}
	if s.lazy != nil {
		l, err := s.local(ctx)
		if err != nil {
			return nil, err
		}
		return l.View(ctx)
	}
	s.once.Do(func() { s.stack, s.err = stackView(ctx, s.store, s.Layers, s.store.OpenFile) })
	return s.stack, s.err
}

// Whole is View for who reads all of it once: no layer is unpacked for that.
func (e *Engine) Whole(ctx context.Context, s *Snapshot) (tree.View, error) {
	s, err := s.local(ctx)
	if err != nil || s == nil || s.view != nil {
		if err != nil {
			return nil, err
		}
		return s.View(ctx)
	}
	spool := e.opt.Store.NewSpool()
	e.opened(spool)
	return stackView(ctx, s.store, s.Layers, spool.OpenFile)
}

type openFile func(ctx context.Context, diffID oci.Digest, e *layer.Entry) (io.ReadCloser, error)

func stackView(ctx context.Context, st *store.Store, layers []Layer, open openFile) (tree.View, error) {
	tocs := make([]*layer.TOC, len(layers))
	if err := each(ctx, len(layers), func(ctx context.Context, i int) (err error) {
		tocs[i], err = st.TOC(ctx, layers[i].DiffID)
		return err
	}); err != nil {
		return nil, err
	}
	return tree.New(tocs, func(ctx context.Context, i int, e *layer.Entry) (io.ReadCloser, error) {
		return open(ctx, layers[i].DiffID, e)
	}), nil
}

// DiffIDs lists the layers, lowest first.
func (s *Snapshot) DiffIDs() []oci.Digest {
	if s == nil {
		return nil
	}
	if s.lazy != nil {
		if out := s.lazy.resolved(); out != nil {
			return out[s.index].DiffIDs()
		}
	}
	ids := make([]oci.Digest, len(s.Layers))
	for i, l := range s.Layers {
		ids[i] = l.DiffID
	}
	return ids
}

// Key identifies the tree in cache keys. A directory's is its content's.
func (s *Snapshot) Key(ctx context.Context) (oci.Digest, error) {
	if s == nil {
		return digestOf("scratch"), nil
	}
	s.keyOnce.Do(func() {
		if s.key == "" {
			s.key, s.keyErr = fileop.Selected(ctx, s.view, wholeTree())
		}
	})
	return s.key, s.keyErr
}

// wholeTree is a copy of everything.
func wholeTree() *pb.FileActionCopy {
	return &pb.FileActionCopy{Src: "/", Dest: "/", DirCopyContents: true, CreateDestPath: true, Mode: -1, Timestamp: -1}
}

// layered returns s as a stack of layers that the store has: a directory is
// packed into one, and what an imported cache has is fetched.
func (s *Snapshot) layered(ctx context.Context, st *store.Store, now time.Time) (*Snapshot, error) {
	if s == nil || s.view == nil {
		return s.local(ctx)
	}
	key, err := s.Key(ctx)
	if err != nil {
		return nil, err
	}
	d := fileop.New(nil)
	copyAll := &pb.FileAction{Action: &pb.FileAction_Copy{Copy: wholeTree()}}
	if err := d.Apply(ctx, copyAll, s.view, nil, now); err != nil {
		return nil, err
	}
	l, err := writeDraft(ctx, st, d)
	if err != nil {
		return nil, err
	}
	l.CreatedBy, l.Created = "context", now
	return newSnapshot(st, []Layer{*l}, key), nil
}

// writeDraft stores the pending changes of d as a layer.
func writeDraft(ctx context.Context, st *store.Store, d *fileop.Draft) (*Layer, error) {
	w, err := st.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	if err := d.Write(ctx, w.Writer); err != nil {
		return nil, err
	}
	toc, err := w.Commit(ctx)
	if err != nil {
		return nil, err
	}
	return plainLayer(toc), nil
}

func plainLayer(toc *layer.TOC) *Layer {
	return &Layer{
		DiffID:     toc.DiffID,
		Descriptor: oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: toc.DiffID, Size: toc.Size},
	}
}

// over returns the snapshot that has l on top of s.
func (s *Snapshot) over(st *store.Store, l Layer, key oci.Digest) *Snapshot {
	var layers []Layer
	if s != nil {
		layers = append(layers, s.Layers...)
	}
	return newSnapshot(st, append(layers, l), key)
}
