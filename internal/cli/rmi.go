package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

func (a *App) rmiCommand(use string) *cobra.Command {
	var o rmiOptions
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS] IMAGE [IMAGE...]",
		Short: "Remove one or more images",
		Example: `  strake rmi web:old
  strake rmi -f 4f1d2c3b4a59
  strake rmi 'ci/*:pr-*'
  strake undo`,
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rmi(cmd.Context(), args, &o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.force, "force", "f", false, "Remove also what is pinned, and what several names or stopped containers use")
	fs.BoolVar(&o.now, "now", false, "Free the space at once: no undo")
	fs.BoolVar(&o.noPrune, "no-prune", false, "Keep untagged parents (strake's images have none)")
	fs.StringSliceVar(&o.platforms, "platform", nil, "Remove only these platforms' images of several (os[/arch[/variant]]); needs -f")
	return a.spelled(cmd, "image rm", "image remove", "rmi")
}

type rmiOptions struct {
	force, noPrune, now bool
	platforms           []string
}

// rmi removes each of names, goes on where one fails and reports all failures.
// With force, a name that is not there is reported but is no failure.
func (a *App) rmi(ctx context.Context, names []string, o *rmiOptions) error {
	wanted, err := rmiPlatforms(o.platforms)
	if err != nil {
		return err
	}
	s, err := a.Store()
	if err != nil {
		return err
	}
	if names, err = expandNames(ctx, s, names); err != nil {
		return err
	}
	var errs []error
	fatal := false
	for _, name := range names {
		r := remover{s: s, force: o.force, now: o.now, platforms: wanted}
		err := r.remove(ctx, name)
		for _, line := range r.lines {
			fmt.Fprintln(a.Out, line)
		}
		if err != nil {
			fatal = fatal || !isNotFound(err)
			errs = append(errs, err)
		}
	}
	if o.force && !fatal {
		a.print(errors.Join(errs...))
		return nil
	}
	return errors.Join(errs...)
}

// remover removes one image or one of its names.
type remover struct {
	s          *store.Store
	force, now bool
	platforms  []oci.Platform // only these of several
	lines      []string       // what docker prints
}

func (r *remover) remove(ctx context.Context, name string) error {
	img, err := findImage(ctx, r.s, name)
	if err != nil {
		return err
	}
	if len(r.platforms) > 0 {
		whole, err := r.removePlatforms(ctx, img, name)
		if err != nil || !whole {
			return err
		}
	}
	users, err := containersOf(ctx, r.s, img)
	if err != nil {
		return daemon(err)
	}
	if named, ok := nameOf(img, name); ok {
		return r.removeName(ctx, img, named, users)
	}
	return r.removeID(ctx, img, name, users)
}

// nameOf finds which of img's names the user gave; none means that it was an ID.
func nameOf(img *store.Image, given string) (ref.Ref, bool) {
	want, err := ref.ParseImage(given)
	if err != nil {
		return ref.Ref{}, false
	}
	for _, n := range append(img.Names[:len(img.Names):len(img.Names)], img.Digests...) {
		if n.Repository() == want.Repository() && (want.Digest != "" && n.Digest == want.Digest || want.Digest == "" && n.Digest == "" && n.Tag == want.Tag) {
			return n, true
		}
	}
	return ref.Ref{}, false
}

// removeName takes one name away; with the last one the image goes too.
func (r *remover) removeName(ctx context.Context, img *store.Image, name ref.Ref, users []user) error {
	last := onlyRepository(img, name)
	if !r.force && (slices.Contains(img.PinnedNames, name) || last && img.Pinned) {
		return pinned(name.Familiar())
	}
	if !last {
		return r.untagWithDigests(ctx, img, name)
	}
	if len(users) > 0 && !r.force {
		return conflict(name.Familiar(), "must be forced",
			fmt.Sprintf("container %s is using its referenced image %s", users[0].short(), shortID(img.ID, false)))
	}
	return r.removeAll(ctx, img, users)
}

