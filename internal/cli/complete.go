package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/container"
)

// flagValues are what flags of these names take, in whichever command.
func flagValues() map[string][]string {
	return map[string][]string{
		"format":    {"json", "table"},
		"log-level": {"debug", "info", "warn", "error", "fatal"},
		"network":   {"host", "none", "pasta", "slirp4netns"},
		"platform":  {"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/386", "linux/ppc64le", "linux/s390x", "linux/riscv64"},
		"progress":  {"auto", "plain", "tty", "quiet", "rawjson"},
		"type":      {"image", "container"},
	}
}

// setCompletion makes root and all below it complete names.
func (a *App) setCompletion(root *cobra.Command) {
	all, values := commandTraits(), flagValues()
	var each func(cmd *cobra.Command)
	each = func(cmd *cobra.Command) {
		if kind := all[a.pathOf(cmd)].completes; kind != 0 && cmd.ValidArgsFunction == nil {
			cmd.ValidArgsFunction = a.completer(kind)
		}
		for name, list := range values {
			if f := cmd.Flags().Lookup(name); f != nil && f.Value.Type() != "bool" {
				// An error says only that the command has its own.
				_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp))
			}
		}
		for _, c := range cmd.Commands() {
			each(c)
		}
	}
	each(root)
}

func (a *App) completer(kind int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if kind&completeFirst != 0 && len(args) > 0 {
			if kind&completeFiles != 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		root, err := a.Root()
		if err == nil {
			_, err = os.Stat(filepath.Join(root, "strake.db"))
		}
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		s, err := a.Store()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		add := func(name string) {
			if strings.HasPrefix(name, prefix) && !slices.Contains(args, name) {
				out = append(out, name)
			}
		}
		if kind&(completeImages|completeRepos) != 0 {
			tags, _ := s.AllTags(cmd.Context())
			last := ""
			for _, r := range tags {
				if name := r.FamiliarName(); kind&completeRepos != 0 && name != last {
					add(name)
					last = name
				}
				if kind&completeImages != 0 {
					add(r.Familiar())
				}
			}
		}
		if kind&completeContainers != 0 {
			all, _ := container.In(s).List(cmd.Context())
			for _, c := range all {
				add(strings.TrimPrefix(c.Name, "/"))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
