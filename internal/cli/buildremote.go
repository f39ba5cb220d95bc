package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/spf13/pflag"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/build/remote"
	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// builderFlags say who builds: this process, or a BuildKit daemon.
type builderFlags struct{ builder string }

func (f *builderFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.builder, "builder", defaultBuilder(), `Build on a BuildKit daemon ("tcp://host:port[,cacert=f,cert=f,key=f]", "unix:///path", "ssh://user@host", "kube-pod://pod?namespace=ns", "docker-container://name"; env STRAKE_BUILDER)`)
}

// defaultBuilder is STRAKE_BUILDER, or buildx' BUILDX_BUILDER where it is an
// address and not the name of one of buildx' builders.
func defaultBuilder() string {
	if b := os.Getenv("STRAKE_BUILDER"); b != "" {
		return b
	}
	if b := os.Getenv("BUILDX_BUILDER"); strings.Contains(b, "://") {
		return b
	}
	return ""
}

// remote is the daemon to build on, or nil.
func (f *builderFlags) remote() (*remote.Builder, error) {
	if f.builder == "" || f.builder == "default" {
		return nil, nil
	}
	return parseBuilder(f.builder)
}

// parseBuilder reads ADDRESS[,cacert=FILE][,cert=FILE,key=FILE][,servername=NAME].
func parseBuilder(spec string) (*remote.Builder, error) {
	address, rest, more := strings.Cut(spec, ",")
	var t remote.TLS
	if more {
		list, err := splitAttrs("builder", rest, "builder "+address+": %q is no option: cacert=FILE, cert=FILE, key=FILE and servername=NAME are known")
		if err != nil {
			return nil, err
		}
		to := map[string]*string{"cacert": &t.CACert, "cert": &t.Cert, "key": &t.Key, "servername": &t.ServerName}
		for _, at := range list {
			if to[at.key] == nil {
				return nil, fmt.Errorf("builder %s: unknown option %q: cacert, cert, key and servername are known", address, at.key)
			}
			*to[at.key] = at.value
		}
	}
	return remote.NewBuilder(address, t)
}

// buildRemote builds on a daemon.
func (a *App) buildRemote(ctx context.Context, j *buildJob, st *store.Store) (err error) {
	o := remote.Options{
		Store:       st,
		Frontend:    j.opts,
		Locals:      j.input.locals,
		Layouts:     j.input.layouts,
		Uploads:     j.input.uploads,
		Secret:      j.secrets.get,
		GitAgent:    j.input.gitAgent,
		Credentials: auth.Docker(a.flags.config),
	}
	for kind, at := range j.attests {
		j.opts["attest:"+kind] = at.frontend()
	}
	files, err := a.remoteOutputs(&o, j.buildFlags, j.outs)
	if err != nil {
		return buildError(err)
	}
	defer func() { err = files.close(err) }()
	if o.CacheFrom, o.CacheTo, err = j.cache.forDaemon(); err != nil {
		return buildError(err)
	}
	for e, granted := range j.limits.allowed(j.network) {
		if granted {
			o.Entitlements = append(o.Entitlements, e)
		}
	}
	for _, k := range j.keys {
		o.Agents = append(o.Agents, sshprovider.AgentConfig{ID: k.id, Paths: k.paths})
	}
	conn, err := j.builder.Connect(ctx)
	if err != nil {
		return buildError(err)
	}
	defer conn.Close()
	printer, err := a.printer(j.buildFlags)
	if err != nil {
		return err
	}
	o.Events = printer.Event
	res, err := conn.Build(ctx, o)
	if err != nil {
		return a.buildFailed(printer, err)
	}
	printer.Close(nil)
	if res.Metadata != nil {
		return a.printCall(j.call, res.Metadata)
	}
	if err := files.close(nil); err != nil {
		return buildError(err)
	}
	var made *build.Exported
	if res.Target.Digest != "" {
		made = &res.Exported
	}
	_, single := res.Response["containerimage.config.digest"]
	several := !single && oci.IsIndex(res.Target.MediaType)
	return a.sayBuilt(j, made, o.Names, several, nil)
}

// local refuses what only a build in this process can do.
func (f *buildFlags) local() error {
	switch {
	case f.shell.onFail:
		return errors.New("--shell-on-fail is for builds on this machine")
	case f.explain.form != "":
		return errors.New("--explain is for builds on this machine: a BuildKit daemon does not tell what changed")
	case f.network == "pasta" || f.network == "slirp4netns":
		return fmt.Errorf("--network %s is for builds on this machine: a BuildKit daemon has networks of its own", f.network)
	case slices.ContainsFunc(f.addHosts, func(h string) bool { _, ip, _ := splitHost(h); return ip == hostGateway }):
		return errors.New("host-gateway is for builds on this machine: name the address that the BuildKit daemon's machine has")
	case f.cache.limit != "":
		return errors.New("--cache-limit is for builds on this machine: a BuildKit daemon has a limit of its own")
	}
	return nil
}

// frontend is the attestation as BuildKit's frontends are asked for it.
func (at attestation) frontend() string {
	var fields []string
	for _, k := range slices.Sorted(maps.Keys(at.attr)) {
		if k != "type" && k != "disabled" {
			fields = append(fields, k+"="+at.attr[k])
		}
	}
	return strings.Join(fields, ",")
}
