package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/rootfs"
	"github.com/strake-project/strake/internal/sandbox"
)

// defaultPath is what a command gets whose image sets no PATH.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ExitError is a command that ended with another exit code than 0.
type ExitError struct {
	Args []string
	Code int
	OOM  bool
}

func (e *ExitError) Error() string {
	why := fmt.Sprintf("exit code: %d", e.Code)
	if e.OOM {
		why += ": out of memory"
	}
	return fmt.Sprintf("process %q did not complete successfully: %s", strings.Join(e.Args, " "), why)
}

// exec runs a command over its mounts; what it changed becomes a layer for
// each mount that has an output.
func (s *step) exec(ctx context.Context, op *pb.ExecOp) ([]*Snapshot, error) {
	if len(op.CdiDevices) > 0 {
		return nil, fmt.Errorf("device %s: devices in a build are %w", op.CdiDevices[0].Name, oci.ErrUnsupported)
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	outer := ctx
	ctx, release, err := s.opt.Store.Lease(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	m := &mounts{step: s, op: op}
	defer m.close()
	if err := m.prepare(ctx); err != nil {
		return nil, err
	}
	spec, err := s.spec(ctx, op, m)
	if err != nil {
		return nil, err
	}
	stdout := &logWriter{s: s, stream: 1}
	stderr := &logWriter{s: s, stream: 2}
	spec.Stdout, spec.Stderr = stdout, stderr
	p, err := sandbox.Start(ctx, spec)
	if err != nil {
		return nil, s.failed(ctx, op, m, s.foreign(err, startError(op.Meta.Args, stderr, err)))
	}
	exit, err := p.Wait()
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if !validExit(op, exit.Code) {
		return nil, s.failed(ctx, op, m, &ExitError{Args: op.Meta.Args, Code: exit.Code, OOM: exit.OOM})
	}
	out, err := m.commit(ctx)
	for _, snap := range out { // the build's own lease goes on where this one ends
		if err == nil {
			err = s.opt.Store.Hold(outer, snap.DiffIDs()...)
		}
	}
	return out, err
}

// startError is a command that could not be started at all. One that is not
// there or no program is, as in docker, a process that printed why and ended
// with code 1.
func startError(args []string, out io.Writer, err error) error {
	var start *sandbox.StartError
	if !errors.As(err, &start) {
		return err
	}
	switch start.Code {
	case 126, 127:
		fmt.Fprintf(out, "unable to start container process: %v\n", err)
		return &ExitError{Args: args, Code: 1}
	case 255: // the kernel would not run it: no interpreter, no format it knows
		fmt.Fprintf(out, "%v\n", err)
		return &ExitError{Args: args, Code: 1}
	}
	return fmt.Errorf("process %q did not complete successfully: %w", strings.Join(args, " "), err)
}

func validExit(op *pb.ExecOp, code int) bool {
	if len(op.Meta.ValidExitCodes) == 0 {
		return code == 0
	}
	for _, c := range op.Meta.ValidExitCodes {
		if int(c) == code {
			return true
		}
	}
	return false
}

func (s *step) spec(ctx context.Context, op *pb.ExecOp, m *mounts) (*sandbox.Spec, error) {
	meta := op.Meta
	spec := &sandbox.Spec{
		Root:     *m.root,
		ReadOnly: m.rootReadOnly,
		Mounts:   m.list,
		Args:     meta.Args,
		Env:      append([]string(nil), meta.Env...),
		Cwd:      meta.Cwd,
		User:     meta.User,
		Hostname: meta.Hostname,
		Limits:   sandbox.Limits{CgroupParent: meta.CgroupParent},
		Step:     true,
	}
	if spec.Hostname == "" {
		spec.Hostname = "buildkitsandbox"
	}
	for _, h := range meta.ExtraHosts {
		if net.ParseIP(h.IP) == nil {
			return nil, fmt.Errorf("extra host %s has address %q: %w", h.Host, h.IP, oci.ErrInvalid)
		}
		spec.ExtraHosts = append(spec.ExtraHosts, h.Host+":"+h.IP)
	}
	spec.Env = append(spec.Env, proxyEnv(meta.ProxyEnv)...)
	hasPath := false
	for _, e := range spec.Env {
		hasPath = hasPath || strings.HasPrefix(e, "PATH=")
	}
	if !hasPath {
		spec.Env = append(spec.Env, defaultPath)
	}
	for _, se := range op.Secretenv {
		v, err := s.secret(ctx, se.ID)
		if errors.Is(err, oci.ErrNotFound) && se.Optional {
			continue
		}
		if err != nil {
			return nil, err
		}
		spec.Env = append(spec.Env, se.Name+"="+string(v))
	}
	switch op.Network {
	case pb.NetMode_NONE:
		spec.Network = sandbox.None
	case pb.NetMode_HOST:
		spec.Network = sandbox.Host
	default:
		if err := s.connect(ctx, spec); err != nil {
			return nil, err
		}
	}
	if op.Security == pb.SecurityMode_INSECURE {
		spec.Privileged = true
	}
	for _, u := range meta.Ulimit {
		spec.Rlimits = append(spec.Rlimits, sandbox.Rlimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	if r := s.v.Resources; r != nil {
		spec.Limits.Memory, spec.Limits.MemorySwap = r.Memory, r.MemorySwap
		spec.Limits.CPUShares, spec.Limits.CPUQuota = r.CpuShares, r.CpuQuota
		spec.Limits.CPUPeriod = int64(r.CpuPeriod)
		spec.Limits.CPUSetCPUs, spec.Limits.CPUSetMems = r.CpusetCpus, r.CpusetMems
	}
	return spec, nil
}

// connect gives a command the build's network, or the machine's.
func (s *step) connect(ctx context.Context, spec *sandbox.Spec) error {
	spec.Network = sandbox.Host
	if s.opt.Network == nil {
		return nil
	}
	net, err := s.opt.Network(ctx)
	if err == nil && net != nil {
		spec.Network, spec.UserNet = sandbox.User, net
	}
	return err
}

func proxyEnv(p *pb.ProxyEnv) []string {
	if p == nil {
		return nil
	}
	var env []string
	for _, v := range []struct{ name, value string }{
		{"HTTP_PROXY", p.HttpProxy}, {"HTTPS_PROXY", p.HttpsProxy}, {"FTP_PROXY", p.FtpProxy},
		{"NO_PROXY", p.NoProxy}, {"ALL_PROXY", p.AllProxy},
	} {
		if v.value != "" {
			env = append(env, v.name+"="+v.value, strings.ToLower(v.name)+"="+v.value)
		}
	}
	return env
}

func (s *step) secret(ctx context.Context, id string) ([]byte, error) {
	if s.opt.Secret == nil {
		return nil, fmt.Errorf("secret %s: %w", id, oci.ErrNotFound)
	}
	b, err := s.opt.Secret(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", id, err)
	}
	return b, nil
}

// logWriter sends what a command prints as events.
type logWriter struct {
	s      *step
	stream int
}

func (w *logWriter) Write(p []byte) (int, error) {
	data := append([]byte(nil), p...)
	w.s.Emit(Event{Log: &Log{Vertex: w.s.v.Digest, Stream: w.stream, Data: data, At: time.Now()}})
	return len(p), nil
}

// mounts are a command's file systems: the root, other snapshots, caches,
// tmpfs and secrets.
type mounts struct {
	*step
	op           *pb.ExecOp
	root         *rootfs.Root
	rootReadOnly bool
	list         []sandbox.Mount
	outputs      []mountOutput
	closers      []func()
}

type mountOutput struct {
	index int
	in    *Snapshot
	root  *rootfs.Root // nil: unchanged
}

func (m *mounts) close() {
	for _, c := range m.closers {
		c()
	}
}

func (m *mounts) prepare(ctx context.Context) error {
	sorted := append([]*pb.Mount(nil), m.op.Mounts...)
	sort.SliceStable(sorted, func(i, j int) bool { return path.Clean(sorted[i].Dest) < path.Clean(sorted[j].Dest) })
	for _, mnt := range sorted {
		if err := m.add(ctx, mnt); err != nil {
			if mnt.MountType == pb.MountType_SECRET || mnt.MountType == pb.MountType_SSH {
				return err // BuildKit's words, which name the secret
			}
			return fmt.Errorf("mount %s: %w", mnt.Dest, err)
		}
	}
	if m.root == nil {
		return fmt.Errorf("command has no root mount: %w", oci.ErrInvalid)
	}
	return nil
}

func (m *mounts) add(ctx context.Context, mnt *pb.Mount) error {
	switch mnt.MountType {
	case pb.MountType_BIND:
		return m.bind(ctx, mnt)
	case pb.MountType_TMPFS:
		m.list = append(m.list, sandbox.Mount{Type: "tmpfs", Destination: mnt.Dest, Size: mnt.GetTmpfsOpt().GetSize()})
		return nil
	case pb.MountType_CACHE:
		return m.cache(ctx, mnt)
	case pb.MountType_SECRET:
		return m.secretFile(ctx, mnt)
	case pb.MountType_SSH:
		return m.sshSocket(ctx, mnt)
	}
	return fmt.Errorf("mount type %s: %w", strings.ToLower(mnt.MountType.String()), oci.ErrUnsupported)
}

// input is the snapshot that a mount shows, as layers.
func (m *mounts) input(ctx context.Context, mnt *pb.Mount) (*Snapshot, error) {
	if mnt.Input < 0 {
		return nil, nil
	}
	if int(mnt.Input) >= len(m.in) {
		return nil, fmt.Errorf("input %d of %d: %w", mnt.Input, len(m.in), oci.ErrInvalid)
	}
	return m.in[mnt.Input].layered(ctx, m.opt.Store, m.start)
}

func (m *mounts) bind(ctx context.Context, mnt *pb.Mount) error {
	in, err := m.input(ctx, mnt)
	if err != nil {
		return err
	}
	root, err := rootfs.Prepare(ctx, m.opt.Store, in.DiffIDs())
	if err != nil {
		return err
	}
	if mnt.Readonly && len(root.Lowers) > 0 {
		root.Upper, root.Work = "", ""
	}
	out := mountOutput{index: int(mnt.Output), in: in, root: root}
	if mnt.Readonly {
		out.root = nil
	}
	if mnt.Output >= 0 {
		m.outputs = append(m.outputs, out)
	}
	if mnt.Dest == pb.RootMount {
		m.root, m.rootReadOnly = root, mnt.Readonly
		return nil
	}
	m.list = append(m.list, sandbox.Mount{
		Type: "overlay", Overlay: root, Destination: mnt.Dest, ReadOnly: mnt.Readonly, Selector: mnt.Selector,
	})
	return nil
}

func (m *mounts) secretFile(ctx context.Context, mnt *pb.Mount) error {
	opt := mnt.SecretOpt
	if opt == nil {
		return fmt.Errorf("secret without options: %w", oci.ErrInvalid)
	}
	data, err := m.secret(ctx, opt.ID)
	if errors.Is(err, oci.ErrNotFound) && opt.Optional {
		return nil
	}
	if err != nil {
		return err
	}
	m.list = append(m.list, sandbox.Mount{
		Type: "file", Content: data, Destination: path.Join("/", mnt.Dest), ReadOnly: true,
		UID: int(opt.Uid), GID: int(opt.Gid), Mode: opt.Mode,
	})
	return nil
}

// commit turns what was written to the mounts into layers.
func (m *mounts) commit(ctx context.Context) ([]*Snapshot, error) {
	n := 0
	for _, o := range m.outputs {
		n = max(n, o.index+1)
	}
	if n > len(m.op.Mounts) {
		return nil, fmt.Errorf("command with %d outputs of %d mounts: %w", n, len(m.op.Mounts), oci.ErrInvalid)
	}
	out := make([]*Snapshot, n)
	for _, o := range m.outputs {
		if o.root == nil {
			out[o.index] = o.in
			continue
		}
		toc, err := rootfs.Commit(ctx, m.opt.Store, o.root)
		if err != nil {
			return nil, err
		}
		if toc == nil { // nothing changed: an empty layer keeps the history's count
			if toc, err = emptyLayer(ctx, m.opt.Store); err != nil {
				return nil, err
			}
		}
		l := plainLayer(toc)
		l.CreatedBy, l.Created = m.v.Name, m.now()
		out[o.index] = o.in.over(m.opt.Store, *l, "")
	}
	return out, nil
}
