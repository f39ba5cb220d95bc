package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/oci"
)

type loginOptions struct {
	user, password string
	stdin          bool
}

func (a *App) loginCommand() *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use:     "login [OPTIONS] [SERVER]",
		Short:   "Keep credentials for a registry (Docker Hub, unless SERVER says which)",
		Example: "  strake login -u ann --password-stdin registry.example.com < token",
		Args:    maxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.login(cmd.Context(), serverOf(args), &o, cmd.Flags().Changed("password"))
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.user, "username", "u", "", "Username")
	fs.StringVarP(&o.password, "password", "p", "", "Password or access token (others see it in the list of processes)")
	fs.BoolVar(&o.stdin, "password-stdin", false, "Read the password or access token from stdin")
	return cmd
}

func (a *App) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "logout [SERVER]",
		Short:   "Forget the credentials for a registry",
		Example: "  strake logout registry.example.com",
		Args:    maxArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.logout(serverOf(args))
		},
	}
}

// serverOf is the registry's host as it stands in references.
func serverOf(args []string) string {
	if len(args) == 0 {
		return "docker.io"
	}
	host := strings.TrimPrefix(strings.TrimPrefix(args[0], "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" || host == "" {
		return "docker.io"
	}
	return host
}

// configKey is the name under which docker's config.json has a host.
func configKey(host string) string {
	if host == "docker.io" {
		return auth.Hub
	}
	return host
}

func (a *App) login(ctx context.Context, host string, o *loginOptions, insecure bool) error {
	if insecure {
		if o.stdin {
			return errors.New("conflicting options: cannot specify both --password and --password-stdin")
		}
		fmt.Fprintln(a.Err, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
	}
	if o.stdin {
		if o.user == "" {
			return errors.New("the --password-stdin option requires --username to be set")
		}
		b, err := io.ReadAll(io.LimitReader(a.In, 1<<20))
		if err != nil {
			return err
		}
		o.password = strings.TrimRight(string(b), "\r\n")
	}
	if err := a.ask(o); err != nil {
		return err
	}
	given := auth.Credentials{Username: o.user, Password: o.password}
	client := a.newRemote(func(context.Context, string) (auth.Credentials, error) { return given, nil })
	if err := client.Ping(ctx, host); err != nil {
		return loginError(host, err)
	}
	file, err := config.Load(a.ConfigDir())
	if err != nil {
		return err
	}
	key := configKey(host)
	if err := file.GetCredentialsStore(key).Store(types.AuthConfig{Username: o.user, Password: o.password, ServerAddress: key}); err != nil {
		return fmt.Errorf("error saving credentials: %w", err)
	}
	fmt.Fprintln(a.Out, "Login Succeeded")
	return nil
}

// ask asks for what the flags did not say.
func (a *App) ask(o *loginOptions) error {
	if o.user != "" && o.password != "" {
		return nil
	}
	if !a.In.IsTerminal() {
		return errors.New("Error: Cannot perform an interactive login from a non TTY device")
	}
	if o.user == "" {
		fmt.Fprint(a.Err, "Username: ")
		line, err := bufio.NewReader(a.In).ReadString('\n')
		if o.user = strings.TrimSpace(line); o.user == "" {
			return errors.Join(errors.New("Error: Non-null Username Required"), err)
		}
	}
	if o.password == "" {
		fmt.Fprint(a.Err, "Password: ")
		secret, err := term.ReadPassword(a.In)
		fmt.Fprintln(a.Err)
		if err != nil {
			return err
		}
		if o.password = secret; o.password == "" {
			return errors.New("Error: Password Required")
		}
	}
	return nil
}

func loginError(host string, err error) error {
	var answer *remote.Error
	switch {
	case errors.As(err, &answer):
		return daemonf("login attempt to %s failed with status: %d %s", answer.URL, answer.Status, http.StatusText(answer.Status))
	case errors.Is(err, oci.ErrUnauthorized):
		return daemonf("login attempt to https://%s/v2/ failed with status: 401 Unauthorized", host)
	}
	return daemon(err)
}

func (a *App) logout(host string) error {
	file, err := config.Load(a.ConfigDir())
	if err != nil {
		return err
	}
	key := configKey(host)
	known, err := file.GetAllCredentials()
	if err != nil {
		return err
	}
	shown := host
	if key == auth.Hub {
		shown = key // docker names its index, and the host of any other
	}
	fmt.Fprintln(a.Out, "Removing login credentials for", shown)
	if _, ok := known[key]; !ok {
		return nil
	}
	if err := file.GetCredentialsStore(key).Erase(key); err != nil {
		return fmt.Errorf("could not erase credentials: %w", err)
	}
	return nil
}
