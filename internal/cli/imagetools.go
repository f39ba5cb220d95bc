package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"

	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// imagetoolsCommand is `buildx imagetools`.
func (a *App) imagetoolsCommand() *cobra.Command {
	return a.group("imagetools", "Commands to work on images in registry", a.imagetoolsCreateCommand(), a.imagetoolsInspectCommand())
}

func (a *App) imagetoolsInspectCommand() *cobra.Command {
	var raw bool
	var format string
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] NAME",
		Short: "Show details of an image in the registry",
		Example: `  strake buildx imagetools inspect debian:12
  strake buildx imagetools inspect --format '{{json .Image}}' ghcr.io/team/web:1`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return errorOf(a.imagetoolsInspect(cmd.Context(), args[0], format, raw))
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "Format the output using the given Go template (.Name, .Manifest, .Image)")
	cmd.Flags().BoolVar(&raw, "raw", false, "Show original, unformatted JSON manifest")
	return cmd
}

// errorOf is a failure in buildx's form.
func errorOf(err error) error {
	if err == nil {
		return nil
	}
	return &Failure{Err: fmt.Errorf("ERROR: %w", err)}
}

// remoteManifest is a manifest or index of a registry with its bytes.
type remoteManifest struct {
	ref  ref.Ref
	repo *remote.Repository
	d    oci.Descriptor
	body []byte
	// manifests are an index's.
	manifests []oci.Descriptor
}

func (a *App) remoteManifest(ctx context.Context, r ref.Ref) (*remoteManifest, error) {
	m := &remoteManifest{ref: r, repo: a.Remote().Repository(r)}
	var err error
	if m.d, err = m.repo.Resolve(ctx, r); err != nil {
		if isNotFound(err) {
			return nil, fmt.Errorf("%s: not found%w", r, oci.Unsaid(oci.ErrNotFound))
		}
		return nil, err
	}
	if m.body, err = content.ReadAll(ctx, m.repo, m.d); err != nil {
		return nil, err
	}
	children, err := oci.Children(m.d.MediaType, m.body)
	if oci.IsIndex(m.d.MediaType) {
		m.manifests = children
	}
	return m, err
}

