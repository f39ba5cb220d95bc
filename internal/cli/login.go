package cli

import (
	"cmp"
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
			// A script's unset variable must not be taken for "ask me", or for
			// what is kept.
			for _, flag := range []string{"username", "password"} {
				if f := cmd.Flags().Lookup(flag); f.Changed && f.Value.String() == "" {
					return errors.New(flag + " is empty")
				}
			}
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
	file, err := config.Load(a.ConfigDir())
	if err != nil {
		return err
	}
	key, before := configKey(host), ""
	if o.user == "" && o.password == "" {
		// What cannot be read is asked for; saving it says why.
		if kept, err := file.GetAuthConfig(key); err == nil && kept.Username != "" && kept.Password != "" {
			before = kept.Username
			if a.stillGood(ctx, host, kept) {
				fmt.Fprintln(a.Out, "Login Succeeded")
				return nil
			}
		}
	}
	if err := a.ask(ctx, o, before); err != nil {
		return err
	}
	if err := a.knock(ctx, host, o.user, o.password); err != nil {
		return loginError(host, err)
	}
	if err := file.GetCredentialsStore(key).Store(types.AuthConfig{Username: o.user, Password: o.password, ServerAddress: key}); err != nil {
		return fmt.Errorf("error saving credentials: %w", err)
	}
	fmt.Fprintln(a.Out, "Login Succeeded")
	return nil
}

// knock asks host whether it lets the user in.
func (a *App) knock(ctx context.Context, host, user, password string) error {
	given := auth.Credentials{Username: user, Password: password}
	client := a.newRemote(func(context.Context, string) (auth.Credentials, error) { return given, nil })
	return client.Ping(ctx, host)
}

// stillGood tries the credentials that are kept for host, and says so in
// docker's words.
func (a *App) stillGood(ctx context.Context, host string, c types.AuthConfig) bool {
	fmt.Fprintf(a.Err, "Authenticating with existing credentials... [Username: %s]\n", c.Username)
	err := a.knock(ctx, host, c.Username, c.Password)
	if errors.Is(err, oci.ErrUnauthorized) {
		fmt.Fprintln(a.Err, "Stored credentials invalid or expired")
	} else if err != nil {
		fmt.Fprintln(a.Err, "Login did not succeed, error:", err)
	}
	return err == nil
}

// ask asks for what the flags did not say; before is the user of the last login.
func (a *App) ask(ctx context.Context, o *loginOptions, before string) error {
	if o.user != "" && o.password != "" {
		return nil
	}
	if !a.In.IsTerminal() {
		return errors.New("Error: Cannot perform an interactive login from a non TTY device")
	}
	if o.user == "" {
		prompt := "Username: "
		if before != "" {
			prompt = fmt.Sprintf("Username (%s): ", before)
		}
		line, err := term.Ask(ctx, a.In, a.Err, prompt)
		if err != nil {
			return err
		}
		if o.user = cmp.Or(strings.TrimSpace(line), before); o.user == "" {
			return errors.New("Error: Non-null Username Required")
		}
	}
	if o.password == "" {
		secret, err := term.AskSecret(ctx, a.In, a.Err, "Password: ")
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
	var refused *auth.Error
	switch {
	case errors.As(err, &answer):
		return daemonf("login attempt to %s failed with status: %d %s", answer.URL, answer.Status, http.StatusText(answer.Status))
	case errors.As(err, &refused) && refused.Status == 0:
		return daemonf("login attempt to https://%s/v2/ failed with status: 401 Unauthorized", host)
	}
	return daemon(err)
}

// logout forgets what is kept for host, in each way docker has ever kept it. A
// helper is told too, whatever it lists.
func (a *App) logout(host string) error {
	file, err := config.Load(a.ConfigDir())
	if err != nil {
		return err
	}
	shown, keys := auth.Hub, []string{auth.Hub} // docker names its index, and the host of any other
	if host != "docker.io" {
		shown, keys = host, []string{host, "http://" + host, "https://" + host}
	}
	fmt.Fprintln(a.Out, "Removing login credentials for", shown)
	var errs []error
	for _, key := range keys {
		if err := file.GetCredentialsStore(key).Erase(key); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == len(keys) {
		return fmt.Errorf("could not erase credentials: %w", errs[0])
	}
	return nil
}
