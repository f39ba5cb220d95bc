package build

import (
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// FuzzKey makes keys and traces of whatever graphs Load accepts: no operation,
// however odd, may panic.
func FuzzKey(f *testing.F) {
	for _, op := range []*pb.Op{
		{Op: &pb.Op_Exec{Exec: &pb.ExecOp{}}},
		{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"x"}}, Mounts: []*pb.Mount{{Dest: "/"}}}}},
		{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{}, Mounts: []*pb.Mount{{Dest: "/", Input: 7}, {Input: -5, MountType: pb.MountType_CACHE}, nil}}}},
		{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{}, nil, {Input: 9, SecondaryInput: -9, Action: &pb.FileAction_Copy{}}}}}},
		{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Src: "/*", AllowWildcard: true, ExcludePatterns: []string{"["}}}}}}}},
		{Op: &pb.Op_Merge{Merge: &pb.MergeOp{}}},
		{Op: &pb.Op_Diff{}},
		{},
	} {
		b, err := op.MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte("[1/2] RUN x"))
	}
	f.Fuzz(func(t *testing.T, op, name []byte) {
		end, err := (&pb.Op{Inputs: []*pb.Input{{Digest: string(digest.FromBytes(op))}}}).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		def := &pb.Definition{Def: [][]byte{op, end}, Metadata: map[string]*pb.OpMetadata{
			string(digest.FromBytes(op)): {Description: map[string]string{"llb.customname": string(name)}},
		}}
		edge, err := Load(def)
		if err != nil || edge.Vertex == nil {
			return
		}
		e := New(Options{Trace: "x"})
		defer e.Close()
		_ = e.Check(edge)
		s := &step{Engine: e, v: edge.Vertex, in: make([]*Snapshot, len(edge.Vertex.Inputs))}
		if edge.Vertex.Op.GetSource() != nil {
			return
		}
		k, err := s.key(t.Context())
		if err == nil {
			s.record(k, false)(false, nil)
			_ = match(e.steps(), e.steps())
		}
	})
}
