package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/tree"
	"github.com/strake-project/strake/internal/rootfs"
	"github.com/strake-project/strake/internal/sandbox"
)

// Options say what to run. What is not set comes from the image's config.
type Options struct {
	Name      string
	ImageName string // as it was asked for
	Image     *store.Image
	Config    *oci.Image

	// Entrypoint replaces the image's, and its Cmd is dropped, if
	// SetEntrypoint; [""] is none.
	Entrypoint    []string
	SetEntrypoint bool
	Args          []string // replace the image's Cmd
	Env           []string // KEY=value sets, KEY removes
	Remove        bool
	Labels        map[string]string

	// Sandbox is everything else; Root, Args, Env, Cwd, User and Hostname are
	// filled in where they are empty.
	Sandbox sandbox.Spec
}

// Run is a container that was created and can be started, once.
type Run struct {
	*Container
	set     *Set
	spec    sandbox.Spec
	lock    *os.File
	process *sandbox.Process
}

// Create makes a container of opt; its lock is held until Close. ctx carries a
// lease: without Remove the container outlives it.
func (c *Set) Create(ctx context.Context, opt *Options) (_ *Run, err error) {
	spec := opt.Sandbox
	if spec.Args = command(opt); len(spec.Args) == 0 {
		return nil, fmt.Errorf("no command specified: %w", oci.ErrInvalid)
	}
	one := &Container{
		ID: newID(), Name: opt.Name, Image: opt.ImageName, ImageID: opt.Image.ID, Layers: opt.Image.Layers,
		Manifest: opt.Image.Manifest.Digest, Target: opt.Image.Target.Digest,
		Command: spec.Args, User: spec.User, WorkingDir: spec.Cwd, Env: opt.Env,
		Created: time.Now(), State: Created, Labels: labels(opt), Remove: opt.Remove, Network: string(spec.Network),
	}
	conf := &opt.Config.Config
	spec.User, spec.Cwd = cmp.Or(spec.User, conf.User), cmp.Or(spec.Cwd, conf.WorkingDir)
	if spec.Hostname == "" {
		spec.Hostname = one.ID[:12]
		if spec.Network == sandbox.Host {
			if spec.Hostname, err = os.Hostname(); err != nil {
				return nil, err
			}
		}
	}
	spec.Env = environment(&spec, conf.Env, opt.Env)

	run := &Run{Container: one, set: c}
	recorded := false
	defer func() {
		if err == nil {
			return
		}
		run.unlock()
		if recorded {
			c.discard(context.WithoutCancel(ctx), one.ID)
		} else {
			os.RemoveAll(c.dir(one.ID))
		}
	}()
	if run.lock, err = c.hold(one.ID); err != nil {
		return nil, err
	}
	if err := c.reserve(ctx, one); err != nil {
		return nil, err
	}
	recorded = true
	if err := c.prepare(ctx, one, &spec); err != nil {
		return nil, err
	}
	if err := c.volumes(ctx, one, &spec, conf.Volumes); err != nil {
		return nil, err
	}
	one.Mounts, one.Host = mounts(&spec, c.dir(one.ID)), host(&spec)
	run.spec = spec
	return run, nil
}

// hold makes a container's directory and takes its lock.
func (c *Set) hold(id string) (*os.File, error) {
	if err := os.MkdirAll(c.dir(id), 0o711); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(c.dir(id), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	return lock, nil
}

// prepare gives spec its root, what is written to it below the container's own
// directory, on the same file system: there it stays when the lease ends.
func (c *Set) prepare(ctx context.Context, one *Container, spec *sandbox.Spec) error {
	root, err := rootfs.Prepare(ctx, c.store, one.Layers)
	if err != nil {
		return err
	}
	for _, d := range []*string{&root.Upper, &root.Work} {
		to := filepath.Join(c.dir(one.ID), filepath.Base(*d))
		if err := os.Rename(*d, to); err != nil {
			return err
		}
		*d = to
	}
	spec.Root = *root
	return nil
}

// mounts are spec's as they are recorded; those of dir are volumes.
func mounts(spec *sandbox.Spec, dir string) []Mount {
	var list []Mount
	for _, m := range spec.Mounts {
		if m.Type == "bind" || m.Type == "tmpfs" {
			kind := m.Type
			if strings.HasPrefix(m.Source, dir+"/") {
				kind = "volume"
			}
			list = append(list, Mount{Type: kind, Source: m.Source, Destination: m.Destination, ReadOnly: m.ReadOnly})
		}
	}
	return list
}

// host is what else spec says, as it is recorded.
func host(spec *sandbox.Spec) Host {
	h := Host{
		Tty: spec.Terminal, OpenStdin: spec.Stdin != nil, Hostname: spec.Hostname,
		Privileged: spec.Privileged, ReadOnly: spec.ReadOnly, CapAdd: spec.CapAdd, CapDrop: spec.CapDrop,
		Groups: spec.Groups, ExtraHosts: spec.ExtraHosts, ShmSize: spec.ShmSize, Limits: spec.Limits, Ulimits: spec.Rlimits,
	}
	if spec.NoNewPrivileges {
		h.SecurityOpt = append(h.SecurityOpt, "no-new-privileges")
	}
	switch spec.Seccomp {
	case "":
	case "unconfined":
		h.SecurityOpt = append(h.SecurityOpt, "seccomp=unconfined")
	default:
		h.SecurityOpt = append(h.SecurityOpt, "seccomp=custom")
	}
	return h
}

// labels are the image's and, before those, the caller's.
func labels(opt *Options) map[string]string {
	all := maps.Clone(opt.Config.Config.Labels)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, opt.Labels)
	return all
}

