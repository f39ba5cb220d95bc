package build

import (
	"context"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/sandbox"
)

// FailedStep is a command that failed, while its file system is still there.
type FailedStep struct {
	Name string
	Err  error
	// Spec runs another process in the command's place, with its mounts,
	// environment, directory and user, once it has Args.
	Spec *sandbox.Spec
	// Shells are worth trying, the instruction's own first.
	Shells [][]string
}

// failed lets the user look at what the command left, and returns err.
func (s *step) failed(ctx context.Context, op *pb.ExecOp, m *mounts, err error) error {
	if s.opt.OnFail == nil || ctx.Err() != nil {
		return err
	}
	spec, bad := s.spec(ctx, op, m)
	if bad != nil {
		return err
	}
	spec.Args = nil
	s.opt.OnFail(ctx, &FailedStep{Name: s.v.Name, Err: err, Spec: spec, Shells: shells(op.Meta.Args)})
	return err
}

// shells are the programs that may serve as a shell beside a command: the one
// that runs it, if it is "SHELL … -c TEXT", and the usual ones.
func shells(args []string) [][]string {
	var all [][]string
	if n := len(args); n >= 3 && strings.HasPrefix(args[n-2], "-") && strings.HasSuffix(args[n-2], "c") {
		all = append(all, args[:1])
	}
	for _, p := range []string{"/bin/bash", "/bin/sh", "/busybox/sh", "/bin/ash"} {
		if len(all) == 0 || all[0][0] != p {
			all = append(all, []string{p})
		}
	}
	return slices.Concat(all, [][]string{{"/bin/busybox", "sh"}})
}
