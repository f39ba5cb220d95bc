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
	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// builderFlags say who builds: this process, or a BuildKit daemon.
type builderFlags struct{ builder string }

func (f *builderFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.builder, "builder", defaultBuilder(), `Build on a BuildKit daemon ("tcp://host:port[,cacert=file,cert=file,key=file]", "unix:///path", "ssh://user@host", "kube-pod://pod?namespace=ns", "docker-container://name"; env STRAKE_BUILDER)`)
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
	return remote.ParseBuilder(f.builder)
}

// remoteBuild is a build that leaves this machine.
type remoteBuild struct {
	builder *remote.Builder
	input   *buildInput
	opts    map[string]string
	secrets buildSecrets
	outs    []*buildOutput
	attests map[string]attestation
}

// buildRemote builds on a daemon and ends the progress.
func (a *App) buildRemote(ctx context.Context, f *buildFlags, st *store.Store, printer *term.BuildPrinter, b remoteBuild) (err error) {
	if f.shell.onFail {
		printer.Close(nil)
		return buildError(errors.New("--shell-on-fail is for builds on this machine"))
	}
	if f.explain.form != "" {
		printer.Close(nil)
		return buildError(errors.New("--explain is for builds on this machine: a BuildKit daemon does not tell what changed"))
	}
	o := remote.Options{
		Store:       st,
		Frontend:    b.opts,
		Locals:      b.input.locals,
		Layouts:     b.input.layouts,
		Uploads:     b.input.uploads,
		Secret:      b.secrets.get,
		GitAgent:    b.input.gitAgent,
		Events:      printer.Event,
		Credentials: auth.Docker(a.flags.config),
	}
	for kind, at := range b.attests {
		b.opts["attest:"+kind] = at.frontend()
	}
	files, err := a.remoteOutputs(&o, f, b.outs)
	if err != nil {
		printer.Close(nil)
		return buildError(err)
	}
	defer func() { err = files.close(err) }()
	if o.CacheFrom, o.CacheTo, err = f.cache.forDaemon(); err != nil {
		printer.Close(nil)
		return buildError(err)
	}
	for e, granted := range f.limits.allowed(f.network) {
		if granted {
			o.Entitlements = append(o.Entitlements, e)
		}
	}
	keys, err := sshKeys(f.limits.ssh)
	if err != nil {
		printer.Close(nil)
		return buildError(err)
	}
	for _, k := range keys {
		o.Agents = append(o.Agents, sshprovider.AgentConfig{ID: k.id, Paths: k.paths})
	}
	conn, err := b.builder.Connect(ctx)
	if err != nil {
		printer.Close(nil)
		return buildError(err)
	}
	defer conn.Close()
	res, err := conn.Build(ctx, o)
	if err != nil {
		return a.buildFailed(printer, err)
	}
	printer.Close(nil)
	if res.Metadata != nil {
		return a.printSubrequest(res.Metadata)
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
	if err := f.writeResult(made, o.Names, several); err != nil {
		return buildError(err)
	}
	if f.quiet {
		fmt.Fprintln(a.Out, imageID(made, several))
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
