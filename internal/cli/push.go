package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

type pushOptions struct {
	allTags, quiet bool
	platform       string
}

func (a *App) pushCommand(use string) *cobra.Command {
	var o pushOptions
	cmd := &cobra.Command{
		Use:     use + " [OPTIONS] NAME[:TAG]",
		Short:   "Send an image to a registry",
		Example: "  strake push registry.example.com/team/web:1.4",
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.push(cmd.Context(), args[0], &o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.allTags, "all-tags", "a", false, "Send all tags of the repository")
	fs.StringVar(&o.platform, "platform", "", "Send only this platform's image of several (os[/arch[/variant]])")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Print only the image's name")
	return a.spelled(cmd, "image push", "push")
}

func (a *App) push(ctx context.Context, name string, o *pushOptions) error {
	r, err := ref.Parse(name)
	if err != nil {
		return err
	}
	opt := content.CopyOptions{Compression: content.Gzip}
	if o.platform != "" {
		p, err := clientPlatform(o.platform)
		if err != nil {
			return err
		}
		opt.Platforms = []oci.Platform{p}
	}
	bare := r.Tag == "" && r.Digest == ""
	switch {
	case o.allTags && !bare:
		return errors.New("tag can't be used with --all-tags/-a")
	case bare && !o.allTags:
		r = r.WithDefaultTag()
		if !o.quiet {
			fmt.Fprintln(a.Out, "Using default tag:", r.Tag)
		}
	}
	ctx, s, release, err := a.leased(ctx)
	if err != nil {
		return err
	}
	defer release()
	if !o.quiet {
		fmt.Fprintf(a.Out, "The push refers to repository [%s]\n", r.Repository())
	}
	refs := []ref.Ref{r}
	if o.allTags {
		tags, err := s.Tags(ctx, r)
		if err != nil && !isNotFound(err) {
			return daemon(err)
		}
		refs = refs[:0]
		for _, t := range tags {
			refs = append(refs, r.WithTag(t))
		}
		if len(refs) == 0 {
			return fmt.Errorf("An image does not exist locally with the tag: %s", r.FamiliarName())
		}
	}
	repo := a.Remote().Repository(r)
	for _, r := range refs {
		if err := a.pushOne(ctx, s, repo, r, opt, o.quiet); err != nil {
			return err
		}
	}
	if o.quiet {
		fmt.Fprintln(a.Out, r.String())
	}
	return nil
}

func (a *App) pushOne(ctx context.Context, s *store.Store, repo *remote.Repository, r ref.Ref, opt content.CopyOptions, quiet bool) error {
	if img, err := s.Find(ctx, r.String()); err == nil { // Copy says where there is none
		if err := hasPlatforms(ctx, s, img, r.Familiar(), opt.Platforms); err != nil {
			return err
		}
	}
	printer := term.NewTransferPrinter(a.Out, term.Push)
	if !quiet {
		opt.Progress = printer.Event
	}
	got, err := content.Copy(ctx, repo, r, s, r, opt)
	printer.Close()
	if err != nil {
		return pushError(r, err)
	}
	if err := rememberPushed(ctx, s, repo, r, got); err != nil {
		return daemon(err)
	}
	if !quiet {
		fmt.Fprintf(a.Out, "%s: digest: %s size: %d\n", tagOrDigest(r), got.Digest, got.Size)
	}
	return nil
}

// rememberPushed records that r's repository knows the image as got: docker's
// RepoDigests. Packed on the way it is another manifest than the tag names
// here; its layers are the packed forms that the store keeps.
func rememberPushed(ctx context.Context, s *store.Store, repo *remote.Repository, r ref.Ref, got oci.Descriptor) error {
	if ok, err := s.Has(ctx, got); err != nil || !ok {
		if err != nil {
			return err
		}
		body, err := content.ReadAll(ctx, repo, got)
		if err != nil {
			return err
		}
		if err := s.Put(ctx, got, bytes.NewReader(body)); err != nil {
			return err
		}
	}
	if err := s.Tag(ctx, r.WithDigest(got.Digest), got); err != nil {
		return err
	}
	return s.TouchManifest(ctx, got.Digest)
}

// pushError is err in docker's words. In docker what fails while a push runs
// comes through its progress and has no "Error response from daemon".
func pushError(r ref.Ref, err error) error {
	var end *content.CopyError
	if errors.As(err, &end) && end.End == "source" && isNotFound(err) {
		return fmt.Errorf("tag does not exist: %s", r.Familiar())
	}
	return err
}
