package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// manifestCommand is docker's `manifest`: a list is put together locally, a
// record in the store, and sent by push.
func (a *App) manifestCommand() *cobra.Command {
	return a.group("manifest", "Manage Docker image manifests and manifest lists",
		a.manifestAnnotateCommand(), a.manifestCreateCommand(), a.manifestInspectCommand(), a.manifestPushCommand(), a.manifestRmCommand())
}

// listEntry is one image of a manifest list, as docker's -v prints it.
type listEntry struct {
	Ref              string
	Descriptor       oci.Descriptor
	Raw              []byte
	SchemaV2Manifest json.RawMessage `json:",omitempty"`
	OCIManifest      json.RawMessage `json:",omitempty"`
}

const bucketLists = "manifestlist"

func (a *App) localList(ctx context.Context, s *store.Store, list ref.Ref) ([]listEntry, error) {
	r, err := s.GetRecord(ctx, bucketLists, list.String())
	if isNotFound(err) {
		return nil, fmt.Errorf("No such manifest: %s%w", list, oci.Unsaid(oci.ErrNotFound))
	}
	if err != nil {
		return nil, daemon(err)
	}
	var entries []listEntry
	return entries, json.Unmarshal(r.Value, &entries)
}

func (a *App) saveList(ctx context.Context, s *store.Store, list ref.Ref, entries []listEntry) error {
	b, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	return daemon(s.PutRecord(ctx, store.Record{Bucket: bucketLists, Key: list.String(), Value: b}))
}

// remoteEntry reads r's manifest. isList says that r names a list instead, with
// its body.
func (a *App) remoteEntry(ctx context.Context, r ref.Ref, insecure bool) (e listEntry, isList bool, err error) {
	repo := a.registries(r, insecure).Repository(r)
	d, err := repo.Resolve(ctx, r)
	if isNotFound(err) {
		return e, false, fmt.Errorf("no such manifest: %s%w", r, oci.Unsaid(oci.ErrNotFound))
	}
	if err != nil {
		return e, false, err
	}
	e, err = entryOf(ctx, repo, r, d)
	return e, oci.IsIndex(d.MediaType), err
}

// entryOf reads the manifest d, with its config's platform where d has none.
func entryOf(ctx context.Context, repo *remote.Repository, r ref.Ref, d oci.Descriptor) (listEntry, error) {
	body, err := content.ReadAll(ctx, repo, d)
	e := listEntry{Ref: r.String(), Descriptor: d, Raw: body}
	if err != nil || oci.IsIndex(d.MediaType) {
		return e, err
	}
	m, err := oci.ParseManifest(d, body)
	if err != nil {
		return e, err
	}
	if d.MediaType == oci.MediaTypeDockerMani {
		e.SchemaV2Manifest = body
	} else {
		e.OCIManifest = body
	}
	if d.Platform == nil {
		image, err := content.ReadConfig(ctx, repo, m.Config)
		if err != nil && !errors.Is(err, oci.ErrInvalid) { // an artifact's config is whatever it likes
			return e, err
		}
		if err == nil && image.OS != "" {
			e.Descriptor.Platform = &image.Platform
		}
	}
	return e, nil
}

func (a *App) manifestCreateCommand() *cobra.Command {
	var amend, insecure bool
	cmd := &cobra.Command{
		Use:     "create MANIFEST_LIST MANIFEST [MANIFEST...]",
		Short:   "Create a local manifest list for annotating and pushing to a registry",
		Example: "  strake manifest create ghcr.io/team/web:1 ghcr.io/team/web:1-amd64 ghcr.io/team/web:1-arm64",
		Args:    minArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := ref.ParseImage(args[0])
			if err != nil {
				return fmt.Errorf("error parsing name for manifest list %s: %w", args[0], err)
			}
			return a.looking(cmd.Context(), func(ctx context.Context, s *store.Store) error {
				return a.manifestCreate(ctx, s, list, args[1:], amend, insecure)
			})
		},
	}
	cmd.Flags().BoolVarP(&amend, "amend", "a", false, "Amend an existing manifest list")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "Allow communication with an insecure registry")
	return cmd
}

