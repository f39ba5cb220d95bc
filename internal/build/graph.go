package build

import (
	"encoding/json"
	"fmt"
	"regexp"
	"sort"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/oci"
)

// Node is one operation of an LLB graph.
type Node struct {
	Digest      oci.Digest
	Op          *pb.Op
	Inputs      []Edge
	Name        string
	IgnoreCache bool
	// Sources are the places in a Dockerfile that the operation comes from.
	Sources []Place
	// Resources are limits for the command; they do not change its key.
	Resources *pb.LinuxResources
}

// Place is a range of lines in a source file.
type Place struct {
	Info   *pb.SourceInfo
	Ranges []*pb.Range
}

// Edge is one output of a Node; a nil Vertex is scratch.
type Edge struct {
	Vertex *Node
	Index  int
}

// credentials matches what a URL has of them: a step's name is shown to everybody.
var credentials = regexp.MustCompile(`(://)[^/@\s]*:[^/@\s]*@`)

// maxOps bounds a definition; the largest real Dockerfiles have some hundreds.
const maxOps = 100_000

// Load decodes an LLB definition and returns the edge it ends in. A definition
// that is no finite graph of known operations fails with oci.ErrInvalid. An
// empty one is scratch.
func Load(def *pb.Definition) (Edge, error) {
	if def == nil || len(def.Def) == 0 {
		return Edge{}, nil
	}
	if len(def.Def) > maxOps {
		return Edge{}, fmt.Errorf("LLB definition has %d operations, the most is %d: %w", len(def.Def), maxOps, oci.ErrInvalid)
	}
	l := loader{def: def, ops: map[oci.Digest]*pb.Op{}, nodes: map[oci.Digest]*Node{}}
	var last oci.Digest
	for _, b := range def.Def {
		var op pb.Op
		if err := op.Unmarshal(b); err != nil {
			return Edge{}, fmt.Errorf("LLB operation: %v: %w", err, oci.ErrInvalid)
		}
		last = digest.FromBytes(b)
		l.ops[last] = &op
	}
	// The last operation is not an operation: it names the edge that is asked for.
	end := l.ops[last]
	if len(end.Inputs) == 0 {
		return Edge{}, nil
	}
	if len(end.Inputs) != 1 || end.Op != nil {
		return Edge{}, fmt.Errorf("LLB definition does not end in one edge: %w", oci.ErrInvalid)
	}
	return l.edge(end.Inputs[0], 0)
}

type loader struct {
	def   *pb.Definition
	ops   map[oci.Digest]*pb.Op
	nodes map[oci.Digest]*Node
}

func (l *loader) edge(in *pb.Input, depth int) (Edge, error) {
	v, err := l.node(oci.Digest(in.Digest), depth)
	if err != nil {
		return Edge{}, err
	}
	return Edge{Vertex: v, Index: int(in.Index)}, nil
}

func (l *loader) node(d oci.Digest, depth int) (*Node, error) {
	if v := l.nodes[d]; v != nil {
		return v, nil
	}
	op := l.ops[d]
	if op == nil {
		return nil, fmt.Errorf("LLB names an operation %s that is not there: %w", d, oci.ErrInvalid)
	}
	// Digests make cycles impossible; the depth bounds the stack.
	if depth > maxOps {
		return nil, fmt.Errorf("LLB is too deep: %w", oci.ErrInvalid)
	}
	if err := complete(op); err != nil {
		return nil, fmt.Errorf("LLB operation %s: %w", d, err)
	}
	v := &Node{Digest: d, Op: op}
	for _, in := range op.Inputs {
		e, err := l.edge(in, depth+1)
		if err != nil {
			return nil, err
		}
		v.Inputs = append(v.Inputs, e)
	}
	if md := l.def.Metadata[string(d)]; md != nil {
		v.IgnoreCache = md.IgnoreCache
		v.Name = md.Description["llb.customname"]
		v.Resources = md.LinuxResources
	}
	if v.Name == "" {
		v.Name = defaultName(op)
	}
	v.Name = credentials.ReplaceAllString(v.Name, "${1}xxxxx@")
	v.Sources = l.places(d)
	l.nodes[d] = v
	return v, nil
}

// complete fails with oci.ErrInvalid where op lacks a part that every operation
// of its kind has.
func complete(op *pb.Op) error {
	switch o := op.Op.(type) {
	case nil:
		return fmt.Errorf("it does nothing: %w", oci.ErrInvalid)
	case *pb.Op_Exec:
		if len(o.Exec.GetMeta().GetArgs()) == 0 {
			return fmt.Errorf("it is a command without arguments: %w", oci.ErrInvalid)
		}
	case *pb.Op_File:
		for _, a := range o.File.GetActions() {
			if a.GetAction() == nil {
				return fmt.Errorf("it is a file operation without an action: %w", oci.ErrInvalid)
			}
		}
	}
	return nil
}

func (l *loader) places(d oci.Digest) []Place {
	src := l.def.Source
	if src == nil || src.Locations[string(d)] == nil {
		return nil
	}
	var places []Place
	for _, loc := range src.Locations[string(d)].Locations {
		if loc.SourceIndex < 0 || int(loc.SourceIndex) >= len(src.Infos) {
			continue
		}
		places = append(places, Place{Info: src.Infos[loc.SourceIndex], Ranges: loc.Ranges})
	}
	return places
}

// defaultName is what BuildKit calls an operation that has no name.
func defaultName(op *pb.Op) string {
	switch op := op.Op.(type) {
	case *pb.Op_Source:
		return op.Source.Identifier
	case *pb.Op_Exec:
		return strings.Join(op.Exec.GetMeta().GetArgs(), " ")
	case *pb.Op_File:
		names := make([]string, 0, len(op.File.Actions))
		for _, a := range op.File.Actions {
			switch a := a.Action.(type) {
			case *pb.FileAction_Copy:
				names = append(names, fmt.Sprintf("copy %s %s", a.Copy.Src, a.Copy.Dest))
			case *pb.FileAction_Mkfile:
				names = append(names, "mkfile "+a.Mkfile.Path)
			case *pb.FileAction_Mkdir:
				names = append(names, "mkdir "+a.Mkdir.Path)
			case *pb.FileAction_Rm:
				names = append(names, "rm "+a.Rm.Path)
			case *pb.FileAction_Symlink:
				names = append(names, fmt.Sprintf("symlink %s -> %s", a.Symlink.Newpath, a.Symlink.Oldpath))
			}
		}
		return strings.Join(names, ", ")
	case *pb.Op_Merge:
		return "merge"
	case *pb.Op_Diff:
		return "diff"
	}
	return "unknown"
}

// digestOf hashes parts unambiguously: no two lists of parts have one digest.
func digestOf(parts ...string) oci.Digest {
	b, _ := json.Marshal(parts) // strings always marshal
	return digest.FromBytes(b)
}

// sortedKeys returns m's keys in order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
