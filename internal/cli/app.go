// Package cli is the command line: one file for each command, thin: flags to
// options, one verb of another room, what it returned printed as docker prints
// it. Only app.go constructs things.
package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/userns"
)

// App is what commands share: the streams, the global flags, and the store,
// which is opened when somebody first asks for it.
type App struct {
	term.Streams
	name string // "strake", or "docker" when called by that name
	// command is the path of the one that runs ("image prune"), for the store's
	// log: no arguments, which may be secret.
	command string
	flags   globalFlags
	log     *slog.Logger
	store   *store.Store
	regs    *remote.Client

	args    []string // the process's own
	entered bool     // into a user namespace, by an ordinary user
	busy    *term.Busy
}

// globalFlags are the flags before the command.
type globalFlags struct {
	root, config, logLevel string
	debug, version         bool
	hosts                  []string
	context                string
}

// Main runs the command that args (a process's whole argument list) name and
// returns the exit code. It does not end the process and takes nothing from
// it but its environment.
func Main(ctx context.Context, args []string, streams term.Streams) int {
	a := &App{Streams: streams, name: calledName(args), log: slog.New(slog.DiscardHandler), args: args, entered: userns.Entered(), busy: new(term.Busy)}
	defer a.close()
	err := a.run(ctx, args)
	a.busy.Stop()
	return a.report(ctx, err)
}

// calledName is the name to print: docker's where a link of that name was
// called, so that a script that compares docker's texts keeps working.
func calledName(args []string) string {
	if len(args) > 0 && filepath.Base(args[0]) == "docker" {
		return "docker"
	}
	return "strake"
}

// Store opens the store at its first call.
func (a *App) Store() (*store.Store, error) {
	if a.store != nil {
		return a.store, nil
	}
	root, err := a.Root()
	if err != nil {
		return nil, err
	}
	keep, err := keepRemoved()
	if err != nil {
		return nil, err
	}
	s, err := store.Open(root, store.Options{Log: a.log, Command: a.command, KeepRemoved: keep})
	if err != nil {
		return nil, daemon(err)
	}
	a.store = s
	return s, nil
}

// leased opens the store and a lease on it, under which what a command finds
// and makes stays until release.
func (a *App) leased(ctx context.Context) (context.Context, *store.Store, func(), error) {
	s, err := a.Store()
	if err != nil {
		return ctx, nil, nil, err
	}
	ctx, release, err := s.Lease(ctx)
	return ctx, s, release, daemon(err)
}

// Remote is the client of registries, with docker's credentials.
func (a *App) Remote() *remote.Client {
	if a.regs == nil {
		a.regs = a.newRemote(auth.Docker(a.flags.config))
	}
	return a.regs
}

// registries is Remote or, where that is asked for, a client that takes plain
// http and unknown certificates from r's registry.
func (a *App) registries(r ref.Ref, insecure bool) *remote.Client {
	if !insecure {
		return a.Remote()
	}
	return a.newRemote(auth.Docker(a.flags.config), r.Domain)
}

func (a *App) newRemote(credentials auth.Lookup, insecure ...string) *remote.Client {
	return remote.New(remote.Options{Credentials: credentials, UserAgent: "strake/" + Version, Log: a.log, Insecure: insecure})
}

// locate finds the image that r names, for platform p: what build's FROM needs.
func (a *App) locate(ctx context.Context, s *store.Store, r ref.Ref, p oci.Platform, policy content.PullPolicy) (*content.Found, error) {
	registry := func(r ref.Ref) content.Source { return a.Remote().Repository(r) }
	f, err := content.Locate(ctx, s, registry, r, p, policy)
	if err != nil {
		return nil, err
	}
	fetch := f.Fetch
	f.Fetch = func(ctx context.Context, progress func(content.Event)) error {
		if err := fetch(ctx, progress); err != nil {
			return err
		}
		return s.TouchManifest(ctx, f.Digest) // it is in use
	}
	return f, nil
}

// ensure makes it local: what run needs. progress may be nil.
func (a *App) ensure(ctx context.Context, s *store.Store, r ref.Ref, p oci.Platform, policy content.PullPolicy, progress func(content.Event)) (oci.Descriptor, error) {
	f, err := a.locate(ctx, s, r, p, policy)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return f.Descriptor, f.Fetch(ctx, progress)
}

func (a *App) close() {
	if a.store != nil {
		a.store.Close()
	}
}

// stdin is standard input: the file itself where it can seek, which archives
// read in place, else a reader that ends with ctx. A Read of a pipe that
// nobody writes to would not.
func (a *App) stdin(ctx context.Context) io.Reader {
	if f := a.In.File(); f != nil {
		if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
			return f
		}
	}
	pr, pw := io.Pipe()
	context.AfterFunc(ctx, func() { pw.CloseWithError(ctx.Err()) })
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{pw}, struct{ io.Reader }{a.In}, make([]byte, 256<<10))
		pw.CloseWithError(err) // nil is io.EOF
	}()
	return pr
}

// Root is the store's directory: --root, STRAKE_ROOT, or the user's default.
func (a *App) Root() (string, error) {
	for _, dir := range []string{a.flags.root, os.Getenv("STRAKE_ROOT")} {
		if dir != "" {
			return filepath.Abs(dir)
		}
	}
	if os.Geteuid() == 0 && !a.entered {
		return "/var/lib/strake", nil
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "strake"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no place for the store: %w; name one with --root or STRAKE_ROOT", err)
	}
	return filepath.Join(home, ".local/share/strake"), nil
}

// ConfigDir is the directory of docker's config.json: --config, DOCKER_CONFIG
// or ~/.docker.
func (a *App) ConfigDir() string {
	if a.flags.config != "" {
		return a.flags.config
	}
	return config.Dir()
}

// configFile is docker's config.json, or nil where there is none.
func (a *App) configFile() []byte {
	b, err := os.ReadFile(filepath.Join(a.ConfigDir(), "config.json"))
	if err != nil {
		return nil
	}
	return b
}

// setLog makes the logger that --debug and --log-level ask for. Without either
// strake logs nothing: what people need to know is in errors and output.
func (a *App) setLog() error {
	var level slog.Level
	switch a.flags.logLevel {
	case "":
		if !a.flags.debug {
			return nil
		}
	case "debug":
		level = slog.LevelDebug
	case "info":
		level = slog.LevelInfo
	case "warn":
		level = slog.LevelWarn
	case "error", "fatal":
		level = slog.LevelError
	default:
		return fmt.Errorf("Unable to parse logging level: %s", a.flags.logLevel)
	}
	if a.flags.debug {
		level = slog.LevelDebug
	}
	a.log = slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: level}))
	return nil
}