func (a *App) manifestCreate(ctx context.Context, s *store.Store, list ref.Ref, names []string, amend, insecure bool) error {
	entries, err := a.localList(ctx, s, list)
	switch {
	case isNotFound(err):
	case err != nil:
		return err
	case !amend:
		return errors.New("refusing to amend an existing manifest list with no --amend flag")
	}
	for _, name := range names {
		r, err := ref.ParseImage(name)
		if err != nil {
			return err
		}
		e, isList, err := a.remoteEntry(ctx, r, insecure)
		if err != nil {
			return err
		}
		if isList {
			return fmt.Errorf("%s is a manifest list", r)
		}
		i := slices.IndexFunc(entries, func(old listEntry) bool { return old.Ref == e.Ref })
		if i < 0 {
			entries = append(entries, e)
		} else {
			entries[i] = e
		}
	}
	if err := a.saveList(ctx, s, list, entries); err != nil {
		return err
	}
	fmt.Fprintln(a.Out, "Created manifest list", list)
	return nil
}

func (a *App) manifestAnnotateCommand() *cobra.Command {
	var p oci.Platform
	cmd := &cobra.Command{
		Use:     "annotate [OPTIONS] MANIFEST_LIST MANIFEST",
		Short:   "Add additional information to a local image manifest",
		Example: "  strake manifest annotate --os linux --arch arm64 --variant v8 web:1 web:1-arm64",
		Args:    exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.looking(cmd.Context(), func(ctx context.Context, s *store.Store) error {
				return a.manifestAnnotate(ctx, s, args[0], args[1], &p)
			})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&p.Architecture, "arch", "", "Set architecture")
	fs.StringVar(&p.OS, "os", "", "Set operating system")
	fs.StringSliceVar(&p.OSFeatures, "os-features", nil, "Set operating system feature")
	fs.StringVar(&p.OSVersion, "os-version", "", "Set operating system version")
	fs.StringVar(&p.Variant, "variant", "", "Set architecture variant")
	return cmd
}

func (a *App) manifestAnnotate(ctx context.Context, s *store.Store, target, image string, set *oci.Platform) error {
	list, err := ref.ParseImage(target)
	if err != nil {
		return fmt.Errorf("annotate: error parsing name for manifest list %s: %w", target, err)
	}
	r, err := ref.ParseImage(image)
	if err != nil {
		return fmt.Errorf("annotate: error parsing name for manifest %s: %w", image, err)
	}
	entries, err := a.localList(ctx, s, list)
	if err != nil && !isNotFound(err) {
		return err
	}
	i := slices.IndexFunc(entries, func(e listEntry) bool { return e.Ref == r.String() })
	if i < 0 {
		return fmt.Errorf("manifest for image %s does not exist in %s", image, target)
	}
	p := oci.Platform{}
	if old := entries[i].Descriptor.Platform; old != nil {
		p = *old
	}
	for _, f := range []struct {
		to   *string
		from string
	}{{&p.OS, set.OS}, {&p.Architecture, set.Architecture}, {&p.Variant, set.Variant}, {&p.OSVersion, set.OSVersion}} {
		if f.from != "" {
			*f.to = f.from
		}
	}
	for _, f := range set.OSFeatures {
		if !slices.Contains(p.OSFeatures, f) {
			p.OSFeatures = append(p.OSFeatures, f)
		}
	}
	if !validOSArch(p.OS, p.Architecture) {
		return fmt.Errorf("manifest entry for image has unsupported os/arch combination: %s/%s", set.OS, set.Architecture)
	}
	entries[i].Descriptor.Platform = &p
	return a.saveList(ctx, s, list, entries)
}

