package auth

import (
	"context"
	"fmt"
	"sync"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"

	"github.com/strake-project/strake/internal/oci"
)

// Hub is the name under which docker keeps Docker Hub's credentials.
const Hub = "https://index.docker.io/v1/"

// Docker looks credentials up as docker does: auths, credsStore and credHelpers
// of config.json in dir, or, where dir is empty, of $DOCKER_CONFIG or ~/.docker.
// The file is read, once, when the first challenge asks for it; a helper
// program runs only then.
func Docker(dir string) Lookup {
	load := sync.OnceValues(func() (*configfile.ConfigFile, error) {
		if dir == "" {
			dir = config.Dir()
		}
		return config.Load(dir)
	})
	return func(_ context.Context, host string) (Credentials, error) {
		file, err := load()
		if err != nil {
			return Credentials{}, fmt.Errorf("docker's config.json: %v: %w", err, oci.ErrInvalid)
		}
		if host == "docker.io" {
			host = Hub
		}
		got, err := file.GetAuthConfig(host)
		if err != nil {
			return Credentials{}, fmt.Errorf("docker's credential store: %w", err)
		}
		return Credentials{
			Username: got.Username, Password: got.Password,
			IdentityToken: got.IdentityToken, RegistryToken: got.RegistryToken,
		}, nil
	}
}