// shownManifest is .Manifest of --format.
type shownManifest struct {
	SchemaVersion int               `json:"schemaVersion,omitempty"`
	MediaType     string            `json:"mediaType,omitempty"`
	Digest        oci.Digest        `json:"digest"`
	Size          int64             `json:"size"`
	Manifests     []oci.Descriptor  `json:"manifests,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
	Config        *oci.Descriptor   `json:"config,omitempty"`
	Layers        []oci.Descriptor  `json:"layers,omitempty"`
}

func (a *App) imagetoolsInspect(ctx context.Context, name, format string, raw bool) error {
	if format != "" && raw {
		return errors.New("format and raw cannot be used together")
	}
	r, err := ref.ParseImage(name)
	if err != nil {
		return err
	}
	m, err := a.remoteManifest(ctx, r)
	if err != nil {
		return err
	}
	switch {
	case raw:
		_, err := a.Out.Write(m.body) // no newline: it would change the digest
		return err
	case format == "":
		return a.printRemote(m)
	}
	tmpl, err := template.New("").Funcs(template.FuncMap{"json": func(v any) (string, error) {
		b, err := json.MarshalIndent(v, "", "  ")
		return string(b), err
	}}).Parse(format)
	if err != nil {
		return err
	}
	shown := shownManifest{Digest: m.d.Digest, Size: m.d.Size}
	if err := json.Unmarshal(m.body, &shown); err != nil {
		return err
	}
	shown.MediaType = m.d.MediaType
	data := map[string]any{"Name": r.String(), "Manifest": shown}
	if strings.Contains(format, ".Image") {
		if data["Image"], err = images(ctx, m); err != nil {
			return err
		}
	}
	var b bytes.Buffer
	if err := tmpl.Option("missingkey=error").Execute(&b, data); err != nil {
		return err
	}
	fmt.Fprintln(a.Out, b.String())
	return nil
}

// images is the config of m, or those of an index's images by platform.
func images(ctx context.Context, m *remoteManifest) (any, error) {
	if m.manifests == nil {
		return imageConfig(ctx, m.repo, m.d)
	}
	all := map[string]*oci.Image{}
	for _, d := range m.manifests {
		if d.Platform == nil || d.Platform.OS == "unknown" || !oci.IsManifest(d.MediaType) {
			continue
		}
		conf, err := imageConfig(ctx, m.repo, d)
		if err != nil {
			return nil, err
		}
		all[platforms.Format(platforms.Normalize(*d.Platform))] = conf
	}
	return all, nil
}

func (a *App) printRemote(m *remoteManifest) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "Name:\t%s\nMediaType:\t%s\nDigest:\t%s\n", m.ref, m.d.MediaType, m.d.Digest)
	if err := w.Flush(); err != nil || m.manifests == nil {
		return err
	}
	fmt.Fprintf(w, "\t\nManifests:\t\n")
	if err := w.Flush(); err != nil {
		return err
	}
	const pad = "  "
	w = tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	for i, d := range m.manifests {
		if i > 0 {
			fmt.Fprint(w, "\t\n")
		}
		fmt.Fprintf(w, pad+"Name:\t%s@%s\n"+pad+"MediaType:\t%s\n", m.ref, d.Digest, d.MediaType)
		if p := d.Platform; p != nil {
			fmt.Fprintf(w, pad+"Platform:\t%s\n", platforms.Format(*p))
			if p.OSVersion != "" {
				fmt.Fprintf(w, pad+"OSVersion:\t%s\n", p.OSVersion)
			}
			if len(p.OSFeatures) > 0 {
				fmt.Fprintf(w, pad+"OSFeatures:\t%s\n", strings.Join(p.OSFeatures, ", "))
			}
		}
		if len(d.Annotations) > 0 {
			fmt.Fprintf(w, pad+"Annotations:\t\n")
			if err := w.Flush(); err != nil {
				return err
			}
			w2 := tabwriter.NewWriter(a.Out, 0, 0, 1, ' ', 0)
			for _, k := range slices.Sorted(maps.Keys(d.Annotations)) {
				fmt.Fprintf(w2, pad+pad+"%s:\t%s\n", k, d.Annotations[k])
			}
			if err := w2.Flush(); err != nil {
				return err
			}
		}
	}
	return w.Flush()
}

type imagetoolsOptions struct {
	tags, files, annotations []string
	append, dry, preferIndex bool
	progress                 string
}

func (a *App) imagetoolsCreateCommand() *cobra.Command {
	var o imagetoolsOptions
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] [SOURCE...]",
		Short: "Create a new image based on source images",
		Example: `  strake buildx imagetools create -t ghcr.io/team/web:1 ghcr.io/team/web:1-amd64 ghcr.io/team/web:1-arm64
  strake buildx imagetools create --append -t ghcr.io/team/web:1 ghcr.io/team/web:1-riscv64`,
		Args: minArgs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return errorOf(a.imagetoolsCreate(cmd.Context(), args, &o))
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&o.annotations, "annotation", nil, "Add annotation to the image (KEY=VALUE, or index:KEY=VALUE)")
	fs.BoolVar(&o.append, "append", false, "Append to existing manifest")
	fs.BoolVar(&o.dry, "dry-run", false, "Show final image instead of pushing")
	fs.StringArrayVarP(&o.files, "file", "f", nil, "Read source descriptor from file")
	fs.BoolVar(&o.preferIndex, "prefer-index", true, "When only a single source is specified, prefer outputting an image index or manifest list instead of performing a carbon copy")
	fs.StringVar(&o.progress, "progress", "auto", `Set type of progress output ("auto", "none", "plain", "tty")`)
	fs.StringArrayVarP(&o.tags, "tag", "t", nil, "Set reference for new image")
	return cmd
}

func (a *App) imagetoolsCreate(ctx context.Context, args []string, o *imagetoolsOptions) error {
	if len(args) == 0 && len(o.files) == 0 {
		return errors.New("no sources specified")
	}
	if !o.dry && len(o.tags) == 0 {
		return errors.New("can't push with no tags specified, please set --tag or --dry-run")
	}
	if o.append && len(o.tags) == 0 {
		return errors.New("--append needs the image to append to: name it with --tag")
	}
	if !slices.Contains([]string{"auto", "none", "plain", "tty", "quiet"}, o.progress) {
		return fmt.Errorf("invalid progress mode %s", o.progress)
	}
	var tags []ref.Ref
	for _, t := range o.tags {
		r, err := ref.ParseImage(t)
		if err != nil {
			return err
		}
		tags = append(tags, r)
	}
	sources, err := a.imagetoolsSources(ctx, args, o, tags)
	if err != nil {
		return err
	}
	annotations, err := indexAnnotations(o.annotations)
	if err != nil {
		return err
	}
	d, body, err := combine(ctx, sources, annotations, o.preferIndex)
	if err != nil {
		return err
	}
	if o.dry {
		fmt.Fprintf(a.Out, "%s\n", body)
		return nil
	}
	for _, to := range tags {
		if err := a.putCombined(ctx, to, sources, d, body); err != nil {
			return err
		}
		if o.progress != "none" && o.progress != "quiet" {
			fmt.Fprintf(a.Err, "pushing %s to %s\n", d.Digest, to)
		}
	}
	return nil
}

// imagetoolsSources reads what is to be combined.
func (a *App) imagetoolsSources(ctx context.Context, args []string, o *imagetoolsOptions, tags []ref.Ref) ([]*remoteManifest, error) {
	var refs []ref.Ref
	if o.append {
		refs = append(refs, tags[0])
	}
	for _, f := range o.files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		args = append(args, string(b))
	}
	for _, arg := range args {
		arg = strings.TrimSpace(arg)
		var d oci.Descriptor
		digest := oci.Digest(arg)
		if strings.HasPrefix(arg, "{") {
			if err := json.Unmarshal([]byte(arg), &d); err != nil {
				return nil, fmt.Errorf("failed to parse descriptor %q: %w", arg, err)
			}
			digest = d.Digest
		}
		if digest.Validate() == nil {
			if len(tags) == 0 {
				return nil, errors.New("no repositories specified, please set a reference in tag or source")
			}
			refs = append(refs, tags[0].WithDigest(digest))
			continue
		}
		r, err := ref.ParseImage(arg)
		if err != nil {
			return nil, err
		}
		refs = append(refs, r)
	}
	var all []*remoteManifest
	for i, r := range refs {
		m, err := a.remoteManifest(ctx, r)
		if i == 0 && o.append && isNotFound(err) {
			continue // there is nothing yet to append to
		}
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func indexAnnotations(list []string) (map[string]string, error) {
	m := map[string]string{}
	for _, s := range list {
		k, v, ok := strings.Cut(strings.TrimPrefix(s, "index:"), "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("invalid annotation %q, expected key=value", s)
		}
		if kind, _, typed := strings.Cut(k, ":"); typed && strings.HasPrefix(kind, "manifest") {
			return nil, fmt.Errorf("%q annotations are not supported yet", kind)
		}
		m[k] = v
	}
	return m, nil
}

// combine makes one index of all that sources name. A single one stays as it
// is where nothing is to be changed.
func combine(ctx context.Context, sources []*remoteManifest, annotations map[string]string, preferIndex bool) (oci.Descriptor, []byte, error) {
	if len(sources) == 1 && len(annotations) == 0 && (sources[0].manifests != nil || !preferIndex) {
		return sources[0].d, sources[0].body, nil
	}
	var ds []oci.Descriptor
	mediaType := oci.MediaTypeDockerList
	add := func(d oci.Descriptor) {
		if d.MediaType != oci.MediaTypeDockerMani || len(annotations) > 0 {
			mediaType = oci.MediaTypeIndex
		}
		if i := slices.IndexFunc(ds, func(o oci.Descriptor) bool { return o.Digest == d.Digest }); i >= 0 {
			ds[i] = d
			return
		}
		ds = append(ds, d)
	}
	merged := map[string]string{}
	for _, m := range sources {
		if m.manifests == nil {
			d := m.d
			if conf, err := imageConfig(ctx, m.repo, d); err != nil {
				return d, nil, err
			} else if conf.OS != "" {
				p := platforms.Normalize(conf.Platform)
				d.Platform = &p
			}
			add(d)
			continue
		}
		var ix oci.Index
		if err := json.Unmarshal(m.body, &ix); err != nil {
			return m.d, nil, err
		}
		maps.Copy(merged, ix.Annotations)
		for _, d := range ix.Manifests {
			add(d)
		}
	}
	maps.Copy(merged, annotations)
	if len(merged) == 0 {
		merged = nil
	}
	body, err := json.MarshalIndent(oci.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Manifests: ds, Annotations: merged}, "", "  ")
	return oci.DescriptorOf(mediaType, body), body, err
}

// putCombined copies to to's repository what it lacks, and tags.
func (a *App) putCombined(ctx context.Context, to ref.Ref, sources []*remoteManifest, d oci.Descriptor, body []byte) error {
	dst := a.Remote().Repository(to)
	for _, m := range sources {
		if m.ref.Repository() == to.Repository() {
			continue
		}
		from := m.ref.WithDigest(m.d.Digest)
		if _, err := content.Copy(ctx, dst, to.WithDigest(m.d.Digest), m.repo, from, content.CopyOptions{}); err != nil {
			return err
		}
	}
	if err := dst.Put(ctx, d, bytes.NewReader(body)); err != nil {
		return err
	}
	return dst.Tag(ctx, to, d)
}
