package local

import (
	"fmt"
	"path"
	"strings"
	"sync"

	"github.com/moby/patternmatcher"

	"github.com/strake-project/strake/internal/oci"
)

// filter applies a source's patterns, as fsutil's FilterFS does.
type filter struct {
	include, exclude []string
	in, ex           *patternmatcher.PatternMatcher
	// mayIn and mayEx are the literal beginnings of the patterns that can show
	// something: include patterns, and exceptions ("!") of exclude patterns.
	// A directory that is not shown by itself is only looked into if one of
	// them leads there.
	mayIn, mayEx []string
}

// matches is what the patterns said of a directory, for what is in it.
type matches struct{ in, ex patternmatcher.MatchInfo }

func newFilter(include, exclude []string) (*filter, error) {
	f := &filter{include: include, exclude: exclude}
	var err error
	if len(include) > 0 {
		if f.in, err = patternmatcher.New(include); err != nil {
			return nil, fmt.Errorf("invalid includepatterns: %s: %v: %w", include, err, oci.ErrInvalid)
		}
		for _, p := range f.in.Patterns() {
			if !p.Exclusion() {
				f.mayIn = append(f.mayIn, literal(p.String()))
			}
		}
	}
	if len(exclude) > 0 {
		if f.ex, err = patternmatcher.New(exclude); err != nil {
			return nil, fmt.Errorf("invalid excludepatterns: %s: %v: %w", exclude, err, oci.ErrInvalid)
		}
		for _, p := range f.ex.Patterns() {
			if p.Exclusion() {
				f.mayEx = append(f.mayEx, literal(p.String()))
			}
		}
	}
	return f, nil
}

// filters lends filters to goroutines, one to each: a PatternMatcher compiles
// its patterns when it first uses them.
type filters struct {
	first *filter
	mu    sync.Mutex
	free  []*filter
}

func (s *filters) get() *filter {
	if s.first.in == nil && s.first.ex == nil {
		return s.first
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		f := s.free[n-1]
		s.free = s.free[:n-1]
		return f
	}
	f, err := newFilter(s.first.include, s.first.exclude)
	if err != nil {
		panic("patterns that were valid are not: " + err.Error())
	}
	return f
}

func (s *filters) put(f *filter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, f)
}

// literal is the part of a pattern, in whole components, before the first that
// can match more than itself.
func literal(p string) string {
	var out []string
	for part := range strings.SplitSeq(strings.TrimPrefix(p, "/"), "/") {
		if strings.ContainsAny(part, `*?[]^\`) {
			break
		}
		out = append(out, part)
	}
	return path.Join(out...)
}

// leads tells whether something below the directory p may match a pattern that
// begins with one of the literals.
func leads(literals []string, p string) bool {
	for _, l := range literals {
		if l == "" || l == p || strings.HasPrefix(l, p+"/") || strings.HasPrefix(p, l+"/") {
			return true
		}
	}
	return false
}

// match decides about k, whose parent's matches are given: whether k may be
// shown, and what its own matches are. It sets k.keep.
func (f *filter) match(k *node, parent matches, dir bool) (may bool, m matches, err error) {
	k.keep, may = true, true
	var ok bool
	if f.in != nil {
		if ok, m.in, err = f.in.MatchesUsingParentResults(k.path, parent.in); err != nil {
			return false, m, fmt.Errorf("failed to match includepatterns: %v: %w", err, oci.ErrInvalid)
		}
		if !ok {
			k.keep = false
			may = dir && leads(f.mayIn, k.path)
		}
	}
	if f.ex != nil {
		if ok, m.ex, err = f.ex.MatchesUsingParentResults(k.path, parent.ex); err != nil {
			return false, m, fmt.Errorf("failed to match excludepatterns: %v: %w", err, oci.ErrInvalid)
		}
		if ok {
			k.keep = false
			may = may && dir && leads(f.mayEx, k.path)
		}
	}
	return may, m, nil
}
