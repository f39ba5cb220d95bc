package build

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/strake-project/strake/internal/build/fileop"
	"github.com/strake-project/strake/internal/oci"
)

// Explained is a step that ran and why it was not cached.
type Explained struct {
	Step    string   `json:"step"`
	Line    int      `json:"line,omitempty"`
	Reasons []Reason `json:"reasons"`
}

// Reason is one thing that made a step run. Which of the fields are set depends
// on Kind.
type Reason struct {
	Kind Kind `json:"kind"`
	// Name of the argument, variable, setting, step, image or source.
	Name string `json:"name,omitempty"`
	// Was and Now are what changed, where it can be shown: instructions, images.
	Was string `json:"was,omitempty"`
	Now string `json:"now,omitempty"`
	// Files that changed, relative to Name, which is a context or a stage.
	Files []fileop.Change `json:"files,omitempty"`
}

// Kind is a kind of reason.
type Kind string

// The kinds of reasons.
const (
	FirstBuild  Kind = "first-build" // nothing is known of an earlier build
	NoCache     Kind = "no-cache"    // it was asked for
	NewStep     Kind = "new-step"    // the last build had none like it
	Pruned      Kind = "pruned"      // the same as last time, and no result is kept
	FailedLast  Kind = "failed"      // the same as last time, and it had failed
	Instruction Kind = "instruction" // Was → Now
	Argument    Kind = "argument"    // a build argument: Name
	Environment Kind = "environment" // a variable: Name
	Setting     Kind = "setting"     // Name: "user", "working directory", …
	Base        Kind = "base"        // image Name was another one: Was → Now
	Files       Kind = "files"       // Files in Name
	Source      Kind = "source"      // a URL or repository: Name
	Input       Kind = "step"        // step Name before it gave another result
	Operation   Kind = "operation"   // how strake or the frontend runs it
)

// Explain tells of each step that ran why, compared to the last build with the
// same Options.Trace, in the order of the Dockerfile. total counts the steps of
// this build. It is called when all steps have ended, before Remember.
func (e *Engine) Explain(ctx context.Context) (all []Explained, total int, err error) {
	last, _, err := e.lastTrace(ctx)
	if err != nil {
		return nil, 0, err
	}
	steps := e.steps()
	var before map[*tracedStep]*tracedStep
	if last != nil {
		before = match(last.Steps, steps)
	}
	for _, t := range steps {
		if !t.ran {
			continue
		}
		x := Explained{Step: t.Name, Line: t.Line}
		switch old := before[t]; {
		case t.noCache:
			x.Reasons = []Reason{{Kind: NoCache}}
		case last == nil:
			x.Reasons = []Reason{{Kind: FirstBuild}}
		case old == nil:
			x.Reasons = []Reason{{Kind: NewStep}}
		case old.Key == t.Key && old.Failed:
			x.Reasons = []Reason{{Kind: FailedLast}}
		case old.Key == t.Key:
			x.Reasons = []Reason{{Kind: Pruned}}
		default:
			if x.Reasons, err = e.compare(ctx, old, t); err != nil {
				return nil, 0, err
			}
		}
		all = append(all, x)
	}
	return all, len(steps), nil
}

// compare lists what of t differs from old, which is the same step before.
func (e *Engine) compare(ctx context.Context, old, t *tracedStep) ([]Reason, error) {
	var out []Reason
	if old.Text != t.Text {
		out = append(out, Reason{Kind: Instruction, Was: old.Text, Now: t.Text})
	}
	out = append(out, t.variables(old)...)
	for _, name := range sortedKeys(t.Set) {
		if was, ok := old.Set[name]; ok && was != t.Set[name] {
			if name == "shell" && old.Text != t.Text {
				continue // the instruction's form
			}
			out = append(out, Reason{Kind: Setting, Name: name})
		}
	}
	// Variables in the instruction itself: COPY $SRC /
	if was, now := instruction(old.Name), instruction(t.Name); len(out) == 0 && was != now {
		out = append(out, Reason{Kind: Instruction, Was: was, Now: now})
	}
	parts, err := e.compareParts(ctx, old, t)
	if err != nil {
		return nil, err
	}
	out = append(out, parts...)
	if len(out) == 0 {
		out = append(out, Reason{Kind: Operation})
	}
	return out, nil
}

// variables lists the environment's differences; an argument is told from ENV
// by the Dockerfile's having an ARG of that name.
func (t *tracedStep) variables(old *tracedStep) []Reason {
	names := map[string]bool{}
	for k, v := range t.Env {
		if was, ok := old.Env[k]; !ok || was != v {
			names[k] = true
		}
	}
	for k := range old.Env {
		if _, ok := t.Env[k]; !ok {
			names[k] = true
		}
	}
	var out []Reason
	for _, k := range sortedKeys(names) {
		kind := Environment
		if t.step != nil && declaresArg(t.step.v, k) {
			kind = Argument
		}
		out = append(out, Reason{Kind: kind, Name: k})
	}
	return out
}

var argLine = regexp.MustCompile(`(?mi)^[ \t]*ARG[ \t]+(.*)$`)

func declaresArg(v *Node, name string) bool {
	for _, p := range v.Sources {
		for _, m := range argLine.FindAllSubmatch(p.Info.GetData(), -1) {
			for _, word := range strings.Fields(string(m[1])) {
				if n, _, _ := strings.Cut(word, "="); n == name {
					return true
				}
			}
		}
	}
	return false
}

