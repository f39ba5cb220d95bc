package remote

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/containerd/log"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/connhelper"
	"github.com/moby/buildkit/client/connhelper/dockercontainer"
	"github.com/moby/buildkit/client/connhelper/kubepod"
	"github.com/moby/buildkit/client/connhelper/nerdctlcontainer"
	"github.com/moby/buildkit/client/connhelper/podmancontainer"
	"github.com/moby/buildkit/client/connhelper/ssh"
	"github.com/moby/buildkit/util/grpcerrors"

	"github.com/strake-project/strake/internal/oci"
)

// Builder is a BuildKit daemon and how it is reached.
type Builder struct {
	Address                    string
	CACert, Cert, Key, SrvName string // TLS, of tcp addresses
	helper                     *connhelper.ConnectionHelper
}

// ParseBuilder reads ADDRESS[,cacert=FILE][,cert=FILE,key=FILE][,servername=NAME],
// the options that buildx' remote driver has.
func ParseBuilder(spec string) (*Builder, error) {
	fields, err := csv.NewReader(strings.NewReader(spec)).Read()
	if err != nil || len(fields) == 0 {
		return nil, fmt.Errorf("builder %q: %w", spec, oci.ErrInvalid)
	}
	b := &Builder{Address: fields[0]}
	for _, f := range fields[1:] {
		k, v, _ := strings.Cut(f, "=")
		switch k {
		case "cacert":
			b.CACert = v
		case "cert":
			b.Cert = v
		case "key":
			b.Key = v
		case "servername":
			b.SrvName = v
		default:
			return nil, fmt.Errorf("builder %s: unknown option %q: cacert, cert, key and servername are known", b.Address, k)
		}
	}
	u, err := url.Parse(b.Address)
	if err != nil {
		return nil, fmt.Errorf("builder %q: %w", b.Address, err)
	}
	if b.secure() && u.Scheme != "tcp" {
		return nil, fmt.Errorf("builder %s: TLS is for tcp:// addresses", b.Address)
	}
	if (b.Cert == "") != (b.Key == "") {
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
		return nil, fmt.Errorf("no builder %q found: an address is tcp://HOST:PORT, unix:///PATH, ssh://[USER@]HOST, kube-pod://POD, docker-container://NAME or podman-container://NAME", spec)
	}
	if err != nil {
		return nil, fmt.Errorf("builder %s: %w", b.Address, err)
	}
	return b, nil
}

func (b *Builder) secure() bool { return b.CACert != "" || b.Cert != "" || b.SrvName != "" }

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
		err = fmt.Errorf("builder %s cannot be reached: %w; does a buildkitd listen there?", b.Address, plain(err))
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
		if b.CACert != "" {
			opts = append(opts, client.WithServerConfig(b.SrvName, b.CACert))
		} else {
			opts = append(opts, client.WithServerConfigSystem(b.SrvName))
		}
		if b.Cert != "" {
			opts = append(opts, client.WithCredentials(b.Cert, b.Key))
		}
	}
	return opts
}

// plain is err without the codes that gRPC puts in front of its cause.
func plain(err error) error {
	if s, ok := grpcerrors.AsGRPCStatus(err); ok {
		return errors.New(s.Message())
	}
	return err
}
