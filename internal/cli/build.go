package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/build/frontend"
	"github.com/strake-project/strake/internal/build/remote"
	"github.com/strake-project/strake/internal/build/sshagent"
	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// buildFlags are the flags of build. Every one is honoured; docker's others
// are unknown flags until they are.
type buildFlags struct {
	tags, buildArgs, labels, platforms, secrets    []string
	addHosts, ulimits, noCacheFilters, contexts    []string
	file, target, progress, network, iidFile, call string
	metadataFile, cgroupParent                     string
	noCache, pull, quiet, rm, check                bool

	explain explainFlags
	shell   shellFlags
	cache   cacheFlags
	builderFlags
	outputFlags
	attestFlags
	limits buildLimits
}

func (a *App) buildCommand(use string) *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS] PATH | URL | -",
		Short: "Build an image from a Dockerfile",
		Example: `  strake build -t myapp .
  strake build -f docker/Dockerfile --target test --progress=plain .`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.build(cmd.Context(), &f, args[0])
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.tags, "tag", "t", nil, `Name and optionally a tag ("name:tag")`)
	fs.StringVarP(&f.file, "file", "f", "", `Name of the Dockerfile (default "PATH/Dockerfile")`)
	fs.StringArrayVar(&f.buildArgs, "build-arg", nil, "Set build-time variables")
	fs.StringArrayVar(&f.contexts, "build-context", nil, `Additional build contexts ("name=path", "name=docker-image://image", "name=oci-layout://path", "name=https://…", "name=git URL")`)
	fs.StringVar(&f.target, "target", "", "Set the target build stage to build")
	fs.BoolVar(&f.noCache, "no-cache", false, "Do not use cache when building the image")
	fs.StringSliceVar(&f.noCacheFilters, "no-cache-filter", nil, "Do not cache specified stages")
	fs.StringVar(&f.progress, "progress", envOr("BUILDKIT_PROGRESS", "auto"), `Set type of progress output ("auto", "plain", "tty", "quiet", "rawjson")`)
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Suppress the build output and print image ID on success")
	fs.StringArrayVar(&f.labels, "label", nil, "Set metadata for an image")
	fs.StringArrayVar(&f.platforms, "platform", nil, "Set target platform for build")
	fs.StringVar(&f.network, "network", "default", `Set the networking mode for the "RUN" instructions during build ("default", "host", "none", "pasta", "slirp4netns"; default is host for root, for others one of the last two)`)
	fs.StringArrayVar(&f.addHosts, "add-host", nil, `Add a custom host-to-IP mapping ("host:ip")`)
	fs.StringArrayVar(&f.secrets, "secret", nil, `Secret to expose to the build ("id=mysecret[,src=/local/secret]", "id=mysecret,env=VAR")`)
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "Ulimit options")
	fs.StringVar(&f.cgroupParent, "cgroup-parent", "", `Set the parent cgroup for the "RUN" instructions during build`)
	fs.StringVar(&f.iidFile, "iidfile", "", "Write the image ID to a file")
	fs.StringVar(&f.metadataFile, "metadata-file", "", "Write build result metadata to a file")
	fs.BoolVar(&f.pull, "pull", false, "Always attempt to pull all referenced images")
	f.outputFlags.add(fs)
	f.attestFlags.add(fs)
	fs.BoolVar(&f.rm, "rm", true, "Remove intermediate containers after a successful build (always: there are none)")
	fs.StringVar(&f.call, "call", "build", `Set method for evaluating build ("build", "check", "outline", "targets"), with ",format=json" as JSON`)
	f.cache.add(fs)
	fs.BoolVar(&f.check, "check", false, `Shorthand for "--call=check"`)
	f.explain.declare(fs)
	f.shell.declare(fs)
	f.builderFlags.add(fs)
	f.limits.declare(fs)
	return cmd
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// buildError is err as buildx says it.
func buildError(err error) error { return fmt.Errorf("ERROR: failed to build: %w", err) }

