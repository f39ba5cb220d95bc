package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/docker/cli/templates"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
)

// Version is strake's version; the commit that makes a release changes it.
const Version = "0.1.0-dev"

// versionInfo is what version prints; docker's placeholders.
type versionInfo struct {
	Client versionBlock
	// Server is the same program again: there is no daemon whose version could
	// differ, and scripts ask for the server's.
	Server versionBlock
}

type versionBlock struct {
	Version   string
	GitCommit string
	GoVersion string
	Os        string
	Arch      string
	BuildTime string
}

// buildInfo is what the Go linker wrote down.
func buildInfo() versionBlock {
	v := versionBlock{Version: Version, GitCommit: "unknown", GoVersion: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH, BuildTime: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.GitCommit = s.Value[:min(7, len(s.Value))]
		case "vcs.time": // of the commit: the build itself keeps no time, so that it can be made again
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				v.BuildTime = t.UTC().Format(time.ANSIC)
			}
		}
	}
	return v
}

// versionLine is what --version prints.
func (a *App) versionLine() string {
	name := "Strake"
	if a.name == "docker" {
		name = "Docker" // docker's line to the letter: scripts match its first two words
	}
	return fmt.Sprintf("%s version %s, build %s", name, Version, buildInfo().GitCommit)
}

func (a *App) versionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version [OPTIONS]",
		Short: "Show strake's version",
		Example: `  strake version
  strake version --format '{{.Client.Version}}'`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.version(format) },
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", `Print as "json" or with a Go TEMPLATE`)
	return cmd
}

func (a *App) version(format string) error {
	v := buildInfo()
	if format == "" {
		t := term.NewTable(a.Out)
		fmt.Fprintf(t, "Client:\n Version:\t%s\n Go version:\t%s\n Git commit:\t%s\n Built:\t%s\n OS/Arch:\t%s/%s\n",
			v.Version, v.GoVersion, v.GitCommit, v.BuildTime, v.Os, v.Arch)
		return t.Flush()
	}
	if format == "json" {
		format = "{{json .}}"
	}
	tmpl, err := templates.New("version").Parse(format)
	if err != nil {
		return &Failure{Code: 64, Err: fmt.Errorf("template parsing error: %w", err)}
	}
	if err := tmpl.Execute(a.Out, versionInfo{Client: v, Server: v}); err != nil {
		return err
	}
	fmt.Fprintln(a.Out)
	return nil
}