// command is the entrypoint and its arguments, put together as docker does.
func command(opt *Options) []string {
	entrypoint, args := opt.Config.Config.Entrypoint, opt.Args
	if opt.SetEntrypoint {
		entrypoint = opt.Entrypoint
		if len(entrypoint) == 1 && entrypoint[0] == "" {
			entrypoint = nil
		}
	} else if len(args) == 0 {
		args = opt.Config.Config.Cmd
	}
	return slices.Concat(entrypoint, args)
}

// environment is docker's: PATH, HOSTNAME and TERM, then the image's, then the
// caller's.
func environment(spec *sandbox.Spec, image, caller []string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=" + spec.Hostname}
	if spec.Terminal {
		env = append(env, "TERM=xterm")
	}
	return setEnv(setEnv(env, image), caller)
}

// setEnv is env with what changes says: KEY=value sets, KEY removes.
func setEnv(env, changes []string) []string {
	env = slices.Clone(env)
	for _, kv := range changes {
		key, _, set := strings.Cut(kv, "=")
		at := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
		switch {
		case at >= 0 && set:
			env[at] = kv
		case at >= 0:
			env = slices.Delete(env, at, at+1)
		case set:
			env = append(env, kv)
		}
	}
	return env
}

// Configured is c's image with what run was told instead of what its config
// says: command, user, working directory, environment and labels.
func (c *Container) Configured(image *oci.Image) *oci.Image {
	out := *image
	conf := &out.Config
	if n := len(conf.Entrypoint); len(c.Command) >= n && slices.Equal(c.Command[:n], conf.Entrypoint) {
		conf.Cmd = c.Command[n:]
	} else {
		conf.Entrypoint, conf.Cmd = nil, c.Command
	}
	conf.User = cmp.Or(c.User, conf.User)
	conf.WorkingDir = cmp.Or(c.WorkingDir, conf.WorkingDir)
	conf.Env = setEnv(conf.Env, c.Env)
	if len(c.Labels) > 0 {
		conf.Labels = maps.Clone(conf.Labels)
		if conf.Labels == nil {
			conf.Labels = map[string]string{}
		}
		maps.Copy(conf.Labels, c.Labels)
	}
	return &out
}

// volumes gives each VOLUME of the image that nothing is mounted on, and that
// is not there in the image, an empty one. Where the image has it, it is a
// plain directory of the container's for now. Both the names and the links that
// they lead through are the image's: they are looked up in its files alone.
func (c *Set) volumes(ctx context.Context, one *Container, spec *sandbox.Spec, declared map[string]struct{}) error {
	if len(declared) == 0 {
		return nil
	}
	view, err := c.base(ctx, one)
	if err != nil {
		return err
	}
	for n, v := range slices.Sorted(maps.Keys(declared)) {
		v = path.Clean("/" + v)
		if v == "/" || slices.ContainsFunc(spec.Mounts, func(m sandbox.Mount) bool { return path.Clean(m.Destination) == v }) {
			continue
		}
		at, err := tree.Resolve(view, v, true)
		if err == nil {
			_, err = view.Lstat(at)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		source := filepath.Join(c.dir(one.ID), "volumes", fmt.Sprint(n))
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		spec.Mounts = append(spec.Mounts, sandbox.Mount{Type: "bind", Source: source, Destination: v})
	}
	return nil
}

// Start starts the container's process; its error is a *sandbox.StartError.
// When ctx ends the container is killed.
func (r *Run) Start(ctx context.Context) error {
	process, err := sandbox.Start(ctx, &r.spec)
	if err != nil {
		var failed *sandbox.StartError
		if errors.As(err, &failed) {
			r.ExitCode = failed.Code
		}
		return err
	}
	r.process = process
	r.Pid, r.State, r.Started = process.Pid(), Running, time.Now()
	if err := r.set.record(ctx, r.Container); err != nil {
		process.Signal(unix.SIGKILL)
		process.Wait()
		r.process = nil
		return err
	}
	return nil
}

// Signal sends the container's process a signal.
func (r *Run) Signal(sig os.Signal) error { return r.process.Signal(sig) }

// Wait waits for the end and records it, or removes a container that is not to
// be kept.
func (r *Run) Wait(ctx context.Context) (sandbox.Exit, error) {
	exit, err := r.process.Wait()
	r.State, r.ExitCode, r.OOM, r.Pid, r.Finished = Exited, exit.Code, exit.OOM, 0, time.Now()
	if r.Remove {
		return exit, errors.Join(err, r.set.discard(context.WithoutCancel(ctx), r.ID))
	}
	return exit, errors.Join(err, r.set.record(context.WithoutCancel(ctx), r.Container))
}

// Close lets the container go. One that never ran and is not to be kept is
// removed.
func (r *Run) Close() {
	if r.Remove && r.process == nil {
		r.set.discard(context.Background(), r.ID)
	}
	r.unlock()
}

func (r *Run) unlock() {
	if r.lock != nil {
		r.lock.Close()
		r.lock = nil
	}
}
