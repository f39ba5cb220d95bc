package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// imageObject is what inspect prints of an image: the fields of docker's API
// (GET /images/NAME/json), in its order and under its Go names, which people's
// templates use.
type imageObject struct {
	ID            oci.Digest `json:"Id"`
	RepoTags      []string
	RepoDigests   []string
	Parent        string
	Comment       string
	Created       string `json:",omitempty"`
	DockerVersion string
	Author        string
	Config        *dockerspec.DockerOCIImageConfig
	Architecture  string
	Variant       string `json:",omitempty"`
	Os            string
	OsVersion     string `json:",omitempty"`
	Size          int64
	VirtualSize   int64  `json:"-"` // gone from docker's JSON, but in people's templates
	Container     string `json:"-"` // likewise, and empty
	GraphDriver   graphDriver
	RootFS        rootFS
	Metadata      imageMetadata
	Descriptor    *oci.Descriptor `json:",omitempty"`
}

type graphDriver struct {
	Data map[string]string
	Name string
}

type rootFS struct {
	Type   string
	Layers []oci.Digest `json:",omitempty"`
}

type imageMetadata struct {
	LastTagTime time.Time
}

type inspectOptions struct {
	format, kind, platform string
	size                   bool
}

func (a *App) imageInspectCommand() *cobra.Command {
	o := inspectOptions{kind: "image"}
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] IMAGE [IMAGE...]",
		Short: "Show all that is known of one or more images",
		Example: `  strake image inspect debian:12
  strake image inspect -f '{{.Config.Cmd}}' web`,
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd.Context(), args, &o)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.format, "format", "f", "", `Print as "json" or with a Go TEMPLATE`)
	fs.StringVar(&o.platform, "platform", "", "Look at this platform's image (os[/arch[/variant]])")
	return cmd
}

func (a *App) inspectCommand() *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] NAME|ID [NAME|ID...]",
		Short: "Show all that is known of images and containers",
		Example: `  strake inspect web
  strake inspect --type image -f '{{json .Config.Env}}' web`,
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.knownKind(o.kind, cmd.Flags().Changed("type")); err != nil {
				return err
			}
			return a.inspect(cmd.Context(), args, &o)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.format, "format", "f", "", `Print as "json" or with a Go TEMPLATE`)
	fs.BoolVarP(&o.size, "size", "s", false, "Show also how much a container has written")
	fs.StringVar(&o.kind, "type", "", `Look only among "image" or "container"`)
	return cmd
}

// knownKind checks --type. Docker's other kinds of things are known to be none.
func (a *App) knownKind(kind string, given bool) error {
	known := `"image", "container"`
	if a.name == "docker" {
		known = `"config", "container", "image", "network", "node", "plugin", "secret", "service", "task", "volume"`
	}
	switch kind {
	case "image", "container", "network", "volume":
		return nil
	case "":
		if given {
			return fmt.Errorf("type is empty: must be one of %s", known)
		}
		return nil
	}
	return fmt.Errorf("unknown type: %q: must be one of %s", kind, known)
}