// validOSArch is docker's list, which is Go's and a few more.
func validOSArch(os, arch string) bool {
	known := map[string][]string{
		"aix": {"ppc64"}, "android": {"386", "amd64", "arm", "arm64"}, "darwin": {"386", "amd64", "arm", "arm64"},
		"dragonfly": {"amd64"}, "freebsd": {"386", "amd64", "arm"}, "illumos": {"amd64"}, "ios": {"arm64", "amd64"}, "js": {"wasm"},
		"linux":  {"386", "amd64", "arm", "arm64", "loong64", "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le", "riscv64", "s390x"},
		"netbsd": {"386", "amd64", "arm"}, "openbsd": {"386", "amd64", "arm"}, "plan9": {"386", "amd64", "arm"}, "solaris": {"amd64"},
		"wasip1": {"wasm"}, "windows": {"386", "amd64", "arm", "arm64"},
	}
	return slices.Contains(known[os], arch)
}

func (a *App) manifestInspectCommand() *cobra.Command {
	var verbose, insecure bool
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] [MANIFEST_LIST] MANIFEST",
		Short: "Display an image manifest, or manifest list",
		Example: `  strake manifest inspect debian:12
  strake manifest inspect -v ghcr.io/team/web:1`,
		Args: rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var refs []ref.Ref
			for _, arg := range args {
				r, err := ref.ParseImage(arg)
				if err != nil {
					return err
				}
				refs = append(refs, r)
			}
			return a.looking(cmd.Context(), func(ctx context.Context, s *store.Store) error {
				return a.manifestInspect(ctx, s, refs, verbose, insecure)
			})
		},
	}
	cmd.Flags().BoolVar(&insecure, "insecure", false, "Allow communication with an insecure registry")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "Output additional info including layers and platform")
	return cmd
}

func (a *App) manifestInspect(ctx context.Context, s *store.Store, refs []ref.Ref, verbose, insecure bool) error {
	entries, err := a.localList(ctx, s, refs[0])
	if err != nil && !isNotFound(err) {
		return err
	}
	if len(refs) == 2 {
		i := slices.IndexFunc(entries, func(e listEntry) bool { return e.Ref == refs[1].String() })
		if i < 0 {
			return fmt.Errorf("No such manifest: %s", refs[1])
		}
		return a.printManifest(&entries[i], verbose)
	}
	if err == nil {
		return a.printList(entries, verbose)
	}
	e, isList, err := a.remoteEntry(ctx, refs[0], insecure)
	if err != nil {
		return err
	}
	if !isList {
		return a.printManifest(&e, verbose)
	}
	var ix oci.Index
	if _, err := oci.Children(e.Descriptor.MediaType, e.Raw); err != nil {
		return err
	}
	if err := json.Unmarshal(e.Raw, &ix); err != nil {
		return err
	}
	if !verbose {
		list, err := newManifestList(e.Descriptor.MediaType, ix.Manifests)
		if err == nil {
			fmt.Fprintf(a.Out, "%s\n", list)
		}
		return err
	}
	repo := a.registries(refs[0], insecure).Repository(refs[0])
	for _, d := range ix.Manifests {
		child, err := entryOf(ctx, repo, ref.Ref{Domain: refs[0].Domain, Path: refs[0].Path, Tag: refs[0].Tag, Digest: d.Digest}, d)
		if err != nil {
			return err
		}
		child.Descriptor.Annotations = nil
		entries = append(entries, child)
	}
	return a.printList(entries, true)
}

func (a *App) printManifest(e *listEntry, verbose bool) error {
	var b bytes.Buffer
	if verbose {
		return writeIndented(a.Out, e, "\t")
	}
	if err := json.Indent(&b, e.Raw, "", "\t"); err != nil {
		return err
	}
	fmt.Fprintln(a.Out, b.String())
	return nil
}

