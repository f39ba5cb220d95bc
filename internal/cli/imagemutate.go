package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/image"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// makeOptions are those of the commands that make an image of another.
type makeOptions struct {
	tags     []string
	platform string
}

func (o *makeOptions) register(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&o.tags, "tag", "t", nil, "Name of the new image (may be given several times; the old one's own moves it)")
	fs.StringVar(&o.platform, "platform", "", "Of an image of several platforms, take this one (os[/arch[/variant]])")
}

type (
	loadFunc func(context.Context, *store.Store, oci.Descriptor) (*image.Image, error)
	makeFunc func(ctx context.Context, s *store.Store, im *image.Image) (*image.Made, error)
)

// makeImage makes an image by fn of the local image name, which load opens,
// tags it and prints its ID.
func (a *App) makeImage(ctx context.Context, name string, o *makeOptions, load loadFunc, fn makeFunc) error {
	if len(o.tags) == 0 {
		return errors.New("name the new image with -t")
	}
	var names []ref.Ref
	for _, t := range o.tags {
		r, err := ref.ParseTag(t)
		if err != nil {
			return daemonf("invalid tag %q: %w", t, err)
		}
		names = append(names, r)
	}
	return a.looking(ctx, func(ctx context.Context, s *store.Store) error {
		img, err := findImage(ctx, s, name)
		if err != nil {
			return err
		}
		if o.platform != "" {
			if img, err = ofPlatform(ctx, s, img, name, o.platform); err != nil {
				return daemon(err)
			}
		}
		im, err := load(ctx, s, img.Manifest)
		if err != nil {
			return daemon(err)
		}
		made, err := fn(ctx, s, im)
		if err != nil {
			return daemon(err)
		}
		for _, n := range names {
			if err := s.Tag(ctx, n, made.Manifest); err != nil {
				return daemon(err)
			}
		}
		_, err = fmt.Fprintln(a.Out, made.ID)
		return err
	})
}

type mutateOptions struct {
	makeOptions
	edit                image.Edit
	labels, annotations []string
}

func (a *App) imageMutateCommand() *cobra.Command {
	var o mutateOptions
	cmd := &cobra.Command{
		Use:   "mutate [OPTIONS] IMAGE -t NEW",
		Short: "Change an image's config without a build",
		Long: `Make an image with the same layers and a changed config. The local image IMAGE
stays as it is. Its time stays too, so the same change makes the same image. Of
an image of several platforms one is taken: this machine's or --platform's.
--entrypoint and --cmd take a JSON array or, as in a Dockerfile, a line for the
shell; "" removes them, and so it does the user, workdir and stop signal.`,
		Example: `  strake image mutate web:1 -t web:2 --env LOG=debug --unset-env TOKEN
  strake image mutate postgres:17 -t db:1 --unset-volume /var/lib/postgresql/data --unset-port 5432
  strake image mutate tool -t tool:1 --entrypoint '["/bin/tool"]' --cmd '' --user 1000 --label org.opencontainers.image.version=1`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.finish(cmd.Flags()); err != nil {
				return err
			}
			return a.makeImage(cmd.Context(), args[0], &o.makeOptions, image.LoadConfig, func(ctx context.Context, s *store.Store, im *image.Image) (*image.Made, error) {
				return image.Mutate(ctx, s, im, &o.edit)
			})
		},
	}
	fs, e := cmd.Flags(), &o.edit
	fs.StringArrayVar(&o.annotations, "annotation", nil, "Set an annotation of the manifest (KEY=VALUE)")
	fs.String("cmd", "", "Set the default arguments")
	fs.String("entrypoint", "", "Set the command")
	fs.StringArrayVarP(&e.Env, "env", "e", nil, "Set an environment variable (KEY=VALUE)")
	fs.StringArrayVarP(&o.labels, "label", "l", nil, "Set a label (KEY=VALUE)")
	fs.StringArrayVarP(&e.Ports, "port", "p", nil, "Expose a port (PORT[-LAST][/PROTOCOL])")
	fs.String("stop-signal", "", "Set the signal that stops a container")
	fs.StringArrayVar(&e.UnsetAnnotations, "unset-annotation", nil, "Remove an annotation of the manifest")
	fs.StringArrayVar(&e.UnsetEnv, "unset-env", nil, "Remove an environment variable")
	fs.StringArrayVar(&e.UnsetLabels, "unset-label", nil, "Remove a label")
	fs.StringArrayVar(&e.UnsetPorts, "unset-port", nil, "Don't expose a port any more")
	fs.StringArrayVar(&e.UnsetVolumes, "unset-volume", nil, "Remove a volume")
	fs.StringP("user", "u", "", "Set the user (USER[:GROUP])")
	fs.StringArrayVarP(&e.Volumes, "volume", "v", nil, "Declare a volume")
	fs.StringP("workdir", "w", "", "Set the working directory")
	o.register(fs)
	return cmd
}

