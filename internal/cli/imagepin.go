package cli

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/content/store"
)

func (a *App) imagePinCommand(pin bool) *cobra.Command {
	use, short := "pin", "Keep images from being removed by prune and rmi"
	if !pin {
		use, short = "unpin", "Let images be removed again"
	}
	return &cobra.Command{
		Use:   use + " IMAGE [IMAGE...]",
		Short: short,
		Long: short + `.

A name is pinned whatever it points at; an ID pins the image whatever it is
called. rmi --force removes a pinned image, and its pin with it.`,
		Example: "  strake image " + use + " web:prod\n  strake images --filter pinned=true",
		Args:    minArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.imagePin(cmd.Context(), args, pin) },
	}
}

func (a *App) imagePin(ctx context.Context, names []string, pin bool) error {
	s, err := a.Store()
	if err != nil {
		return err
	}
	if names, err = expandNames(ctx, s, names); err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		img, err := findImage(ctx, s, name)
		if err == nil {
			if named, ok := nameOf(img, name); ok && named.Tag != "" {
				_, err = s.Pin(ctx, named, pin)
			} else {
				_, err = s.PinImage(ctx, img.ID, pin)
			}
		}
		if err != nil {
			errs = append(errs, daemon(err))
			continue
		}
		fmt.Fprintln(a.Out, name)
	}
	return errors.Join(errs...)
}

// isGlob tells a pattern from a name: no name has these characters.
func isGlob(name string) bool { return strings.ContainsAny(name, "*?[") }

// expandNames replaces patterns by the tags they fit, in the order of images.
func expandNames(ctx context.Context, s *store.Store, names []string) ([]string, error) {
	var out []string
	var all []store.Image
	for _, name := range names {
		if !isGlob(name) {
			out = append(out, name)
			continue
		}
		if _, err := path.Match(name, ""); err != nil {
			return nil, daemonf("invalid pattern %q: %w", name, err)
		}
		if all == nil {
			var err error
			if all, err = s.Images(ctx); err != nil {
				return nil, daemon(err)
			}
		}
		found := false
		for i := range all {
			for _, n := range all[i].Names {
				if matches(name, n) {
					out, found = append(out, n.Familiar()), true
				}
			}
		}
		if !found {
			return nil, daemonf("No such image: %s", name)
		}
	}
	return out, nil
}