// buildJob is a build as its flags ask for it, everything read and nothing
// begun.
type buildJob struct {
	*buildFlags
	trace   string
	names   []ref.Ref
	outs    []*buildOutput
	builder *remote.Builder // nil where this process builds
	attests map[string]attestation
	input   *buildInput
	opts    map[string]string // the frontend's
	call    buildCall
	secrets buildSecrets
	caches  *cacheEnds
	keys    []sshKey
	agents  map[string]*sshagent.Agent // of the keys, where this process builds
}

func (j *buildJob) close() {
	if j.input != nil {
		j.input.close()
	}
	if j.caches != nil {
		j.caches.close()
	}
}

// buildJob reads the flags and opens what they name.
func (a *App) buildJob(ctx context.Context, f *buildFlags, call buildCall, path string) (_ *buildJob, err error) {
	j := &buildJob{buildFlags: f, call: call}
	defer func() {
		if err != nil {
			j.close()
		}
	}()
	if j.names, err = buildNames(f.tags); err != nil {
		return nil, err
	}
	if j.outs, err = f.outputFlags.parse(j.names, a.Out.IsTerminal()); err != nil {
		return nil, err
	}
	if err := f.explain.check(j.outs); err != nil {
		return nil, err
	}
	if j.builder, err = f.remote(); err != nil {
		return nil, err
	}
	if j.builder != nil {
		err = f.local()
	} else {
		err = f.shell.check(a)
	}
	if err != nil {
		return nil, err
	}
	if j.attests, err = f.attestFlags.parse(); err != nil {
		return nil, err
	}
	if j.input, err = a.openBuildInput(ctx, f, path); err != nil {
		return nil, err
	}
	if j.opts, err = f.frontendOpts(j.input, call); err != nil {
		return nil, err
	}
	for _, o := range j.outs {
		f.attest(o, j.attests, j.opts, slices.Collect(maps.Keys(j.input.locals)))
	}
	if j.secrets, err = parseSecrets(f.secrets); err != nil {
		return nil, err
	}
	if j.caches, err = a.caches(&f.cache, f.buildArgs, j.builder != nil); err != nil {
		return nil, err
	}
	if j.keys, err = parseSSH(f.limits.ssh); err != nil {
		return nil, err
	}
	if j.builder == nil {
		if j.agents, err = openAgents(j.keys); err != nil {
			return nil, err
		}
	}
	j.trace = f.traceID(j.input, path)
	return j, nil
}

func (a *App) build(ctx context.Context, f *buildFlags, path string) error {
	call, err := f.parseCall()
	if err != nil {
		return fmt.Errorf("ERROR: %w", err)
	}
	if !f.rm {
		return &Failure{Code: 125, Err: errors.New("--rm=false is not supported: a build makes no containers")}
	}
	j, err := a.buildJob(ctx, f, call, path)
	if err != nil {
		return buildError(err)
	}
	defer j.close()
	if err := f.checkResultFiles(); err != nil {
		return buildError(err)
	}
	if err := f.forgetImageID(); err != nil {
		return buildError(err)
	}
	st, err := a.Store()
	if err != nil {
		return err
	}
	ctx, release, err := st.Lease(ctx)
	if err != nil {
		return daemon(err)
	}
	defer release()
	if j.builder != nil {
		return a.buildRemote(ctx, j, st)
	}
	return a.buildHere(ctx, j, st)
}

// printer shows the progress from here on. The caller closes it.
func (a *App) printer(f *buildFlags) (*term.BuildPrinter, error) {
	mode := f.progress
	if f.quiet {
		mode = "quiet"
	}
	p, err := term.NewBuildPrinter(mode, a.Err)
	if err != nil {
		return nil, fmt.Errorf("ERROR: %w", err)
	}
	p.Program, p.Expand = a.name, a.flags.debug
	return p, nil
}