// finish makes the edit of the flags' texts, those only that were given.
func (o *mutateOptions) finish(fs *pflag.FlagSet) (err error) {
	e := &o.edit
	var said []string
	fs.Visit(func(f *pflag.Flag) { // in the order of their names
		if f.Name != "tag" && f.Name != "platform" {
			values := []string{f.Value.String()}
			if list, ok := f.Value.(pflag.SliceValue); ok {
				values = list.GetSlice()
			}
			for _, v := range values {
				said = append(said, fmt.Sprintf("--%s=%s", f.Name, v))
			}
		}
	})
	if len(said) == 0 {
		return errors.New("there is nothing to change: see --help for what can be")
	}
	e.CreatedBy = "strake image mutate " + strings.Join(said, " ")
	if e.Labels, err = keyValues("label", o.labels); err != nil {
		return err
	}
	if e.Annotations, err = keyValues("annotation", o.annotations); err != nil {
		return err
	}
	for _, ports := range []*[]string{&e.Ports, &e.UnsetPorts} {
		var conf oci.Image
		if err := expose(&conf, *ports); err != nil {
			return daemon(err)
		}
		*ports = nil
		for p := range conf.Config.ExposedPorts {
			*ports = append(*ports, p)
		}
		slices.Sort(*ports)
	}
	for _, v := range e.Volumes {
		if !path.IsAbs(v) {
			return fmt.Errorf("--volume %q: must be an absolute path", v)
		}
	}
	for name, to := range map[string]**string{"user": &e.User, "workdir": &e.WorkingDir, "stop-signal": &e.StopSignal} {
		if f := fs.Lookup(name); f.Changed {
			s := f.Value.String()
			*to = &s
		}
	}
	if e.StopSignal != nil && *e.StopSignal != "" && !knownSignal(*e.StopSignal) {
		return fmt.Errorf("--stop-signal %q: invalid signal", *e.StopSignal)
	}
	if e.WorkingDir != nil && *e.WorkingDir != "" && !path.IsAbs(*e.WorkingDir) {
		return fmt.Errorf("--workdir %q: must be an absolute path", *e.WorkingDir)
	}
	for _, f := range []struct {
		name string
		to   **[]string
	}{{"entrypoint", &e.Entrypoint}, {"cmd", &e.Cmd}} {
		if given := fs.Lookup(f.name); given.Changed {
			list, err := commandOf(given.Value.String())
			if err != nil {
				return fmt.Errorf("--%s: %w", f.name, err)
			}
			*f.to = &list
		}
	}
	return nil
}

// commandOf reads a command: a JSON array, a line for the shell, or nothing.
func commandOf(s string) ([]string, error) {
	switch {
	case s == "":
		return nil, nil
	case !strings.HasPrefix(strings.TrimSpace(s), "["):
		return []string{"/bin/sh", "-c", s}, nil
	}
	var list []string
	if err := json.Unmarshal([]byte(s), &list); err != nil {
		return nil, fmt.Errorf("%q is no JSON array of strings: %v", s, err)
	}
	return list, nil
}

func keyValues(kind string, list []string) (map[string]string, error) {
	m := map[string]string{}
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("--%s %q: is not KEY=VALUE", kind, kv)
		}
		m[k] = v
	}
	return m, nil
}

func (a *App) imageSquashCommand() *cobra.Command {
	var o makeOptions
	var from string
	cmd := &cobra.Command{
		Use:   "squash [OPTIONS] IMAGE -t NEW",
		Short: "Merge an image's layers into one",
		Long: `Make an image that shows the same files with one layer instead of many: of all
layers, or with --from of those from one on. What a layer deleted or replaced
is not in it any more. The local image IMAGE stays as it is. Of an image of
several platforms one is taken: this machine's or --platform's.`,
		Example: `  strake image squash web:1 -t web:1-flat
  strake image squash --from debian:12 web:1 -t web:1-slim
  strake image squash --from 3 web:1 -t web:1-slim`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.makeImage(cmd.Context(), args[0], &o, image.Load, func(ctx context.Context, s *store.Store, im *image.Image) (*image.Made, error) {
				n, err := squashFrom(ctx, s, im, from)
				if err != nil {
					return nil, err
				}
				return image.Squash(ctx, s, im, n)
			})
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "First LAYER to merge: its number (1 is the lowest), its digest as inspect shows it, or the base image above which it lies")
	o.register(cmd.Flags())
	return cmd
}

// squashFrom finds the layer that --from means, counted from 0.
func squashFrom(ctx context.Context, s *store.Store, im *image.Image, from string) (int, error) {
	layers := im.Config.RootFS.DiffIDs
	if from == "" {
		return 0, nil
	}
	if n, err := strconv.Atoi(from); err == nil && n < 1000 { // longer ones may be IDs
		if n < 1 || n > len(layers) {
			return 0, fmt.Errorf("--from %d: the image has %d layers: %w", n, len(layers), oci.ErrInvalid)
		}
		return n - 1, nil
	}
	found := -1
	for i, d := range layers {
		if strings.HasPrefix(d.Encoded(), strings.TrimPrefix(from, "sha256:")) {
			if found >= 0 {
				return 0, fmt.Errorf("--from %s: several layers begin so: %w", from, oci.ErrInvalid)
			}
			found = i
		}
	}
	if found >= 0 {
		return found, nil
	}
	base, err := s.Find(ctx, from)
	if isNotFound(err) {
		return 0, fmt.Errorf("--from %s: the image has no such layer, and there is no such local image%w", from, oci.Unsaid(oci.ErrNotFound))
	}
	if err != nil {
		return 0, err
	}
	n := len(base.Layers)
	if n >= len(layers) || !slices.Equal(base.Layers, layers[:n]) {
		return 0, fmt.Errorf("--from %s: the image does not lie on top of it: %w", from, oci.ErrInvalid)
	}
	return n, nil
}

// knownSignal tells whether name is a signal's number, or its name with SIG or
// without.
func knownSignal(name string) bool {
	if n, err := strconv.Atoi(name); err == nil {
		return n > 0 && n <= 64
	}
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	for _, end := range []string{"RTMIN", "RTMAX"} {
		if rest, ok := strings.CutPrefix(name, end); ok {
			n, err := strconv.Atoi(rest)
			return rest == "" || err == nil && n >= -15 && n <= 15
		}
	}
	return unix.SignalNum("SIG"+name) != 0
}
