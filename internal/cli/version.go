package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

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
	Platform          versionPlatform
	Version           string
	APIVersion        string `json:"ApiVersion"`
	DefaultAPIVersion string `json:",omitempty"`
	MinAPIVersion     string `json:",omitempty"`
	GitCommit         string
	GoVersion         string
	Os                string
	Arch              string
	KernelVersion     string `json:",omitempty"`
	Experimental      bool   `json:",omitempty"`
	BuildTime         string
	Context           string             `json:",omitempty"`
	Components        []versionComponent `json:",omitempty"`
}

type versionPlatform struct{ Name string }

type versionComponent struct {
	Name, Version string
	Details       map[string]string
}

// The versions of docker's API whose commands, fields and texts strake has.
const (
	apiVersion    = "1.50"
	minAPIVersion = "1.24"
)

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
	v := versions()
	if format == "" {
		c := &v.Client
		t := term.NewTable(a.Out)
		if a.name == "docker" {
			t.Init(a.Out, 20, 1, 1, ' ', 0)
		}
		fmt.Fprintf(t, "Client:\n Version:\t%s\n", c.Version)
		if a.name == "docker" {
			fmt.Fprintf(t, " API version:\t%s\n", c.APIVersion)
		}
		fmt.Fprintf(t, " Go version:\t%s\n Git commit:\t%s\n Built:\t%s\n OS/Arch:\t%s/%s\n", c.GoVersion, c.GitCommit, c.BuildTime, c.Os, c.Arch)
		if a.name == "docker" {
			fmt.Fprintf(t, " Context:\t%s\n\nServer:\n Engine:\n  Version:\t%s\n  API version:\t%s (minimum version %s)\n  Go version:\t%s\n  Git commit:\t%s\n  Built:\t%s\n  OS/Arch:\t%s/%s\n  Experimental:\t%t\n",
				c.Context, c.Version, c.APIVersion, minAPIVersion, c.GoVersion, c.GitCommit, c.BuildTime, c.Os, c.Arch, v.Server.Experimental)
		}
		return t.Flush()
	}
	return a.printTemplate("version", format, v, "system.versionInfo")
}

// versions are the client's and, the same program, the server's.
func versions() versionInfo {
	c := buildInfo()
	c.APIVersion, c.DefaultAPIVersion, c.Context = apiVersion, apiVersion, "default"
	s := buildInfo()
	s.APIVersion, s.MinAPIVersion = apiVersion, minAPIVersion
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		s.KernelVersion = unix.ByteSliceToString(u.Release[:])
	}
	s.Components = []versionComponent{{Name: "Engine", Version: s.Version, Details: map[string]string{
		"ApiVersion": s.APIVersion, "Arch": s.Arch, "BuildTime": s.BuildTime, "Experimental": "false", "GitCommit": s.GitCommit,
		"GoVersion": s.GoVersion, "KernelVersion": s.KernelVersion, "MinAPIVersion": s.MinAPIVersion, "Os": s.Os,
	}}}
	return versionInfo{Client: c, Server: s}
}
