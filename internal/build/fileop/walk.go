package fileop

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// source is one thing that a copy takes: what its src names, or one of the
// matches of a wildcard.
type source struct {
	name string // as named, before symlinks: gives the name of the copy
	at   string // where it lies in the view
	dot  bool   // named as "x/.": has no name of its own
}

// base is the name that the copy has in an existing directory; "." if it is
// that directory.
func (s source) base() string {
	if b := path.Base(slash(s.name)); b != "/" && !s.dot {
		return b
	}
	return "."
}

// sources resolves a's src in v.
func sources(v tree.View, a *pb.FileActionCopy) ([]source, error) {
	names := []string{rel(a.Src)}
	if a.AllowWildcard {
		var err error
		if names, err = glob(v, a.Src, a.FollowSymlink); err != nil {
			return nil, err
		}
	}
	out := make([]source, len(names))
	for i, n := range names {
		at, err := statOf(v).resolve(n, a.FollowSymlink)
		if err != nil {
			return nil, err
		}
		out[i] = source{n, at, !a.AllowWildcard && strings.HasSuffix(a.Src, "/.")}
	}
	return out, nil
}

// visitor is told what a copy takes, in order.
type visitor interface {
	// enter comes for every directory that is walked. Without include it is
	// to be made only if something below it is.
	enter(rel string, e *layer.Entry, include bool) error
	// file comes for everything else that is included.
	file(rel string, e *layer.Entry) error
	// leave ends what enter began.
	leave(rel string, e *layer.Entry, include bool) error
}

// walker goes through a source with the patterns of a copy.
type walker struct {
	ctx      context.Context
	v        tree.View
	in, ex   *patternmatcher.PatternMatcher
	to       visitor
	entries  int
	noReturn bool // an excluded directory has nothing that is not excluded
}

func newWalker(ctx context.Context, v tree.View, a *pb.FileActionCopy, to visitor) (*walker, error) {
	w := &walker{ctx: ctx, v: v, to: to}
	var err error
	if len(a.IncludePatterns) > 0 {
		if w.in, err = patternmatcher.New(a.IncludePatterns); err != nil {
			return nil, fmt.Errorf("invalid includepatterns: %s: %v: %w", a.IncludePatterns, err, oci.ErrInvalid)
		}
	}
	if len(a.ExcludePatterns) > 0 {
		if w.ex, err = patternmatcher.New(a.ExcludePatterns); err != nil {
			return nil, fmt.Errorf("invalid excludepatterns: %s: %v: %w", a.ExcludePatterns, err, oci.ErrInvalid)
		}
	}
	w.noReturn = w.ex == nil || !w.ex.Exclusions()
	return w, nil
}

// matches is what the patterns said of a directory, for what is in it.
type matches struct{ in, ex patternmatcher.MatchInfo }

// walk visits the entry e, whose path relative to the source is rel, "" for
// the source itself: patterns do not apply to that.
func (w *walker) walk(rel string, e *layer.Entry, parent matches) error {
	if w.entries++; w.entries%256 == 0 {
		if err := w.ctx.Err(); err != nil {
			return err
		}
	}
	include, excluded, m, err := w.match(rel, parent)
	if err != nil {
		return err
	}
	if e.Type != layer.Dir {
		if !include {
			return nil
		}
		return w.to.file(rel, e)
	}
	if excluded && w.noReturn && w.in == nil {
		return nil
	}
	if err := w.to.enter(rel, e, include); err != nil {
		return err
	}
	if !excluded || !w.noReturn {
		all, err := w.v.ReadDir(e.Path)
		if err != nil {
			return err
		}
		for _, k := range all {
			name := k.Path
			if e.Path != "." {
				name = name[len(e.Path)+1:]
			}
			if rel != "" {
				name = rel + "/" + name
			}
			if err := w.walk(name, k, m); err != nil {
				return err
			}
		}
	}
	return w.to.leave(rel, e, include)
}

func (w *walker) match(rel string, parent matches) (include, excluded bool, m matches, err error) {
	include = true
	if rel == "" {
		return include, false, m, nil
	}
	if w.in != nil {
		if include, m.in, err = w.in.MatchesUsingParentResults(rel, parent.in); err != nil {
			return false, false, m, fmt.Errorf("failed to match includepatterns: %v: %w", err, oci.ErrInvalid)
		}
	}
	if w.ex != nil {
		if excluded, m.ex, err = w.ex.MatchesUsingParentResults(rel, parent.ex); err != nil {
			return false, false, m, fmt.Errorf("failed to match excludepatterns: %v: %w", err, oci.ErrInvalid)
		}
	}
	return include && !excluded, excluded, m, nil
}
