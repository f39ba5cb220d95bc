package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

type pullOptions struct {
	allTags, quiet bool
	platform       string
}

func (a *App) pullCommand(use string) *cobra.Command {
	var o pullOptions
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS] NAME[:TAG|@DIGEST]",
		Short: "Fetch an image from a registry",
		Example: `  strake pull debian:12
  strake pull --platform linux/arm64 registry.example.com/team/web`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pull(cmd.Context(), args[0], &o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.allTags, "all-tags", "a", false, "Fetch all tags of the repository")
	fs.StringVar(&o.platform, "platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "Fetch this platform's image of several (os[/arch[/variant]])")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Print only the image's name")
	return a.spelled(cmd, "image pull", "pull")
}

func (a *App) pull(ctx context.Context, name string, o *pullOptions) error {
	r, err := ref.Parse(name)
	if err != nil {
		return err
	}
	bare := r.Tag == "" && r.Digest == ""
	if o.allTags && !bare {
		return errors.New("tag can't be used with --all-tags/-a")
	}
	if bare && !o.allTags {
		r = r.WithDefaultTag()
		if !o.quiet {
			fmt.Fprintln(a.Out, "Using default tag:", r.Tag)
		}
	}
	var p *oci.Platform
	if o.platform != "" {
		parsed, err := parsePlatform(o.platform)
		if err != nil {
			return err
		}
		p = &parsed
	}
	ctx, s, release, err := a.leased(ctx)
	if err != nil {
		return err
	}
	defer release()
	repo := a.Remote().Repository(r)
	refs := []ref.Ref{r}
	if o.allTags {
		tags, err := repo.Tags(ctx, r)
		if err != nil {
			return daemon(err)
		}
		refs = refs[:0]
		for _, t := range tags {
			refs = append(refs, r.WithTag(t))
		}
	}
	var last error
	for _, r := range refs {
		if last = a.pullOne(ctx, s, repo, r, p, o.quiet); last != nil {
			return last
		}
	}
	fmt.Fprintln(a.Out, r.String())
	return nil
}

// pullOne fetches one tag or digest.
func (a *App) pullOne(ctx context.Context, s *store.Store, repo *remote.Repository, r ref.Ref, p *oci.Platform, quiet bool) error {
	if err := checkPlatform(ctx, repo, r, p); err != nil {
		return daemon(err)
	}
	want := content.Host()
	if p != nil {
		want = *p
	}
	before, err := s.Resolve(ctx, r)
	if err != nil && !isNotFound(err) {
		return daemon(err)
	}
	var mu sync.Mutex
	moved := false
	printer := term.NewTransferPrinter(a.Out, term.Pull)
	progress := func(e content.Event) {
		switch e.Kind {
		case content.Resolved:
			if !quiet {
				fmt.Fprintf(a.Out, "%s: Pulling from %s\n", tagOrDigest(r), r.Path)
			}
		case content.Started:
			mu.Lock()
			moved = true
			mu.Unlock()
		}
		if !quiet {
			printer.Event(e)
		}
	}
	got, err := content.Copy(ctx, s, r, repo, r, content.CopyOptions{Platforms: []oci.Platform{want}, Usable: true, Progress: progress})
	printer.Close()
	if err != nil {
		return daemon(err)
	}
	if quiet {
		return nil
	}
	fmt.Fprintf(a.Out, "Digest: %s\n", got.Digest)
	if before.Digest == got.Digest && !moved {
		fmt.Fprintf(a.Out, "Status: Image is up to date for %s\n", r.Familiar())
	} else {
		fmt.Fprintf(a.Out, "Status: Downloaded newer image for %s\n", r.Familiar())
	}
	return nil
}

func tagOrDigest(r ref.Ref) string {
	if r.Digest != "" {
		return r.Repository() + "@" + string(r.Digest)
	}
	return r.Tag
}

// checkPlatform refuses an image for one other platform than the user asked
// for. Of an index the platform is chosen in Copy.
func checkPlatform(ctx context.Context, repo *remote.Repository, r ref.Ref, want *oci.Platform) error {
	if want == nil {
		return nil
	}
	d, err := repo.Resolve(ctx, r)
	if err != nil || !oci.IsManifest(d.MediaType) {
		return nil // Copy meets the same error, and says which end failed
	}
	m, err := content.ReadManifest(ctx, repo, d)
	if err != nil {
		return err
	}
	conf, err := content.ReadConfig(ctx, repo, m.Config)
	if errors.Is(err, oci.ErrInvalid) || err == nil && conf.OS == "" {
		return nil // an artifact, which has no platform
	}
	if err != nil {
		return err
	}
	if platforms.Only(*want).Match(conf.Platform) {
		return nil
	}
	return fmt.Errorf("image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
		r.Familiar(), platforms.Format(platforms.Normalize(conf.Platform)), platforms.Format(*want))
}
