package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/log"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/connhelper"
	"github.com/moby/buildkit/client/connhelper/dockercontainer"
	"github.com/moby/buildkit/client/connhelper/kubepod"
	"github.com/moby/buildkit/client/connhelper/nerdctlcontainer"
	"github.com/moby/buildkit/client/connhelper/podmancontainer"
	"github.com/moby/buildkit/client/connhelper/ssh"
	"github.com/moby/buildkit/util/grpcerrors"
)

// TLS says who the daemon at a tcp address has to be, and who we are; the zero
// value is no TLS. The fields are files, as the options of buildx' remote driver.
type TLS struct {
	CACert, Cert, Key string
	ServerName        string
}

// Builder is a BuildKit daemon and how it is reached.
type Builder struct {
	Address string
	tls     TLS
	helper  *connhelper.ConnectionHelper
}

// NewBuilder checks the address. Nothing is dialled.
func NewBuilder(address string, t TLS) (*Builder, error) {
	b := &Builder{Address: address, tls: t}
	u, err := url.Parse(b.Address)
	if err != nil {
		return nil, fmt.Errorf("builder %q: %w", b.Address, err)
	}
	if b.secure() && u.Scheme != "tcp" {
		return nil, fmt.Errorf("builder %s: TLS is for tcp:// addresses", b.Address)
	}
	if (t.Cert == "") != (t.Key == "") {
		return nil, fmt.Errorf("builder %s: cert and key come together", b.Address)
	}
	switch u.Scheme {
	case "tcp":
		if u.Port() == "" {
			return nil, fmt.Errorf("builder %s has no port: tcp://HOST:PORT", b.Address)
		}
	case "unix":
		if u.Host != "" || u.Path == "" {
			return nil, fmt.Errorf("builder %s names no absolute path: unix:///PATH", b.Address)
		}
	case "ssh":
		b.helper, err = ssh.Helper(u)
	case "kube-pod":
		b.helper, err = kubepod.Helper(u)
	case "docker-container":
		b.helper, err = dockercontainer.Helper(u)
	case "podman-container":
		b.helper, err = podmancontainer.Helper(u)
	case "nerdctl-container":
		b.helper, err = nerdctlcontainer.Helper(u)
	default:
		return nil, fmt.Errorf("no builder %q found: an address is tcp://HOST:PORT, unix:///PATH, ssh://[USER@]HOST, kube-pod://POD, docker-container://NAME or podman-container://NAME", address)
	}
	if err != nil {
		return nil, fmt.Errorf("builder %s: %w", b.Address, err)
	}
	return b, nil
}

func (b *Builder) secure() bool { return b.tls != TLS{} }

// Conn is a connection to a builder.
type Conn struct{ client *client.Client }

// Connect reaches the daemon, so that what cannot be reached is told from what
// fails.
func (b *Builder) Connect(ctx context.Context) (*Conn, error) {
	// BuildKit's libraries log to stderr, in the middle of the progress, what
	// they also return.
	log.L.Logger.SetOutput(io.Discard)
	c, err := client.New(ctx, b.Address, b.options()...)
	if err != nil {
		return nil, fmt.Errorf("builder %s: %w", b.Address, err)
	}
	workers, err := c.ListWorkers(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil:
		err = b.unreachable(ctx, plain(err))
	case len(workers) == 0:
		err = fmt.Errorf("builder %s has no workers", b.Address)
	default:
		return &Conn{c}, nil
	}
	c.Close()
	return nil, err
}

// Close ends the connection.
func (c *Conn) Close() error { return c.client.Close() }

func (b *Builder) options() []client.ClientOpt {
	var opts []client.ClientOpt
	if b.helper != nil {
		opts = append(opts, client.WithContextDialer(b.helper.ContextDialer))
	}
	if b.secure() {
		if b.tls.CACert != "" {
			opts = append(opts, client.WithServerConfig(b.tls.ServerName, b.tls.CACert))
		} else {
			opts = append(opts, client.WithServerConfigSystem(b.tls.ServerName))
		}
		if b.tls.Cert != "" {
			opts = append(opts, client.WithCredentials(b.tls.Cert, b.tls.Key))
		}
	}
	return opts
}

// unreachable says what is at the address instead, as far as err, in gRPC's
// words, tells.
func (b *Builder) unreachable(ctx context.Context, err error) error {
	said := strings.TrimSuffix(strings.TrimPrefix(err.Error(), `connection error: desc = "`), `"`)
	switch {
	case b.speaksHTTP(ctx):
		return fmt.Errorf("builder %s is an HTTP server, such as a docker engine, and no buildkitd: `docker buildx create --name NAME --driver docker-container --bootstrap` starts one, which --builder docker-container://buildx_buildkit_NAME0 builds on", b.Address)
	case strings.HasPrefix(b.Address, "tcp:") && !b.secure() && strings.Contains(said, "server preface: "):
		return fmt.Errorf("builder %s cannot be reached: %s; if it wants TLS: --builder %s,cacert=FILE,cert=FILE,key=FILE", b.Address, said, b.Address)
	case strings.Contains(said, "tls: certificate required"):
		return fmt.Errorf("builder %s cannot be reached: %s; name ours: --builder %s,…,cert=FILE,key=FILE", b.Address, said, b.Address)
	case strings.Contains(said, "tls: "):
		return fmt.Errorf("builder %s cannot be reached: %s", b.Address, said)
	}
	return fmt.Errorf("builder %s cannot be reached: %s; does a buildkitd listen there?", b.Address, said)
}

// speaksHTTP tells whether an HTTP/1 server is at a plain address: how gRPC
// fails at one differs from time to time.
func (b *Builder) speaksHTTP(ctx context.Context) bool {
	network, at, _ := strings.Cut(b.Address, "://")
	if b.secure() || network != "unix" && network != "tcp" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, at)
	if err != nil {
		return false
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	answer := make([]byte, len("HTTP/1."))
	if _, err = io.WriteString(conn, "GET /_ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	return err == nil && string(answer) == "HTTP/1."
}

// plain is err without the codes that gRPC puts in front of its cause.
func plain(err error) error {
	if s, ok := grpcerrors.AsGRPCStatus(err); ok {
		return errors.New(s.Message())
	}
	return err
}
