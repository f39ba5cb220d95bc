package build

import (
	"context"
	"errors"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/oci"
)

func marshal(t testing.TB, st llb.State) *pb.Definition {
	t.Helper()
	def, err := st.Marshal(context.Background(), llb.LinuxAmd64)
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}

func TestLoad(t *testing.T) {
	base := llb.Image("docker.io/library/busybox:latest")
	st := base.Run(llb.Shlex("true"), llb.WithCustomName("[2/2] RUN true")).Root()
	e, err := Load(marshal(t, st))
	if err != nil {
		t.Fatal(err)
	}
	if e.Vertex.Op.GetExec() == nil || e.Vertex.Name != "[2/2] RUN true" {
		t.Errorf("got vertex %q, an exec was asked for", e.Vertex.Name)
	}
	if len(e.Vertex.Inputs) != 1 || e.Vertex.Inputs[0].Vertex.Op.GetSource() == nil {
		t.Errorf("the exec's input is not the image: %v", e.Vertex.Inputs)
	}
}

func TestLoadScratch(t *testing.T) {
	for name, def := range map[string]*pb.Definition{"nil": nil, "empty": {}, "scratch": marshal(t, llb.Scratch())} {
		if e, err := Load(def); err != nil || e.Vertex != nil {
			t.Errorf("%s: got %v, %v; scratch has no vertex", name, e.Vertex, err)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	op := func(o *pb.Op) []byte { b, _ := o.MarshalVT(); return b }
	for name, def := range map[string]*pb.Definition{
		"not protobuf":      {Def: [][]byte{[]byte("\xff\xff\xff")}},
		"a missing input":   {Def: [][]byte{op(&pb.Op{Inputs: []*pb.Input{{Digest: "sha256:00"}}})}},
		"an end with an op": {Def: [][]byte{op(&pb.Op{Inputs: []*pb.Input{{Digest: "x"}}, Op: &pb.Op_Source{Source: &pb.SourceOp{}}})}},
		"two ends":          {Def: [][]byte{op(&pb.Op{Inputs: []*pb.Input{{Digest: "x"}, {Digest: "y"}}})}},
	} {
		if _, err := Load(def); !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("%s: got %v, want an ErrInvalid", name, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, st := range []llb.State{
		llb.Scratch(),
		llb.Image("busybox").Run(llb.Shlex("true")).Root(),
		llb.Scratch().File(llb.Mkdir("/a", 0o755).Mkfile("/a/b", 0o644, []byte("x"))),
		llb.Merge([]llb.State{llb.Image("a"), llb.Local("context")}),
	} {
		b, err := marshal(f, st).MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var def pb.Definition
		if def.UnmarshalVT(b) != nil {
			return
		}
		if e, err := Load(&def); err == nil && e.Vertex != nil && e.Vertex.Op == nil {
			t.Error("a vertex without an operation")
		}
	})
}