// inspect prints what it finds of names, then says what it did not find.
func (a *App) inspect(ctx context.Context, names []string, o *inspectOptions) error {
	format, err := term.ParseObjectFormat(o.format)
	if err != nil {
		return &Failure{Code: 64, Err: err}
	}
	if o.platform != "" {
		if _, err := platforms.Parse(o.platform); err != nil {
			return err // docker's client says so, and looks no further
		}
	}
	s, err := a.Store()
	if err != nil {
		return err
	}
	var objects []any
	var errs []error
	for _, name := range names {
		object, err := a.inspectOne(ctx, s, name, o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, image := object.(*imageObject); image && o.size {
			fmt.Fprintln(a.Err, "WARNING: --size ignored for image")
		}
		objects = append(objects, object)
	}
	return errors.Join(append(errs, format.Print(a.Out, objects))...)
}

func (a *App) inspectOne(ctx context.Context, s *store.Store, name string, o *inspectOptions) (any, error) {
	switch o.kind {
	case "volume":
		return nil, daemonf("get %s: no such volume", name)
	case "network":
		return nil, daemonf("network %s not found", name)
	}
	if o.kind != "image" {
		object, err := inspectContainer(ctx, s, name, o.size)
		if err == nil || !isNotFound(err) {
			return object, err
		}
		if name == "" {
			return nil, errEmptyName
		}
		if o.kind == "container" {
			return nil, &Failure{Daemon: true, Err: fmt.Errorf("No such container: %s%w", name, oci.Unsaid(oci.ErrNotFound))}
		}
	}
	if name == "" {
		return nil, errors.New("Error: No such image: ")
	}
	img, err := findImage(ctx, s, name)
	if o.kind == "" && (isNotFound(err) || errors.Is(err, oci.ErrInvalid)) {
		return nil, fmt.Errorf("Error: No such object: %s", name)
	}
	if err != nil {
		return nil, err
	}
	if o.platform != "" {
		if img, err = ofPlatform(ctx, s, img, name, o.platform); err != nil {
			return nil, daemon(err)
		}
	}
	object, err := inspectImage(ctx, s, img)
	return object, daemon(err)
}

// ofPlatform is img as it is for another platform of its index.
func ofPlatform(ctx context.Context, s *store.Store, img *store.Image, name, platform string) (*store.Image, error) {
	p, err := parsePlatform(platform)
	if err != nil {
		return nil, err
	}
	other := *img
	conf, err := readPlatform(ctx, s, &other, p)
	switch {
	case err == nil && platforms.OnlyStrict(p).Match(conf.Platform):
		return &other, nil
	case err != nil && !isNotFound(err):
		return nil, err
	}
	return nil, &noPlatform{name: name, wanted: platforms.Format(p), present: presentPlatforms(ctx, s, img)}
}

// readPlatform makes img that of its index for p, and reads its config.
func readPlatform(ctx context.Context, s *store.Store, img *store.Image, p oci.Platform) (*oci.Image, error) {
	d, body, err := content.Manifest(ctx, s, img.Target, p)
	if err != nil {
		return nil, err
	}
	m, err := oci.ParseManifest(d, body)
	if err != nil {
		return nil, err
	}
	img.ID, img.Manifest = m.Config.Digest, d
	return content.ReadConfig(ctx, s, m.Config)
}

// noPlatform is an image without the platform asked for, in docker's words; who
// is not called docker says what there is, too.
type noPlatform struct {
	name, wanted string
	present      []string
}

func (e *noPlatform) Error() string {
	return fmt.Sprintf("image with reference %s was found but does not provide the specified platform (%s)", e.name, e.wanted)
}

func (*noPlatform) Is(target error) bool { return target == oci.ErrNotFound }

// presentPlatforms are those of img's index that the store has.
func presentPlatforms(ctx context.Context, s *store.Store, img *store.Image) []string {
	var all []string
	for _, p := range platformImages(ctx, s, img) {
		if p.there {
			all = append(all, p.name)
		}
	}
	if len(all) == 0 {
		all = append(all, platforms.Format(img.Platform))
	}
	return all
}

// platformImage is an image of an index.
type platformImage struct {
	name  string
	d     oci.Descriptor
	there bool
}

// platformImages lists the images of img's index; none where it has no index.
func platformImages(ctx context.Context, s *store.Store, img *store.Image) []platformImage {
	if !oci.IsIndex(img.Target.MediaType) {
		return nil
	}
	body, err := content.ReadAll(ctx, s, img.Target)
	if err != nil {
		return nil
	}
	children, err := oci.Children(img.Target.MediaType, body)
	if err != nil {
		return nil
	}
	var all []platformImage
	for _, c := range children {
		if c.Platform == nil || c.Platform.OS == "unknown" { // that is an attestation
			continue
		}
		there, err := s.Has(ctx, c)
		all = append(all, platformImage{platforms.Format(platforms.Normalize(*c.Platform)), c, there && err == nil})
	}
	return all
}

// parsePlatform reads --platform in docker's words.
func parsePlatform(s string) (oci.Platform, error) {
	p, err := platforms.Parse(s)
	if err != nil {
		return p, daemon(err)
	}
	return platforms.Normalize(p), nil
}

// imageConfig reads the config of the image whose manifest is d.
func imageConfig(ctx context.Context, src content.Source, d oci.Descriptor) (*oci.Image, error) {
	m, err := content.ReadManifest(ctx, src, d)
	if err != nil {
		return nil, err
	}
	return content.ReadConfig(ctx, src, m.Config)
}

func inspectImage(ctx context.Context, s *store.Store, img *store.Image) (*imageObject, error) {
	conf, err := imageConfig(ctx, s, img.Manifest)
	if err != nil {
		return nil, err
	}
	o := &imageObject{
		ID: img.ID, RepoTags: []string{}, RepoDigests: []string{},
		Author: conf.Author, Config: &conf.Config,
		Architecture: conf.Architecture, Variant: conf.Variant, Os: conf.OS, OsVersion: conf.OSVersion,
		Size: img.Size, VirtualSize: img.Size,
		GraphDriver: graphDriver{Name: "overlayfs"},
		RootFS:      rootFS{Type: conf.RootFS.Type, Layers: conf.RootFS.DiffIDs},
		Metadata:    imageMetadata{LastTagTime: img.Tagged},
		Descriptor:  &img.Target,
	}
	for _, n := range img.Names {
		o.RepoTags = append(o.RepoTags, n.Familiar())
	}
	for _, d := range img.Digests {
		o.RepoDigests = append(o.RepoDigests, d.Familiar())
	}
	if conf.Created != nil {
		o.Created = conf.Created.Format(time.RFC3339Nano)
	}
	if n := len(conf.History); n > 0 {
		o.Comment = conf.History[n-1].Comment
	}
	return o, nil
}
