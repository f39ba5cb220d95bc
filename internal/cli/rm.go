package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/container"
)

type rmOptions struct{ force, volumes bool }

func (a *App) rmCommand(use string) *cobra.Command {
	var o rmOptions
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Remove containers",
		Example: `  strake rm web
  strake rm -f $(strake ps -aq)`,
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.rm(cmd.Context(), args, &o) },
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "Kill a running container first")
	cmd.Flags().BoolVarP(&o.volumes, "volumes", "v", false, "Remove its anonymous volumes too (strake always does)")
	return cmd
}

// rm prints the name of each container it removed.
func (a *App) rm(ctx context.Context, names []string, o *rmOptions) error {
	s, err := a.Store()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if name == "" {
			errs = append(errs, errors.New("container name cannot be empty"))
			continue
		}
		err := container.In(s).Delete(ctx, name, o.force)
		switch {
		case err == nil:
			fmt.Fprintln(a.Out, name)
		case o.force && isNotFound(err): // docker: gone is what was wanted
			fmt.Fprintln(a.Err, a.text(&Failure{Err: err, Daemon: true}))
		default:
			errs = append(errs, daemon(err))
		}
	}
	return errors.Join(errs...)
}
