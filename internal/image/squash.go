package image

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Squash puts an image into s whose layers from the given one on, counted from
// 0, are one; those below stay as they are. It shows the same tree. Files that a
// layer deleted or replaced are gone, with their bytes. The history is kept, its
// lines without layers but for the last. Called under the lease im was opened
// under.
func Squash(ctx context.Context, s *store.Store, im *Image, from int) (*Made, error) {
	if from < 0 || from >= len(im.tocs) {
		return nil, fmt.Errorf("there is no layer %d, the image has %d: %w", from+1, len(im.tocs), oci.ErrInvalid)
	}
	w, err := s.NewLayer(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	if err := merge(ctx, w, im.tocs[from:], im.lower(from), im.Many()); err != nil {
		return nil, err
	}
	toc, err := w.Commit(ctx)
	if err != nil {
		return nil, err
	}
	config, manifest, err := im.objects()
	if err != nil {
		return nil, err
	}
	diffIDs := append(slices.Clone(im.Config.RootFS.DiffIDs[:from]), toc.DiffID)
	if err := setLayers(config, diffIDs, squashedHistory(im, from)); err != nil {
		return nil, err
	}
	layers := append(slices.Clone(im.Layers[:from]), oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: toc.DiffID, Size: toc.Size})
	return im.put(ctx, s, config, manifest, layers, false)
}

func squashedHistory(im *Image, from int) []oci.History {
	var out []oci.History
	n := 0
	for _, h := range im.Config.History {
		if !h.EmptyLayer {
			h.EmptyLayer = n >= from
			n++
		}
		out = append(out, h)
	}
	return append(out, oci.History{
		Created: im.Config.Created, CreatedBy: "strake image squash",
		Comment: "merged " + counted(len(im.tocs)-from, "layer"),
	})
}

// merge writes the layers above, of which view is the stack with below, as one.
func merge(ctx context.Context, w entryWriter, above []*layer.TOC, below, view *tree.Stack) error {
	if below.Layers() == 0 {
		return flatten(ctx, w, view)
	}
	set, err := differences(above, below, view)
	if err != nil {
		return err
	}
	// The directories over them, so that the layer states its own attributes.
	for p := range maps.Clone(set) {
		for p != "." {
			p = path.Dir(p)
			if _, ok := set[p]; ok {
				continue
			}
			e, err := view.Lstat(p)
			if err != nil {
				return err
			}
			set[p] = *e
		}
	}
	all := make([]member, 0, len(set))
	for p, e := range set {
		e.Path = p
		all = append(all, member{e, p})
	}
	if err := relink(all); err != nil {
		return err
	}
	return writeAll(ctx, w, view, all)
}

// differences are the entries that make view of below, whiteouts among them.
func differences(above []*layer.TOC, below, view *tree.Stack) (map[string]layer.Entry, error) {
	changes, err := tree.Diff(below, view)
	if err != nil {
		return nil, err
	}
	set := map[string]layer.Entry{}
	for _, c := range changes {
		if c.Kind == 'D' {
			set[c.Path] = layer.Entry{Path: c.Path, Type: layer.Whiteout}
		} else {
			set[c.Path] = *c.New
		}
	}
	// What is the same below may still not be left out: the time of a directory
	// and which names are one file are no difference to Diff.
	for _, t := range above {
		for i := range t.Entries {
			e := &t.Entries[i]
			switch now, err := view.Lstat(e.Path); {
			case err != nil:
			case now.Type == layer.Dir && e.Type == layer.Dir,
				now.Type == layer.Regular && (e.Type == layer.Regular || e.Type == layer.HardLink):
				set[e.Path] = *now
			}
		}
	}
	return set, nil
}

// flatten writes all of view. A root that no layer says anything about is left
// unsaid.
func flatten(ctx context.Context, w entryWriter, view *tree.Stack) error {
	all, err := members(view, ".", ".")
	if err != nil {
		return err
	}
	if root := &all[0].Entry; what(root, &layer.Entry{Type: layer.Dir, Mode: 0o755}) == nil && root.ModTime.Unix() == 0 {
		all = all[1:]
	}
	return writeAll(ctx, w, view, all)
}

func writeAll(ctx context.Context, w entryWriter, v tree.View, all []member) error {
	for i := range all {
		if err := write(ctx, w, v, &all[i]); err != nil {
			return err
		}
	}
	return nil
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
