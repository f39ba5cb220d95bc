package cli

import (
	"context"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/serve/registry"
)

// registryCommand is `strake registry`.
func (a *App) registryCommand() *cobra.Command {
	return a.group("registry", "Serve a registry", a.registryServeCommand())
}

func (a *App) registryServeCommand() *cobra.Command {
	var addr string
	cmd := &cobra.Command{
		Use:   "serve [OPTIONS]",
		Short: "Serve the store's images as an OCI registry, until SIGINT or SIGTERM",
		Example: `  strake registry serve --addr 127.0.0.1:5000
  strake --root /srv/images registry serve --addr :5000`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.registryServe(cmd.Context(), addr)
		},
	}
	cmd.Flags().StringVar(&addr, "addr", "127.0.0.1:5000", "Listen on this address; port 0 chooses a free one")
	return cmd
}

// registryServe prints the address on stdout once requests are answered: a
// script can wait for the line, and learns the port that was chosen.
func (a *App) registryServe(ctx context.Context, addr string) error {
	s, err := a.Store()
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return daemon(err)
	}
	fmt.Fprintf(a.Out, "Listening on %s\n", l.Addr())
	return daemon(registry.Serve(ctx, l, s, registry.Options{Log: a.log}))
}