// removeID takes the whole image away.
func (r *remover) removeID(ctx context.Context, img *store.Image, given string, users []user) error {
	shown := strings.TrimPrefix(given, "sha256:")
	shown = shown[:min(12, len(shown))]
	for _, u := range users {
		if u.running {
			return conflict(shown, "cannot be forced", "image is being used by running container "+u.short())
		}
	}
	if !r.force {
		if img.Pinned || len(img.PinnedNames) > 0 {
			return pinned(shown)
		}
		if len(img.Names)+len(img.Digests) > 1 && !onlyRepository(img, firstName(img)) {
			return conflict(shown, "must be forced", "image is referenced in multiple repositories")
		}
		if len(users) > 0 {
			return conflict(shown, "must be forced", "image is being used by stopped container "+users[0].short())
		}
	}
	return r.removeAll(ctx, img, users)
}

// pinned refuses to remove what is pinned.
func pinned(name string) error {
	return conflict(name, "must be forced", "image is pinned")
}

func firstName(img *store.Image) ref.Ref {
	if len(img.Names) > 0 {
		return img.Names[0]
	}
	return img.Digests[0]
}

// onlyRepository tells whether taking name away leaves img without a name: it
// is the only tag, and what else there is are digests of the same repository.
func onlyRepository(img *store.Image, name ref.Ref) bool {
	for _, n := range img.Names {
		if n != name {
			return false
		}
	}
	for _, d := range img.Digests {
		if d != name && (name.Digest != "" || d.Repository() != name.Repository()) {
			return false
		}
	}
	return true
}

// untagWithDigests takes name away and, if it was its repository's last tag,
// the digests that the repository was known by.
func (r *remover) untagWithDigests(ctx context.Context, img *store.Image, name ref.Ref) error {
	names := []ref.Ref{name}
	last := name.Digest == ""
	for _, n := range img.Names {
		last = last && (n == name || n.Repository() != name.Repository())
	}
	for _, d := range img.Digests {
		if last && d.Repository() == name.Repository() {
			names = append(names, d)
		}
	}
	// The image stays: its ID is not deleted. Another packing may be.
	_, err := r.take(ctx, store.Removal{Names: names})
	return err
}

// removeAll takes all names away and, unless containers keep it, the image's
// content as far as nothing else needs it. It tells of the image and of the
// layers that are gone.
func (r *remover) removeAll(ctx context.Context, img *store.Image, users []user) error {
	freed, err := r.take(ctx, store.Removal{
		Names: append(img.Names[:len(img.Names):len(img.Names)], img.Digests...),
		Image: img.ID, KeepImages: len(users) > 0,
	})
	if err != nil {
		return err
	}
	gone := goneDigests(freed)
	if gone[img.ID] {
		r.lines = append(r.lines, "Deleted: "+string(img.ID))
	}
	for i := len(img.Layers) - 1; i >= 0; i-- {
		if d := img.Layers[i]; gone[d] {
			delete(gone, d) // an image may have a layer twice
			r.lines = append(r.lines, "Deleted: "+string(d))
		}
	}
	return nil
}

func (r *remover) take(ctx context.Context, what store.Removal) (*store.Freed, error) {
	what.Now = r.now
	freed, err := r.s.Remove(ctx, what)
	if err != nil {
		return nil, daemon(err)
	}
	for _, n := range what.Names {
		r.lines = append(r.lines, "Untagged: "+n.Familiar())
	}
	return freed, nil
}

func conflict(name, how, why string) error {
	return daemonf("conflict: unable to delete %s (%s) - %s", name, how, why)
}

// user is a container that uses an image.
type user struct {
	id      string
	running bool
}

func (u user) short() string { return u.id[:min(12, len(u.id))] }

// containersOf lists the containers made from img.
func containersOf(ctx context.Context, s *store.Store, img *store.Image) ([]user, error) {
	list, err := container.In(s).List(ctx)
	if err != nil {
		return nil, err
	}
	var users []user
	for _, c := range list {
		if c.ImageID == img.ID {
			users = append(users, user{c.ID, c.State == container.Running})
		}
	}
	return users, nil
}
