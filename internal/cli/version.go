package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
)

// Version is strake's version; the commit that makes a release changes it.
const Version = "0.1.0-dev"

// buildInfo is what the Go linker wrote down of the commit.
type buildInfo struct{ commit, time string }

func readBuildInfo() buildInfo {
	b := buildInfo{commit: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.commit = s.Value[:min(7, len(s.Value))]
		case "vcs.time":
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				b.time = t.UTC().Format(time.ANSIC)
			}
		}
	}
	return b
}

func (a *App) versionLine() string {
	name := "Strake"
	if a.name == "docker" {
		name = "Docker" // docker's line to the letter: scripts match its first two words
	}
	return fmt.Sprintf("%s version %s, build %s", name, Version, readBuildInfo().commit)
}

func (a *App) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version [OPTIONS]",
		Short:   "Show strake's version",
		Example: "  strake version",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			b := readBuildInfo()
			fmt.Fprintf(a.Out, "Client:\n Version:           %s\n Go version:        %s\n Git commit:        %s\n Built:             %s\n OS/Arch:           %s/%s\n",
				Version, runtime.Version(), b.commit, b.time, runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
	return cmd
}
