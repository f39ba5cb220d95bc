package tree

import (
	"context"
	"maps"

	"github.com/strake-project/strake/internal/oci/layer"
)

// Change is one difference between two views.
type Change struct {
	Path string
	Kind byte // 'A' added, 'C' changed, 'D' deleted, as docker diff prints them
	Old  *layer.Entry
	New  *layer.Entry
}

// Diff lists what has to change to make a into b, in path order. Contents are
// compared by digest; times count for files, not for directories. Of a
// directory that is deleted or replaced nothing below it is listed; a directory
// that is the same itself is not listed for what changed in it.
func Diff(a, b View) ([]Change, error) {
	d := differ{a: a, b: b}
	ra, err := a.Lstat(".")
	if err != nil {
		return nil, err
	}
	rb, err := b.Lstat(".")
	if err != nil {
		return nil, err
	}
	if err := d.pair(ra, rb); err != nil {
		return nil, err
	}
	return d.out, nil
}

type differ struct {
	a, b View
	out  []Change
}

// pair compares what the views have at one path; old or new may be nil.
func (d *differ) pair(old, new *layer.Entry) error {
	switch {
	case new == nil:
		d.out = append(d.out, Change{Path: old.Path, Kind: 'D', Old: old})
		return nil
	case old == nil:
		d.out = append(d.out, Change{Path: new.Path, Kind: 'A', New: new})
	default:
		same, err := d.same(old, new)
		if err != nil {
			return err
		}
		if !same {
			d.out = append(d.out, Change{Path: new.Path, Kind: 'C', Old: old, New: new})
		}
	}
	if new.Type != layer.Dir {
		return nil
	}
	if old != nil && old.Type != layer.Dir {
		old = nil
	}
	if old != nil && sameNodes(d.a, d.b, new.Path) {
		return nil
	}
	return d.dir(new.Path, old != nil)
}

func (d *differ) dir(path string, both bool) error {
	var olds []*layer.Entry
	news, err := d.b.ReadDir(path)
	if err != nil {
		return err
	}
	if both {
		if olds, err = d.a.ReadDir(path); err != nil {
			return err
		}
	}
	for len(olds) > 0 || len(news) > 0 {
		var old, new *layer.Entry
		if len(news) == 0 || len(olds) > 0 && olds[0].Path <= news[0].Path {
			old = olds[0]
		}
		if len(olds) == 0 || len(news) > 0 && news[0].Path <= olds[0].Path {
			new = news[0]
		}
		if old != nil {
			olds = olds[1:]
		}
		if new != nil {
			news = news[1:]
		}
		if err := d.pair(old, new); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) same(old, new *layer.Entry) (bool, error) {
	if old == new {
		return true, nil
	}
	if old.Type != new.Type || old.Mode != new.Mode || old.UID != new.UID || old.GID != new.GID ||
		!maps.Equal(old.Xattrs, new.Xattrs) {
		return false, nil
	}
	if old.Type == layer.Dir {
		return true, nil
	}
	if !old.ModTime.Equal(new.ModTime) || old.Size != new.Size {
		return false, nil
	}
	switch old.Type {
	case layer.Char, layer.Block:
		return old.DevMajor == new.DevMajor && old.DevMinor == new.DevMinor, nil
	case layer.Regular:
		return d.sameContent(old, new)
	}
	return old.Link == new.Link, nil
}

func (d *differ) sameContent(old, new *layer.Entry) (bool, error) {
	od, nd := old.Digest, new.Digest
	var err error
	if od == "" {
		if od, err = d.a.Digest(context.Background(), old.Path); err != nil {
			return false, err
		}
	}
	if nd == "" {
		if nd, err = d.b.Digest(context.Background(), new.Path); err != nil {
			return false, err
		}
	}
	return od == nd, nil
}

// sameNodes tells that directory path is made of the same nodes of the same
// layers in both views: two stacks of which one was grown from the other share
// them, and so most of a Diff between them is not looked at.
func sameNodes(a, b View, path string) bool {
	sa, ok := a.(*Stack)
	if !ok {
		return false
	}
	sb, ok := b.(*Stack)
	if !ok {
		return false
	}
	pa, pb := lookup(sa.slots, path), lookup(sb.slots, path)
	if len(pa.dirs) != len(pb.dirs) {
		return false
	}
	for i := range pa.dirs {
		x, y := pa.dirs[i], pb.dirs[i]
		if x == y {
			continue
		}
		// Another index of the same layer shows the same, unless the layers
		// below moved something in it.
		if x.ix.toc != y.ix.toc || x.ix.misplaced || y.ix.misplaced || x.n != y.n {
			return false
		}
	}
	return true
}
