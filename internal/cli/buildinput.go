package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/platforms"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
)

// buildInput is where a build's files come from.
type buildInput struct {
	locals   map[string]string // name → directory
	filename string            // of the Dockerfile in locals["dockerfile"]
	contexts map[string]string // name → what the frontend is told
	temp     []string

	// context is the URL of a context that is no directory; ownDockerfile tells
	// that its Dockerfile is in locals.
	context       string
	ownDockerfile bool
	uploads       map[string]io.Reader
	layouts       map[string]content.Source
	archives      []io.Closer
	gitAgent      string // an ssh agent's socket
}

func (in *buildInput) close() {
	for _, a := range in.archives {
		a.Close()
	}
	for _, dir := range in.temp {
		os.RemoveAll(dir)
	}
}

// openBuildInput finds the context and the Dockerfile that build's arguments
// name, with docker's words where they are not there.
func (a *App) openBuildInput(ctx context.Context, f *buildFlags, path string) (*buildInput, error) {
	in := &buildInput{locals: map[string]string{}, contexts: map[string]string{}, layouts: map[string]content.Source{}}
	stdin, file := io.Reader(a.In), f.file
	if path == "-" || file == "-" {
		stdin = a.stdin(ctx)
	}
	if isURL(file) {
		if path == "-" {
			return nil, errors.New("a Dockerfile from a URL and a context from stdin together are not supported")
		}
		body, err := a.fetchDockerfile(ctx, file)
		if err != nil {
			return nil, err
		}
		defer body.Close()
		stdin, file = body, "-"
	}
	err := in.open(f, file, path, stdin)
	if err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// open reads the arguments; dockerfile "-" is what stdin has.
func (in *buildInput) open(f *buildFlags, dockerfile, path string, stdin io.Reader) error {
	switch {
	case path == "-" && dockerfile == "-":
		return errors.New("invalid argument: can't use stdin for both build context and dockerfile")
	case path == "-":
		if err := in.stdinContext(stdin, dockerfile); err != nil {
			return err
		}
	case isRemote(path) && !isDir(path):
		if err := in.remoteContext(path, dockerfile, stdin); err != nil {
			return err
		}
	default:
		st, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unable to prepare context: path %q not found", path)
		}
		if err != nil {
			return fmt.Errorf("unable to prepare context: %w", err)
		}
		if !st.IsDir() {
			return fmt.Errorf("unable to prepare context: path %q is no directory", path)
		}
		in.locals["context"] = path
		if dockerfile == "-" {
			if err := in.stdinDockerfile(stdin); err != nil {
				return err
			}
		} else {
			in.findDockerfile(dockerfile, path)
		}
	}
	return in.namedContexts(f.contexts)
}

// findDockerfile sets where the Dockerfile is: -f is relative to the working
// directory, or else to the context. That it is missing is for the frontend to
// say, which then tries "dockerfile" too.
func (in *buildInput) findDockerfile(file, context string) {
	if file == "" {
		file = filepath.Join(context, "Dockerfile")
	} else if _, err := os.Stat(file); err != nil && !filepath.IsAbs(file) {
		if alt := filepath.Join(context, file); exists(alt) {
			file = alt
		}
	}
	in.locals["dockerfile"], in.filename = filepath.Dir(file), filepath.Base(file)
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (in *buildInput) tempDir() (string, error) {
	dir, err := os.MkdirTemp("", "strake-build-")
	if err == nil {
		in.temp = append(in.temp, dir)
	}
	return dir, err
}

func (in *buildInput) stdinDockerfile(stdin io.Reader) error {
	dir, err := in.tempDir()
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(stdin, 16<<20))
	if err != nil {
		return fmt.Errorf("failed to read Dockerfile from stdin: %w", err)
	}
	in.locals["dockerfile"], in.filename = dir, "Dockerfile"
	return os.WriteFile(filepath.Join(dir, "Dockerfile"), b, 0o600)
}

func (in *buildInput) namedContexts(list []string) error {
	for _, c := range list {
		name, value, ok := strings.Cut(c, "=")
		if !ok || name == "" || value == "" {
			return fmt.Errorf("invalid context value: %s, expected key=value", c)
		}
		switch {
		case strings.HasPrefix(value, "docker-image://") || isRemote(value):
			in.contexts[name] = value
			in.forwardAgent(value)
		case strings.HasPrefix(value, "oci-layout://"):
			if err := in.layout(name, strings.TrimPrefix(value, "oci-layout://")); err != nil {
				return err
			}
		default:
			st, err := os.Stat(value)
			if err != nil {
				return fmt.Errorf("failed to find build context %s: %w", name, err)
			}
			if !st.IsDir() {
				return fmt.Errorf("build context %s: %s is no directory", name, value)
			}
			dir := name
			if dir == "context" || dir == "dockerfile" {
				dir = "_" + dir // those are the build's own
			}
			in.locals[dir] = value
			in.contexts[name] = "local:" + dir
		}
	}
	return nil
}