func (e *Engine) compareParts(ctx context.Context, old, t *tracedStep) ([]Reason, error) {
	var out []Reason
	for i := range t.Parts {
		p := &t.Parts[i]
		var was *tracedPart
		for j := range old.Parts {
			if old.Parts[j].Name == p.Name {
				was = &old.Parts[j]
			}
		}
		if was == nil || was.Digest == p.Digest {
			continue
		}
		r, err := e.comparePart(ctx, was, p)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func (e *Engine) comparePart(ctx context.Context, was, p *tracedPart) (Reason, error) {
	scheme, rest, isSource := strings.Cut(p.From, "://")
	if p.taken != nil && (scheme == "local" || !isSource) {
		name := rest
		if !isSource {
			name = p.From
			if s := stage(p.From); s != "" {
				name = "stage " + s
			}
		}
		files, err := e.changes(ctx, was, p)
		return Reason{Kind: Files, Name: name, Files: files}, err
	}
	switch {
	case scheme == "docker-image" && isSource, scheme == "oci-layout" && isSource:
		image, now, _ := strings.Cut(rest, "@")
		_, old, _ := strings.Cut(was.From, "://")
		oldImage, before, _ := strings.Cut(old, "@")
		if oldImage != image {
			return Reason{Kind: Base, Name: image, Was: oldImage, Now: image}, nil
		}
		return Reason{Kind: Base, Name: image, Was: before, Now: now}, nil
	case isSource && !strings.Contains(p.From, " "):
		return Reason{Kind: Source, Name: p.From}, nil
	}
	return Reason{Kind: Input, Name: p.From}, nil
}

// changes lists the files in which p differs from what it was; none where that
// is not known any more.
func (e *Engine) changes(ctx context.Context, was, p *tracedPart) ([]fileop.Change, error) {
	r, err := e.opt.Store.GetRecord(ctx, bucketListings, e.listingKey(string(was.Digest)))
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	now, err := p.taken.listing(ctx)
	if err != nil {
		return nil, err
	}
	files, err := fileop.Changes(r.Value, now)
	if errors.Is(err, oci.ErrInvalid) {
		return nil, nil // written by another version
	}
	return files, err
}

// match pairs each step of now with its like in last. Within a stage steps that
// are the same, by key or by text, pair in their order; what is left between
// two pairs pairs in order if it is the same kind of instruction, so that an
// inserted or a removed step does not shift the others. What is left of all
// pairs by text alone: a stage may have a new name.
func match(last, now []*tracedStep) map[*tracedStep]*tracedStep {
	pairs := map[*tracedStep]*tracedStep{}
	old, groups := map[string][]*tracedStep{}, map[string][]*tracedStep{}
	for _, t := range last {
		old[stage(t.Name)] = append(old[stage(t.Name)], t)
	}
	for _, t := range now {
		groups[stage(t.Name)] = append(groups[stage(t.Name)], t)
	}
	used := map[*tracedStep]bool{}
	for _, g := range sortedKeys(groups) {
		alignSteps(old[g], groups[g], func(a, b *tracedStep) {
			pairs[b] = a
			used[a] = true
		})
	}
	for _, b := range now {
		if pairs[b] != nil {
			continue
		}
		for _, a := range last {
			if !used[a] && a.Text == b.Text {
				pairs[b], used[a] = a, true
				break
			}
		}
	}
	return pairs
}

// alignSteps calls pair for the pairs of two stages: a longest common
// subsequence, and what is alike between its members.
func alignSteps(a, b []*tracedStep, pair func(a, b *tracedStep)) {
	if len(a)*len(b) > 1<<20 {
		return // no Dockerfile of a person: by text will do
	}
	same := func(x, y *tracedStep) bool { return x.Key == y.Key || x.Text == y.Text }
	// longest[i][j] is the length of the longest one of a[i:] and b[j:].
	longest := make([][]int, len(a)+1)
	for i := range longest {
		longest[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			if same(a[i], b[j]) {
				longest[i][j] = max(longest[i][j], longest[i+1][j+1]+1)
			}
		}
	}
	var restA, restB []*tracedStep
	between := func() {
		pairAlike(restA, restB, pair)
		restA, restB = nil, nil
	}
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		switch {
		case same(a[i], b[j]) && longest[i][j] == longest[i+1][j+1]+1:
			between()
			pair(a[i], b[j])
			i, j = i+1, j+1
		case longest[i+1][j] >= longest[i][j+1]:
			restA = append(restA, a[i])
			i++
		default:
			restB = append(restB, b[j])
			j++
		}
	}
	restA, restB = append(restA, a[i:]...), append(restB, b[j:]...)
	between()
}

// pairAlike pairs steps of the same instruction, those first whose texts have
// the most in common at their ends.
func pairAlike(a, b []*tracedStep, pair func(a, b *tracedStep)) {
	type candidate struct {
		a, b  *tracedStep
		alike int
	}
	var all []candidate
	for _, y := range b {
		for _, x := range a {
			if word(x.Text) == word(y.Text) {
				all = append(all, candidate{x, y, alike(x.Text, y.Text)})
			}
		}
	}
	slices.SortStableFunc(all, func(x, y candidate) int { return y.alike - x.alike })
	done := map[*tracedStep]bool{}
	for _, c := range all {
		if !done[c.a] && !done[c.b] {
			done[c.a], done[c.b] = true, true
			pair(c.a, c.b)
		}
	}
}

// alike counts the bytes that two texts begin and end with.
func alike(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	m := 0
	for m < min(len(a), len(b))-n && a[len(a)-1-m] == b[len(b)-1-m] {
		m++
	}
	return n + m
}

// word is the instruction of a line: RUN, COPY.
func word(text string) string {
	w, _, _ := strings.Cut(text, " ")
	return strings.ToUpper(w)
}
