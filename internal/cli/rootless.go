package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/sandbox"
	"github.com/strake-project/strake/internal/sandbox/network"
	"github.com/strake-project/strake/internal/userns"
)

// An ordinary user's images are unpacked and run in a user namespace, where
// the user is root and has the ids of /etc/subuid. A command that may need it
// is executed once more inside, before it does anything; see package userns.

// confine makes all commands below cmd enter a user namespace where they need
// one and the process is not in one.
func (a *App) confine(cmd *cobra.Command, all map[string]traits) {
	for _, c := range cmd.Commands() {
		a.confine(c, all)
		when, inner := all[a.pathOf(c)].needs, c.RunE
		if inner == nil || c.HasSubCommands() || when == never && c.Flags().Lookup("size") == nil {
			continue
		}
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if b := cmd.Flags().Lookup("builder"); b != nil && b.Value.String() != "" && b.Value.String() != "default" {
				return inner(cmd, args) // others do the work
			}
			need := when
			if need == never && asksSize(cmd) {
				need = forTrees
			}
			if need == never || a.entered || !userns.Needed() || need == forTrees && !a.hasTrees() {
				return inner(cmd, args)
			}
			a.busy.Stop() // the process inside shows what it does
			code, err := userns.Enter(a.args)
			if err != nil {
				return &Failure{Code: 125, Err: err}
			}
			if code != 0 {
				return &Failure{Code: code}
			}
			return nil
		}
	}
}

// asksSize tells whether the files that containers wrote are to be looked at.
func asksSize(cmd *cobra.Command) bool {
	format, _ := cmd.Flags().GetString("format")
	size, _ := cmd.Flags().GetBool("size")
	return size || strings.Contains(format, ".Size")
}

// hasTrees tells whether the store has anything unpacked: layers, containers,
// caches, or what a build that died was writing.
func (a *App) hasTrees() bool {
	root, err := a.Root()
	if err != nil {
		return false
	}
	for _, in := range []string{"work", "caches", "containers"} {
		found, _ := os.ReadDir(filepath.Join(root, in))
		for _, f := range found {
			if f.IsDir() {
				return true
			}
		}
	}
	shards, _ := os.ReadDir(filepath.Join(root, "layers"))
	for _, s := range shards {
		shard := filepath.Join(root, "layers", s.Name())
		layers, _ := os.ReadDir(shard)
		for _, l := range layers {
			for _, form := range []string{"tree", "tree.new"} {
				if _, err := os.Lstat(filepath.Join(shard, l.Name(), form)); err == nil {
					return true
				}
			}
		}
	}
	return false
}

// networkMode turns --network into what a sandbox gets.
func networkMode(name string) (sandbox.Network, error) {
	switch name {
	case "host", "none":
		return sandbox.Network(name), nil
	case "", "default":
		if userns.Inside() {
			return sandbox.User, nil
		}
		return sandbox.Host, nil
	case "pasta", "slirp4netns":
		return sandbox.User, nil
	}
	return "", fmt.Errorf("network %s is not supported: use --network host, none, pasta or slirp4netns", name)
}

// userNetwork is the network of a user namespace's containers; nil where
// --network asks for another one. ctx has the lease under which its files lie.
func (a *App) userNetwork(ctx context.Context, s *store.Store, name string) *network.Shared {
	if mode, err := networkMode(name); err != nil || mode != sandbox.User {
		return nil
	}
	n := &network.Shared{Log: a.log, Dir: func() (string, error) { return s.Scratch(ctx) }}
	if name != "" && name != "default" {
		n.Helper, n.Need = name, true
	}
	return n
}

// connect gives a container its network, to be closed when it has ended.
func (a *App) connect(ctx context.Context, s *store.Store, name string, spec *sandbox.Spec) (*network.Shared, error) {
	n := a.userNetwork(ctx, s, name)
	if n == nil {
		return nil, nil
	}
	net, err := n.Get(ctx)
	switch {
	case err != nil:
		return nil, err
	case net == nil:
		spec.Network = sandbox.Host
	default:
		spec.UserNet = net
	}
	return n, nil
}
