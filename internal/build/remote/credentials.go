package remote

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	authutil "github.com/containerd/containerd/v2/core/remotes/docker/auth"
	authpb "github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/secrets"
	"golang.org/x/crypto/nacl/sign"
	"google.golang.org/grpc"

	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/oci"
)

// secretStore answers for RUN --mount=type=secret.
type secretStore func(ctx context.Context, id string) ([]byte, error)

// GetSecret implements secrets.SecretStore.
func (s secretStore) GetSecret(ctx context.Context, id string) ([]byte, error) {
	b, err := s(ctx, id)
	if errors.Is(err, oci.ErrNotFound) {
		err = fmt.Errorf("secret %s: %w", id, secrets.ErrNotFound)
	}
	return b, err
}

// credentials answers the daemon's questions about registries. Asked for a
// token it fetches one itself, so that a daemon that many share sees tokens
// that end, for the repositories of this build, and not the password.
type credentials struct {
	authpb.UnimplementedAuthServer
	lookup auth.Lookup
	// seed makes the daemon keep the tokens of this build to this build.
	seed   []byte
	client *http.Client
}

func newCredentials(lookup auth.Lookup) *credentials {
	seed := make([]byte, 16)
	_, _ = rand.Read(seed) // never fails
	return &credentials{lookup: lookup, seed: seed, client: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Register implements session.Attachable.
func (c *credentials) Register(s *grpc.Server) { authpb.RegisterAuthServer(s, c) }

func (c *credentials) find(ctx context.Context, host string) (auth.Credentials, error) {
	if c.lookup == nil {
		return auth.Credentials{}, nil
	}
	if host == "registry-1.docker.io" {
		host = "docker.io"
	}
	return c.lookup(ctx, host)
}

// userSecret is how registries take what docker's config.json has: an identity
// token has no user.
func userSecret(c auth.Credentials) (user, secret string) {
	if c.IdentityToken != "" {
		return "", c.IdentityToken
	}
	return c.Username, c.Password
}

// Credentials implements auth.AuthServer.
func (c *credentials) Credentials(ctx context.Context, req *authpb.CredentialsRequest) (*authpb.CredentialsResponse, error) {
	got, err := c.find(ctx, req.Host)
	if err != nil {
		return nil, err
	}
	user, secret := userSecret(got)
	return &authpb.CredentialsResponse{Username: user, Secret: secret}, nil
}

// FetchToken implements auth.AuthServer. The token server's address comes from
// the daemon, so credentials go there only over TLS or to the registry itself.
func (c *credentials) FetchToken(ctx context.Context, req *authpb.FetchTokenRequest) (*authpb.FetchTokenResponse, error) {
	got, err := c.find(ctx, req.Host)
	if err != nil {
		return nil, err
	}
	if got.RegistryToken != "" {
		return &authpb.FetchTokenResponse{Token: got.RegistryToken, ExpiresIn: 60}, nil
	}
	to := authutil.TokenOptions{Realm: req.Realm, Service: req.Service, Scopes: req.Scopes}
	to.Username, to.Secret = userSecret(got)
	if u, err := url.Parse(req.Realm); err != nil || to.Secret != "" && u.Scheme != "https" && u.Host != req.Host {
		return nil, fmt.Errorf("token server %q of %s: no credentials are sent there without TLS", req.Realm, req.Host)
	}
	if to.Secret != "" {
		if t, err := authutil.FetchTokenWithOAuth(ctx, c.client, nil, "strake", to); err == nil {
			return &authpb.FetchTokenResponse{Token: t.AccessToken, ExpiresIn: lifetime(t.ExpiresInSeconds), IssuedAt: t.IssuedAt.Unix()}, nil
		} else if to.Username == "" {
			return nil, fmt.Errorf("failed to fetch oauth token: %w", err)
		}
		// Many token servers know only GET.
	}
	t, err := authutil.FetchToken(ctx, c.client, nil, to)
	if err != nil {
		return nil, fmt.Errorf("failed to fetch a token for %s: %w", req.Host, err)
	}
	return &authpb.FetchTokenResponse{Token: t.Token, ExpiresIn: lifetime(t.ExpiresInSeconds), IssuedAt: t.IssuedAt.Unix()}, nil
}

// lifetime is a token's, which is a minute where its server says nothing.
func lifetime(seconds int) int64 {
	if seconds == 0 {
		return 60
	}
	return int64(seconds)
}

// GetTokenAuthority implements auth.AuthServer.
func (c *credentials) GetTokenAuthority(ctx context.Context, req *authpb.GetTokenAuthorityRequest) (*authpb.GetTokenAuthorityResponse, error) {
	key, err := c.key(ctx, req.Host, req.Salt)
	if err != nil {
		return nil, err
	}
	return &authpb.GetTokenAuthorityResponse{PublicKey: key[32:]}, nil
}

// VerifyTokenAuthority implements auth.AuthServer.
func (c *credentials) VerifyTokenAuthority(ctx context.Context, req *authpb.VerifyTokenAuthorityRequest) (*authpb.VerifyTokenAuthorityResponse, error) {
	key, err := c.key(ctx, req.Host, req.Salt)
	if err != nil {
		return nil, err
	}
	return &authpb.VerifyTokenAuthorityResponse{Signed: sign.Sign(nil, req.Payload, (*[64]byte)(key))}, nil
}

// key tells whose the tokens for a host are: everybody's, where there are no
// credentials for it, or this build's.
func (c *credentials) key(ctx context.Context, host string, salt []byte) (ed25519.PrivateKey, error) {
	got, err := c.find(ctx, host)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, salt)
	if !got.Empty() {
		mac.Write(c.seed)
		mac.Write([]byte(host))
	}
	return ed25519.NewKeyFromSeed(mac.Sum(nil)[:ed25519.SeedSize]), nil
}
