package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/build/fileop"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// A trace is what the keys of a build's steps were made of. The last one of
// each Options.Trace is kept, to tell why steps of the next build run. It is
// written only when it differs from the one before, so a build in which nothing
// changed writes nothing; of the files that copies took it keeps listings,
// which are removed with the trace that they belong to.
const (
	bucketTraces   = "build.trace"  // Options.Trace → trace
	bucketListings = "build.listed" // Options.Trace/content digest → fileop listing
)

type trace struct {
	Steps []*tracedStep `json:"steps"`
}

// tracedStep is one step of a trace. Environment and settings are kept as
// hashes: values can be long, or nobody's business.
type tracedStep struct {
	Name   string            `json:"name"`
	Text   string            `json:"text"` // as the Dockerfile has it
	Line   int               `json:"line,omitempty"`
	Key    oci.Digest        `json:"key"`
	Op     oci.Digest        `json:"op"`
	Env    map[string]string `json:"env,omitempty"`
	Set    map[string]string `json:"set,omitempty"`
	Parts  []tracedPart      `json:"parts,omitempty"`
	Failed bool              `json:"failed,omitempty"`

	step    *step
	ran     bool // it was not in the cache
	noCache bool // nobody looked
}

// tracedPart is an ingredient of a key that came from another vertex.
type tracedPart struct {
	Name   string     `json:"n"`
	Digest oci.Digest `json:"d"`
	// From is a source's identifier, or the name of a step.
	From string `json:"f"`
	// Files tells that there is a listing.
	Files bool `json:"l,omitempty"`
	taken *taken
}

// taken is content that a key was made of.
type taken struct {
	in     *Snapshot
	copy   *pb.FileActionCopy
	digest oci.Digest
	files  *fileop.Selection // nil where the digest was remembered
}

// record notes the step for the trace; the function that it returns, how the
// step ended.
func (s *step) record(k key, noCache bool) func(cached bool, err error) {
	if s.opt.Trace == "" {
		return func(bool, error) {}
	}
	t := &tracedStep{Name: s.v.Name, Key: k.digest, noCache: noCache, step: s}
	t.Text, t.Line = s.v.source()
	if t.Text == "" {
		t.Text = instruction(t.Name)
	}
	t.settings(s.v.Op)
	for _, p := range k.parts {
		if p.Name == "operation" {
			t.Op = p.Digest
			continue
		}
		tp := tracedPart{Name: p.Name, Digest: p.Digest, From: s.from(p.Name)}
		for i := range s.taken {
			if s.taken[i].digest == p.Digest {
				tp.taken = &s.taken[i]
			}
		}
		t.Parts = append(t.Parts, tp)
	}
	s.mu.Lock()
	s.traced = append(s.traced, t)
	s.mu.Unlock()
	return func(cached bool, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		t.ran, t.Failed = !cached, err != nil
	}
}

// source is the text of the instruction that v comes from, and its line.
func (v *Node) source() (string, int) {
	for _, p := range v.Sources {
		if p.Info == nil || len(p.Ranges) == 0 {
			continue
		}
		lines := strings.Split(string(p.Info.Data), "\n")
		first, last := len(lines), 0
		for _, r := range p.Ranges {
			first, last = min(first, int(r.GetStart().GetLine())), max(last, int(r.GetEnd().GetLine()))
		}
		if first >= 1 && first <= last && last <= len(lines) {
			return strings.TrimSpace(strings.Join(lines[first-1:last], "\n")), first
		}
	}
	return "", 0
}

// from names the vertex that the key's part called name comes from.
func (s *step) from(name string) string {
	i, n := -1, 0
	switch op := s.v.Op.Op.(type) {
	case *pb.Op_Exec:
		if _, err := fmt.Sscanf(name, "mount %d:", &n); err == nil && n < len(op.Exec.Mounts) {
			i = int(op.Exec.Mounts[n].Input)
		}
	case *pb.Op_File:
		if _, err := fmt.Sscanf(name, "copy %d:", &n); err == nil && n < len(op.File.Actions) {
			i = int(op.File.Actions[n].SecondaryInput)
		}
	}
	if i < 0 {
		_, _ = fmt.Sscanf(name, "input %d", &i)
	}
	if i < 0 || i >= len(s.v.Inputs) || s.v.Inputs[i].Vertex == nil {
		return "scratch"
	}
	v := s.v.Inputs[i].Vertex
	if src := v.Op.GetSource(); src != nil {
		return credentials.ReplaceAllString(src.Identifier, "${1}xxxxx@")
	}
	return v.Name
}

// settings notes what of the operation has a name of its own.
func (t *tracedStep) settings(op *pb.Op) {
	ex := op.GetExec()
	if ex == nil || ex.Meta == nil {
		return
	}
	hash := func(s string) string { return digestOf(s).Encoded()[:16] }
	t.Env = map[string]string{}
	for _, e := range ex.Meta.Env {
		k, v, _ := strings.Cut(e, "=")
		t.Env[k] = hash(v)
	}
	t.Set = map[string]string{
		"working directory": hash(ex.Meta.Cwd),
		"user":              hash(ex.Meta.User),
		"network":           hash(ex.Network.String()),
		"security":          hash(ex.Security.String()),
		"platform":          hash(op.Platform.String()),
		"shell":             hash(strings.Join(ex.Meta.Args[:max(0, len(ex.Meta.Args)-1)], "\x00")),
	}
}