func (a *App) printList(entries []listEntry, verbose bool) error {
	if verbose {
		return writeIndented(a.Out, entries, "\t")
	}
	mediaType, ds := descriptors(entries)
	list, err := newManifestList(mediaType, ds)
	if err == nil {
		fmt.Fprintf(a.Out, "%s\n", list)
	}
	return err
}

// descriptors are the entries', and the media type of the list they make.
func descriptors(entries []listEntry) (mediaType string, ds []oci.Descriptor) {
	mediaType = oci.MediaTypeDockerList
	for i, e := range entries {
		if i == 0 && e.Descriptor.MediaType == oci.MediaTypeManifest {
			mediaType = oci.MediaTypeIndex
		}
		ds = append(ds, e.Descriptor)
	}
	return mediaType, ds
}

func (a *App) manifestPushCommand() *cobra.Command {
	var purge, insecure bool
	cmd := &cobra.Command{
		Use:     "push [OPTIONS] MANIFEST_LIST",
		Short:   "Push a manifest list to a repository",
		Example: "  strake manifest push --purge ghcr.io/team/web:1",
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := ref.ParseImage(args[0])
			if err != nil {
				return err
			}
			return a.looking(cmd.Context(), func(ctx context.Context, s *store.Store) error {
				return a.manifestPush(ctx, s, list, purge, insecure)
			})
		},
	}
	cmd.Flags().BoolVar(&insecure, "insecure", false, "Allow push to an insecure registry")
	cmd.Flags().BoolVarP(&purge, "purge", "p", false, "Remove the local manifest list after push")
	return cmd
}

func (a *App) manifestPush(ctx context.Context, s *store.Store, list ref.Ref, purge, insecure bool) error {
	entries, err := a.localList(ctx, s, list)
	if err != nil {
		return err
	}
	client := a.registries(list, insecure)
	to := client.Repository(list)
	for _, e := range entries {
		from, err := ref.ParseImage(e.Ref)
		if err != nil {
			return err
		}
		p := e.Descriptor.Platform
		if p == nil || p.OS == "" || p.Architecture == "" {
			return fmt.Errorf("manifest %s must have an OS and Architecture to be pushed to a registry", e.Ref)
		}
		if from.Domain != list.Domain {
			return fmt.Errorf("cannot use source images from a different registry than the target image: %s != %s", from.Domain, list.Domain)
		}
		if from.Repository() == list.Repository() {
			continue
		}
		d := e.Descriptor.Digest
		if _, err := content.Copy(ctx, to, list.WithDigest(d), client.Repository(from), from.WithDigest(d), content.CopyOptions{}); err != nil {
			return err
		}
		fmt.Fprintf(a.Out, "Pushed ref %s with digest: %s\n", list.WithDigest(d), d)
	}
	mediaType, ds := descriptors(entries)
	body, err := newManifestList(mediaType, ds)
	if err != nil {
		return err
	}
	d := oci.DescriptorOf(mediaType, body)
	if err := to.Put(ctx, d, bytes.NewReader(body)); err != nil {
		return err
	}
	if err := to.Tag(ctx, list, d); err != nil {
		return err
	}
	fmt.Fprintln(a.Out, d.Digest)
	if purge {
		return daemon(s.DeleteRecord(ctx, bucketLists, list.String()))
	}
	return nil
}

func (a *App) manifestRmCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "rm MANIFEST_LIST [MANIFEST_LIST...]",
		Short:   "Delete one or more manifest lists from local storage",
		Example: "  strake manifest rm ghcr.io/team/web:1",
		Args:    minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.looking(cmd.Context(), func(ctx context.Context, s *store.Store) error {
				var errs []error
				for _, arg := range args {
					list, err := ref.ParseImage(arg)
					if err == nil {
						if _, err = a.localList(ctx, s, list); err == nil {
							err = daemon(s.DeleteRecord(ctx, bucketLists, list.String()))
						}
					}
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
		},
	}
}