// frontendOpts are the options of docker's Dockerfile frontend.
func (f *buildFlags) frontendOpts(in *buildInput, call buildCall) (map[string]string, error) {
	o := map[string]string{"filename": in.filename, "target": f.target}
	if in.filename == "" {
		o["filename"] = "Dockerfile"
	}
	if in.context != "" {
		o["context"] = in.context
	}
	if in.ownDockerfile {
		o["dockerfilekey"] = "dockerfile"
	}
	for _, kv := range f.buildArgs {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				continue // docker: a name alone takes the environment's value, if there is one
			}
		}
		o["build-arg:"+k] = v
	}
	if v := os.Getenv("SOURCE_DATE_EPOCH"); v != "" {
		if _, ok := o["build-arg:SOURCE_DATE_EPOCH"]; !ok {
			o["build-arg:SOURCE_DATE_EPOCH"] = v
		}
	}
	for _, kv := range f.labels {
		k, v, _ := strings.Cut(kv, "=")
		o["label:"+k] = v
	}
	for name, v := range in.contexts {
		o["context:"+name] = v
	}
	if len(f.platforms) > 0 {
		all, err := targetPlatforms(f.platforms)
		if err != nil {
			return nil, err
		}
		o["platform"] = strings.Join(all, ",")
	}
	if f.noCache {
		o["no-cache"] = ""
	} else if len(f.noCacheFilters) > 0 {
		o["no-cache"] = strings.Join(f.noCacheFilters, ",")
	}
	if f.pull {
		o["image-resolve-mode"] = "pull"
	}
	network, err := networkMode(f.network)
	if err != nil {
		return nil, fmt.Errorf("network mode %q not supported by strake: %w", f.network, err)
	}
	if f.network == "host" || f.network == "none" {
		o["force-network-mode"] = f.network
	}
	if len(f.addHosts) > 0 {
		if o["add-hosts"], err = buildHosts(f.addHosts, network); err != nil {
			return nil, err
		}
	}
	if len(f.ulimits) > 0 {
		o["ulimit"] = strings.Join(f.ulimits, ",")
	}
	if err := f.limits.frontendOpts(o); err != nil {
		return nil, err
	}
	if f.cgroupParent != "" {
		o["cgroup-parent"] = f.cgroupParent
	}
	if call.request != "" {
		o["requestid"] = call.request
	}
	return o, nil
}

// maxSecret is BuildKit's limit.
const maxSecret = 500 << 10

// buildSecrets are the sources that --secret names; they are read when a step
// asks.
type buildSecrets map[string]struct{ env, file string }

func parseSecrets(list []string) (buildSecrets, error) {
	out := buildSecrets{}
	for _, s := range list {
		fields, err := splitAttrs("secret", s, "invalid field '%s' must be a key=value pair")
		if err != nil {
			return nil, err
		}
		var id, kind string
		var src struct{ env, file string }
		for _, f := range fields {
			switch f.key {
			case "type":
				if f.value != "file" && f.value != "env" {
					return nil, fmt.Errorf("unsupported secret type %q", f.value)
				}
				kind = f.value
			case "id":
				id = f.value
			case "source", "src":
				src.file = f.value
			case "env":
				src.env = f.value
			default:
				return nil, fmt.Errorf("unexpected key '%s' in '%s=%s'", f.key, f.key, f.value)
			}
		}
		if id == "" {
			return nil, fmt.Errorf("secret %q has no id", s)
		}
		if kind == "env" && src.env == "" {
			src.env, src.file = src.file, ""
		}
		if src.env == "" && src.file == "" {
			if _, ok := os.LookupEnv(id); ok && kind != "file" {
				src.env = id
			} else {
				src.file = id
			}
		}
		if src.file != "" {
			fi, err := os.Stat(src.file)
			if err != nil {
				return nil, fmt.Errorf("failed to stat %s: %w", src.file, errors.Unwrap(err))
			}
			if fi.Size() > maxSecret {
				return nil, fmt.Errorf("secret %s too big. max size 500KiB", id)
			}
		}
		out[id] = src
	}
	return out, nil
}

func (b buildSecrets) get(_ context.Context, id string) ([]byte, error) {
	src, ok := b[id]
	if !ok {
		return nil, oci.ErrNotFound
	}
	if src.env != "" {
		return []byte(os.Getenv(src.env)), nil
	}
	f, err := os.Open(src.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// It may have grown, or be a pipe, which has no size.
	v, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(v) > maxSecret {
		err = fmt.Errorf("invalid secret size: more than %d bytes", maxSecret)
	}
	return v, err
}

// targetPlatforms reads --platform, which lists several and may be given several
// times; "local" is this machine's.
func targetPlatforms(given []string) ([]string, error) {
	var all []string
	for _, one := range strings.Split(strings.Join(given, ","), ",") {
		if strings.EqualFold(one, "local") {
			one = platforms.Format(content.Host())
		}
		if _, err := platforms.Parse(one); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}