// prefix is what docker puts before a step's instruction: "[builder 2/4] ".
var prefix = regexp.MustCompile(`^\[(?:([^\]]*) )?\d+/\d+\] `)

// instruction is a step's name without its number.
func instruction(name string) string { return prefix.ReplaceAllString(name, "") }

// stage is the stage of a step's name, with its platform.
func stage(name string) string {
	if m := prefix.FindStringSubmatch(name); m != nil {
		return m[1]
	}
	return ""
}

// lastTrace is the trace of the last build before this one began, as it was
// parsed and as it stands in the store; nil if there is none.
func (e *Engine) lastTrace(ctx context.Context) (*trace, []byte, error) {
	e.last.once.Do(func() { e.last.trace, e.last.raw, e.last.err = e.readTrace(ctx) })
	return e.last.trace, e.last.raw, e.last.err
}

func (e *Engine) readTrace(ctx context.Context) (*trace, []byte, error) {
	r, err := e.opt.Store.GetRecord(ctx, bucketTraces, e.opt.Trace)
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	t := &trace{}
	if json.Unmarshal(r.Value, t) != nil {
		return nil, r.Value, nil // of another version
	}
	return t, r.Value, nil
}

// Remember keeps what this build's steps were made of, for the Explain of the
// next one. Of a build that failed, steps that were not reached stay as they
// were. It is called once, after Explain, when all steps have ended.
func (e *Engine) Remember(ctx context.Context, failed bool) error {
	if e.opt.Trace == "" || len(e.traced) == 0 {
		return nil
	}
	last, raw, err := e.lastTrace(ctx)
	if err != nil {
		return err
	}
	now := &trace{Steps: e.steps()}
	had := map[string]bool{}
	if last != nil {
		for _, t := range last.Steps {
			for _, p := range t.Parts {
				had[string(p.Digest)] = had[string(p.Digest)] || p.Files
			}
		}
		if failed {
			now.Steps = append(now.Steps, unreached(last.Steps, now.Steps)...)
		}
	}
	need := map[string]*taken{}
	for _, t := range now.Steps {
		for i := range t.Parts {
			p := &t.Parts[i]
			p.Files = p.Files || p.taken != nil
			if p.Files {
				need[string(p.Digest)] = p.taken
			}
		}
	}
	b, err := json.Marshal(now)
	if err != nil || bytes.Equal(b, raw) {
		return err
	}
	for d, t := range need {
		if had[d] || t == nil {
			continue
		}
		packed, err := t.listing(ctx)
		if err != nil {
			return err
		}
		if err := e.opt.Store.PutRecord(ctx, store.Record{Bucket: bucketListings, Key: e.listingKey(d), Value: packed}); err != nil {
			return err
		}
	}
	if err := e.opt.Store.PutRecord(ctx, store.Record{Bucket: bucketTraces, Key: e.opt.Trace, Value: b}); err != nil {
		return err
	}
	for d, files := range had {
		if _, ok := need[d]; files && !ok {
			if err := e.opt.Store.DeleteRecord(ctx, bucketListings, e.listingKey(d)); err != nil && !errors.Is(err, oci.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

func (e *Engine) listingKey(d string) string { return e.opt.Trace + "/" + d }

// listing packs what was taken; a digest that was only remembered has it made now.
func (t *taken) listing(ctx context.Context) ([]byte, error) {
	if t.files == nil {
		view, err := t.in.View(ctx)
		if err != nil {
			return nil, err
		}
		if t.files, err = fileop.Select(ctx, view, t.copy); err != nil {
			return nil, err
		}
	}
	return t.files.Listing()
}

// steps lists what was traced in the order of the Dockerfile.
func (e *Engine) steps() []*tracedStep {
	e.mu.Lock()
	defer e.mu.Unlock()
	slices.SortFunc(e.traced, func(a, b *tracedStep) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(string(a.Key), string(b.Key))
	})
	return e.traced
}

// unreached are the steps of the last build that have no counterpart now.
func unreached(last, now []*tracedStep) []*tracedStep {
	matched := map[*tracedStep]bool{}
	for _, t := range match(last, now) {
		matched[t] = true
	}
	var out []*tracedStep
	for _, t := range last {
		if !matched[t] {
			out = append(out, t)
		}
	}
	return out
}

// traceAge is how long what --explain compares with stays after the last build.
const traceAge = 30 * 24 * time.Hour

// staleTraces are the traces that no build has used for long, with their
// listings. Younger ones outlive their results: they tell that those were pruned.
func staleTraces(ctx context.Context, s *store.Store, now time.Time) ([]store.Record, error) {
	traces, err := s.Records(ctx, bucketTraces)
	if err != nil {
		return nil, err
	}
	keep := map[string]bool{}
	var stale []store.Record
	for _, r := range traces {
		if now.Sub(r.Used) > traceAge {
			stale = append(stale, r)
		} else {
			keep[r.Key] = true
		}
	}
	if len(stale) == 0 {
		return nil, nil
	}
	listings, err := s.Records(ctx, bucketListings)
	if err != nil {
		return nil, err
	}
	for _, r := range listings {
		if of, _, _ := strings.Cut(r.Key, "/"); !keep[of] {
			stale = append(stale, r)
		}
	}
	return stale, nil
}
