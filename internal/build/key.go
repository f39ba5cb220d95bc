package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/build/fileop"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// Cache keys are content-based. An exec's key is made of its operation and its
// inputs' keys; a copy's of the content it copies, not of how that came to be.
// A step that was run again and copied the same bytes therefore leaves all
// that follows cached.
//
// Buckets of records in the store.
const (
	bucketSteps    = "build"        // key → result
	bucketSelected = "build.select" // layers + copy → content digest
)

// keyVersion changes when the same key could mean another result: it makes
// every older record unfindable.
const keyVersion = "1"

// Part is one ingredient of a key. Parts are kept with the result, so that the
// reason why a step was not cached can be told.
type Part struct {
	Name   string     `json:"n"`
	Digest oci.Digest `json:"d"`
}

// key is a step's identity in the cache.
type key struct {
	digest oci.Digest
	parts  []Part
}

func keyOf(parts []Part) key {
	all := []string{keyVersion}
	for _, p := range parts {
		all = append(all, p.Name, string(p.Digest))
	}
	return key{digest: digestOf(all...), parts: parts}
}

// output is the key of the step's i-th output.
func (k key) output(i int) oci.Digest { return digestOf("output", string(k.digest), fmt.Sprint(i)) }

func (s *step) key(ctx context.Context) (key, error) {
	switch op := s.v.Op.Op.(type) {
	case *pb.Op_Exec:
		return s.execKey(ctx, op.Exec)
	case *pb.Op_File:
		return s.fileKey(ctx, op.File)
	}
	// Merge and diff are made of nothing but their inputs.
	parts := []Part{{"operation", opDigest(s.v.Op)}}
	for i, in := range s.in {
		k, err := in.Key(ctx)
		if err != nil {
			return key{}, err
		}
		parts = append(parts, Part{fmt.Sprintf("input %d", i), k})
	}
	return keyOf(parts), nil
}

// opDigest hashes an operation without its inputs.
func opDigest(op *pb.Op) oci.Digest {
	c := op.CloneVT()
	c.Inputs = nil
	b, _ := c.MarshalVT() // which has no way to fail
	return digestOf("op", string(b))
}

// fileKey: inputs that are changed or looked at for names count by their key;
// inputs that are only copied from count by the content that is copied.
func (s *step) fileKey(ctx context.Context, op *pb.FileOp) (key, error) {
	parts := []Part{{"operation", opDigest(s.v.Op)}}
	whole := make([]bool, len(s.in))
	use := func(i int64) {
		if i >= 0 && int(i) < len(whole) {
			whole[i] = true
		}
	}
	for n, a := range op.Actions {
		use(a.Input)
		for _, o := range owners(a) {
			if o != nil && o.GetByName() != nil {
				use(o.GetByName().Input)
			}
		}
		cp := a.GetCopy()
		if cp == nil {
			continue
		}
		if j := int(a.SecondaryInput); j >= 0 && j < len(s.in) {
			d, err := s.contentOf(ctx, s.in[j], cp)
			if err != nil {
				return key{}, err
			}
			parts = append(parts, Part{fmt.Sprintf("copy %d: %s", n, cp.Src), d})
		}
	}
	for i, in := range s.in {
		if !whole[i] {
			continue
		}
		k, err := in.Key(ctx)
		if err != nil {
			return key{}, err
		}
		parts = append(parts, Part{fmt.Sprintf("input %d", i), k})
	}
	return keyOf(parts), nil
}

func owners(a *pb.FileAction) []*pb.UserOpt {
	var o *pb.ChownOpt
	switch a := a.Action.(type) {
	case *pb.FileAction_Copy:
		o = a.Copy.Owner
	case *pb.FileAction_Mkdir:
		o = a.Mkdir.Owner
	case *pb.FileAction_Mkfile:
		o = a.Mkfile.Owner
	case *pb.FileAction_Symlink:
		o = a.Symlink.Owner
	}
	if o == nil {
		return nil
	}
	return []*pb.UserOpt{o.User, o.Group}
}

// selected is the content digest of what cp takes from in. Of a stack of
// layers it never changes, so it is remembered: a rebuild does not read the
// tables of contents of a stage that it only copies from.
func (s *step) selected(ctx context.Context, in *Snapshot, cp *pb.FileActionCopy) (oci.Digest, error) {
	var memo string
	if in != nil && in.view == nil {
		b, _ := cp.MarshalVT() // which has no way to fail
		parts := []string{keyVersion, string(b)}
		for _, l := range in.Layers {
			parts = append(parts, string(l.DiffID))
		}
		memo = string(digestOf(parts...))
		if r, err := s.opt.Store.GetRecord(ctx, bucketSelected, memo); err == nil {
			if in.lazy == nil || in.lazy.resolved() != nil { // else listing the files would fetch them
				s.taken = append(s.taken, taken{in: in, copy: cp, digest: oci.Digest(r.Value)})
			}
			return oci.Digest(r.Value), nil
		} else if !errors.Is(err, oci.ErrNotFound) {
			return "", err
		}
	}
	view, err := in.View(ctx)
	if err != nil {
		return "", err
	}
	sel, err := fileop.Select(ctx, view, cp)
	if err != nil {
		// docker's words, which scripts know; its ref is an id of a moment.
		return "", fmt.Errorf("failed to compute cache key: failed to calculate checksum of ref %s: %w", s.v.Digest.Encoded()[:25], err)
	}
	if memo != "" {
		err = s.opt.Store.PutRecord(ctx, store.Record{Bucket: bucketSelected, Key: memo, Value: []byte(sel.Digest)})
	}
	s.taken = append(s.taken, taken{in: in, copy: cp, digest: sel.Digest, files: sel})
	return sel.Digest, err
}