// buildHere builds in this process.
func (a *App) buildHere(ctx context.Context, j *buildJob, st *store.Store) (err error) {
	limit, err := cacheLimit(st, j.cache.limit)
	if err != nil {
		return buildError(err)
	}
	printer, err := a.printer(j.buildFlags)
	if err != nil {
		return err
	}
	net := a.userNetwork(ctx, st, j.network)
	defer net.Close()
	var warnings []*build.Warning
	engine := build.New(build.Options{
		Network:  net.Getter(),
		Store:    st,
		Locals:   j.input.locals,
		Uploads:  j.input.uploads,
		Layouts:  j.input.layouts,
		GitAgent: j.input.gitAgent,
		Secret:   j.secrets.get,
		Events: func(ev build.Event) {
			if ev.Warning != nil {
				warnings = append(warnings, ev.Warning)
			}
			printer.Event(ev)
		},
		NoCache:   j.noCache,
		Trace:     j.trace,
		CacheFrom: j.caches.from,
		CacheTo:   j.caches.to,
		SSH:       j.agents,
		OnFail:    a.failShell(&j.shell, printer),
		Allow:     j.limits.allowed(j.network),
		Log:       a.log,
		Find: func(ctx context.Context, r ref.Ref, p oci.Platform, always bool) (*content.Found, error) {
			policy := content.PullMissing
			if always {
				policy = content.PullAlways
			}
			return a.locate(ctx, st, r, p, policy)
		},
	})
	defer engine.Close()
	defer a.limitCache(ctx, engine, limit)
	defer a.explainBuild(ctx, &j.explain, engine, &err)
	stopImports := engine.ImportCaches(ctx)
	res, err := frontend.Build(ctx, engine, j.opts)
	stopImports()
	if err != nil {
		return a.buildFailed(printer, err)
	}
	if len(res.Images) == 0 {
		printer.Close(nil)
		return a.printCall(j.call, res.Metadata)
	}
	out, err := a.buildOutputs(ctx, engine, res, j.outs)
	if err != nil {
		return a.buildFailed(printer, err)
	}
	if err := engine.ExportCaches(ctx, res.Images); err != nil {
		return a.buildFailed(printer, err)
	}
	if err := engine.RememberImports(ctx); err != nil {
		return a.buildFailed(printer, err)
	}
	printer.Close(nil)
	if len(out.skipped) > 0 {
		fmt.Fprintf(a.Err, "WARNING: special files that need root were left out: %s\n", strings.Join(out.skipped, ", "))
	}
	md, err := j.metadata(engine, res, warnings)
	if err != nil {
		return buildError(err)
	}
	return a.sayBuilt(j, out.made(), out.names, len(res.Images) > 1, md)
}

// sayBuilt writes the files that tell of the result, and with -q its ID.
func (a *App) sayBuilt(j *buildJob, made *build.Exported, names []ref.Ref, several bool, md map[string]any) error {
	if err := j.writeResult(made, names, several, md); err != nil {
		return buildError(err)
	}
	if j.quiet {
		fmt.Fprintln(a.Out, imageID(made, several))
	}
	return nil
}

// buildFailed ends the progress and puts the lines of the Dockerfile that the
// error comes from in front of it.
func (a *App) buildFailed(printer *term.BuildPrinter, err error) error {
	printer.Close(err)
	if errors.Is(err, context.Canceled) {
		return err
	}
	for _, src := range errdefs.Sources(err) {
		_ = src.Print(a.Err) // the error itself follows; a failed snippet changes nothing
	}
	return buildError(fmt.Errorf("failed to solve: %w", err))
}

func buildNames(tags []string) ([]ref.Ref, error) {
	var names []ref.Ref
	for _, list := range tags {
		for _, t := range strings.Split(list, ",") {
			n, err := ref.ParseTag(t)
			if err != nil {
				return nil, fmt.Errorf("invalid tag %q: %s", t, tagReason(err))
			}
			names = append(names, n)
		}
	}
	return names, nil
}

// tagReason is a reference's error without what buildx leaves out.
func tagReason(err error) string {
	s := strings.TrimPrefix(err.Error(), "invalid reference format: ")
	if strings.HasPrefix(s, "repository name (") {
		return "repository name must be lowercase"
	}
	return s
}
