package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/build/sshagent"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/sandbox"
)

// sshSocket mounts a socket of the agent that the mount asks for. The agent's
// keys are no part of any cache key, and nothing of them reaches the sandbox.
func (m *mounts) sshSocket(ctx context.Context, mnt *pb.Mount) error {
	opt := mnt.SSHOpt
	if opt == nil {
		return fmt.Errorf("ssh without options: %w", oci.ErrInvalid)
	}
	a := m.sshAgent(opt.ID)
	if a == nil {
		if opt.Optional {
			return nil
		}
		return fmt.Errorf("no SSH key %q forwarded from the client", opt.ID)
	}
	l, err := a.Listen(ctx, int(opt.Uid), int(opt.Gid), os.FileMode(opt.Mode&0o777))
	if err != nil {
		return err
	}
	m.closers = append(m.closers, func() { l.Close() })
	m.list = append(m.list, sandbox.Mount{Type: "bind", Source: l.Path, Destination: path.Join("/", mnt.Dest)})
	return nil
}

// Check refuses what the user has not allowed, in BuildKit's words, before
// anything of the graph runs.
func (e *Engine) Check(edge Edge) error {
	seen := map[*Node]bool{}
	var visit func(v *Node) error
	visit = func(v *Node) error {
		if v == nil || seen[v] {
			return nil
		}
		seen[v] = true
		for _, in := range v.Inputs {
			if err := visit(in.Vertex); err != nil {
				return err
			}
		}
		ex := v.Op.GetExec()
		if ex == nil {
			return nil
		}
		switch {
		case ex.Network == pb.NetMode_HOST && !e.opt.Allow["network.host"]:
			return errors.New("failed to load LLB: network.host is not allowed")
		case ex.Security == pb.SecurityMode_INSECURE && !e.opt.Allow["security.insecure"]:
			return errors.New("failed to load LLB: security.insecure is not allowed")
		}
		return nil
	}
	return visit(edge.Vertex)
}

// sshAgent is the agent with that id, nil if there is none.
func (e *Engine) sshAgent(id string) *sshagent.Agent {
	if id == "" {
		id = "default"
	}
	return e.opt.SSH[id]
}

// gitAgent is the socket through which git reaches the agent called id, made
// for each that a repository needs.
func (e *Engine) gitAgent(ctx context.Context, id string) (string, error) {
	a := e.sshAgent(id)
	if a == nil {
		return e.opt.GitAgent, nil
	}
	l, err := a.Listen(context.WithoutCancel(ctx), os.Getuid(), os.Getgid(), 0o600)
	if err != nil {
		return "", err
	}
	e.opened(l)
	return l.Path, nil
}