// execKey: what only helps to run the command (a cache's name, where a host
// name points, proxies) does not count; read-only mounts count by their
// content, the root and what is written to by their key.
func (s *step) execKey(ctx context.Context, op *pb.ExecOp) (key, error) {
	c := op.CloneVT()
	c.Meta.ProxyEnv = nil
	for _, h := range c.Meta.ExtraHosts {
		h.IP = ""
	}
	for _, m := range c.Mounts {
		m.Selector = ""
		if m.CacheOpt != nil {
			m.CacheOpt = &pb.CacheOpt{}
		}
	}
	b, err := json.Marshal(struct {
		Exec     *pb.ExecOp
		Platform *pb.Platform
	}{c, s.v.Op.Platform})
	if err != nil {
		return key{}, err
	}
	parts := []Part{{"operation", digestOf("exec", string(b))}}
	for n, m := range op.Mounts {
		if m.Input < 0 || m.MountType == pb.MountType_TMPFS {
			continue
		}
		if int(m.Input) >= len(s.in) {
			return key{}, fmt.Errorf("mount %s names input %d of %d: %w", m.Dest, m.Input, len(s.in), oci.ErrInvalid)
		}
		in := s.in[m.Input]
		var d oci.Digest
		// What cannot flow into the result may be judged by the part that is seen.
		contentOnly := m.Dest != pb.RootMount && (m.Readonly || m.Output == int64(pb.SkipOutput))
		switch {
		case m.MountType == pb.MountType_CACHE:
			continue
		case contentOnly:
			sel := path.Join("/", m.Selector)
			d, err = s.contentOf(ctx, in, &pb.FileActionCopy{Src: sel, Dest: "/", FollowSymlink: true, DirCopyContents: true})
		default:
			d, err = in.Key(ctx)
		}
		if err != nil {
			return key{}, err
		}
		parts = append(parts, Part{fmt.Sprintf("mount %d: %s", n, m.Dest), d})
	}
	return keyOf(parts), nil
}

// result is a step's value in the cache.
type result struct {
	Outputs []output  `json:"outputs"`
	Parts   []Part    `json:"parts"`
	Name    string    `json:"name"`
	At      time.Time `json:"at"`
}

type output struct {
	Layers []Layer `json:"layers"`
}

// lookup returns the step's outputs if the cache has them, whole; else nil.
func (s *step) lookup(ctx context.Context, k key) ([]*Snapshot, error) {
	res, err := s.result(ctx, k.digest)
	if err != nil || res == nil {
		return nil, err
	}
	out := make([]*Snapshot, len(res.Outputs))
	for i, o := range res.Outputs {
		for _, l := range o.Layers {
			if ok, err := s.has(ctx, l.Descriptor); err != nil || !ok {
				return nil, err
			}
		}
		out[i] = newSnapshot(s.opt.Store, o.Layers, k.output(i))
	}
	return out, nil
}

// result is what the cache has under a key, and the build's lease now holds;
// nil if that is nothing.
func (e *Engine) result(ctx context.Context, key oci.Digest) (*result, error) {
	e.mu.Lock()
	f, ok := e.foreseen[key]
	e.mu.Unlock()
	if ok {
		return f.result, e.opt.Store.Hold(ctx, f.holds...)
	}
	r, err := e.opt.Store.GetRecord(ctx, bucketSteps, string(key))
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return resultOf(r), nil
}

// resultOf reads a record of the cache; nil where something else wrote it, and
// the step is to be made again.
func resultOf(r *store.Record) *result {
	res := &result{}
	if json.Unmarshal(r.Value, res) != nil {
		return nil
	}
	return res
}

// has tells whether the store has d. Under the build's lease what is there
// stays, and every step's record names all layers below it again: asking once
// for each layer halves the time of a rebuild with nothing changed.
func (e *Engine) has(ctx context.Context, d oci.Descriptor) (bool, error) {
	e.mu.Lock()
	known := e.present[d.Digest]
	e.mu.Unlock()
	if known {
		return true, e.opt.Store.Hold(ctx, d.Digest) // it may be there by Foresee only
	}
	ok, err := e.opt.Store.Has(ctx, d)
	if ok {
		e.mu.Lock()
		e.present[d.Digest] = true
		e.mu.Unlock()
	}
	return ok, err
}

// remember keeps the step's outputs in the cache.
func (s *step) remember(ctx context.Context, k key, out []*Snapshot) error {
	res := result{Parts: k.parts, Name: s.v.Name, At: time.Now().UTC()}
	var holds []oci.Digest
	seen := map[oci.Digest]bool{}
	for i, snap := range out {
		if snap != nil && snap.view != nil {
			return nil // it lives as long as this build
		}
		var o output
		if snap != nil {
			o.Layers = snap.Layers
			if snap.key == "" {
				snap.key = k.output(i)
			}
		}
		for _, l := range o.Layers {
			if !seen[l.DiffID] {
				seen[l.DiffID] = true
				holds = append(holds, l.DiffID)
			}
		}
		res.Outputs = append(res.Outputs, o)
	}
	b, err := json.Marshal(res)
	if err != nil {
		return err
	}
	s.changed("")
	return s.opt.Store.PutRecord(ctx, store.Record{Bucket: bucketSteps, Key: string(k.digest), Value: b, Holds: holds})
}
