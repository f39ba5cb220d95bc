package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/cli/templates"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

type psOptions struct {
	all, quiet, noTrunc, latest bool
	size, sizeGiven             bool
	last                        int
	format                      string
	filters                     filters
}

func (a *App) psCommand(use string) *cobra.Command {
	var o psOptions
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS]",
		Short: "List containers",
		Example: `  strake ps -a
  strake ps -aq --format '{{.Names}}: {{.Status}}'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.sizeGiven = cmd.Flags().Changed("size")
			return a.ps(cmd.Context(), &o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "Show those that ended too")
	fs.VarP(&o.filters, "filter", "f", "Show only what fits (ancestor=, before=, exited=, id=, label=, name=, network=, since=, status=, volume=)")
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.IntVarP(&o.last, "last", "n", -1, "Show the last n, whatever their state")
	fs.BoolVarP(&o.latest, "latest", "l", false, "Show the last one, whatever its state")
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "Don't cut IDs and commands short")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Show only container IDs")
	fs.BoolVarP(&o.size, "size", "s", false, "Show how much each has written, and with its image")
	return cmd
}

// psRow is a line of `ps`; its fields are the placeholders of --format, in the
// order in which docker's JSON has them.
type psRow struct {
	Command      string
	CreatedAt    string
	HealthStatus string
	ID           string
	Image        string
	Labels       string
	LocalVolumes string
	Mounts       string
	Names        string
	Networks     string
	Platform     *oci.Platform
	Ports        string
	RunningFor   string
	Size         string
	State        string
	Status       string

	labels map[string]string
}

// Label is docker's {{.Label "key"}}.
func (r *psRow) Label(key string) string { return r.labels[key] }

func (a *App) ps(ctx context.Context, o *psOptions) error {
	s, err := a.Store()
	if err != nil {
		return err
	}
	list, err := container.In(s).List(ctx)
	if err != nil {
		return daemon(err)
	}
	tests, err := psTests(ctx, s, o.filters, list)
	if err != nil {
		return err
	}
	if o.format == "" && !o.quiet {
		o.format = a.configured("psFormat")
	}
	last := o.last
	if o.latest {
		last = 1
	}
	if o.quiet && o.format != "" {
		fmt.Fprintln(a.Err, "WARNING: Ignoring custom format, because both --format and --quiet are set.")
	}
	format := o.template()
	if !o.quiet && !o.sizeGiven {
		if err := a.triedTemplate(o.format); err != nil {
			return err
		}
	}
	sized := !o.quiet && (o.size || !o.sizeGiven && strings.Contains(format, ".Size") || !o.sizeGiven && format == "{{json .}}")
	images := map[oci.Digest]int64{}
	if sized {
		if images, err = imageSizes(ctx, s); err != nil {
			return err
		}
	}
	rows := []*psRow{}
	all := o.all || last > 0 || len(o.filters.values("status")) > 0
	for at, c := range list {
		if !all && c.State != container.Running || slices.ContainsFunc(tests, func(fits psTest) bool { return !fits(at, c) }) {
			continue
		}
		if last > 0 && len(rows) == last {
			break
		}
		row := newPsRow(c, o.noTrunc)
		if !o.quiet {
			if row.Image, err = nowNamed(ctx, s, c, o.noTrunc); err != nil {
				return err
			}
		}
		if sized {
			row.Size = writtenSize(container.In(s).Written(c), images[c.ImageID])
		}
		rows = append(rows, row)
	}
	return printRows(a, "*formatter.ContainerContext", format, psHeader(), rows)
}

func psHeader() term.Header {
	return term.Header{"ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED",
		"Ports": "PORTS", "State": "STATE", "Status": "STATUS", "HealthStatus": "HEALTH STATUS", "Size": "SIZE", "Names": "NAMES", "Labels": "LABELS",
		"Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Platform": "PLATFORM"}
}

// template is what to print with.
func (o *psOptions) template() string {
	switch {
	case o.quiet:
		return "{{.ID}}"
	case o.format != "" && o.format != "table":
		return o.format
	case o.size:
		return psTable + "\t{{.Size}}"
	}
	return psTable
}

const psTable = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"

// triedTemplate runs the format on an empty row: docker does so to learn which
// fields it wants, and has words of its own for what is wrong with it.
func (a *App) triedTemplate(format string) error {
	tmpl, err := templates.Parse(strings.TrimPrefix(format, "table "))
	if err != nil {
		return fmt.Errorf("failed to parse template: %w", err)
	}
	if err := tmpl.Execute(io.Discard, &psRow{}); err != nil {
		return dockerTypes(fmt.Errorf("failed to execute template: %w", err), "*cli.psRow", "*formatter.ContainerContext", a.name)
	}
	return nil
}

// nowNamed is what a container's image is called: as run was told, unless that
// name is gone or another image's by now; then it is the image's ID.
func nowNamed(ctx context.Context, s *store.Store, c *container.Container, whole bool) (string, error) {
	img, err := s.Find(ctx, c.Image)
	switch {
	case err == nil && (img.ID == c.ImageID || img.Target.Digest == c.Target): // or another platform of the name
		return c.Image, nil
	case err == nil || isNotFound(err) || errors.Is(err, oci.ErrInvalid) || errors.Is(err, oci.ErrCorrupt):
		return shortID(c.ImageID, whole), nil
	}
	return "", daemon(err)
}

// writtenSize is docker's SIZE: the container's own files, and with its image's.
func writtenSize(written, image int64) string {
	return fmt.Sprintf("%s (virtual %s)", shortSize(written), shortSize(written+image))
}

// imageSizes lists the images' sizes by their IDs.
func imageSizes(ctx context.Context, s *store.Store) (map[oci.Digest]int64, error) {
	list, err := s.Images(ctx)
	if err != nil {
		return nil, daemon(err)
	}
	sizes := map[oci.Digest]int64{}
	for i := range list {
		sizes[list[i].ID] = list[i].Size
	}
	return sizes, nil
}

func newPsRow(c *container.Container, whole bool) *psRow {
	row := &psRow{
		ID: c.ID, Image: c.Image, Names: c.Name, State: string(c.State), LocalVolumes: "0", Size: "0B", Networks: c.Network,
		CreatedAt: c.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"), RunningFor: ago(c.Created), labels: c.Labels,
	}
	command := shownCommand(c.Command)
	if !whole {
		row.ID = c.ID[:12]
		command = ellipsis(command, 20)
	}
	row.Command = strconv.Quote(command)
	switch c.State {
	case container.Running:
		row.Status = "Up " + units.HumanDuration(time.Since(c.Started))
	case container.Exited:
		finished := c.Finished
		if finished.IsZero() { // its strake was killed
			finished = c.Started
		}
		row.Status = fmt.Sprintf("Exited (%d) %s", c.ExitCode, ago(finished))
	default:
		row.Status = "Created"
	}
	var labels []string
	for k, v := range c.Labels {
		labels = append(labels, k+"="+v)
	}
	slices.Sort(labels)
	row.Labels = strings.Join(labels, ",")
	var mounts []string
	volumes := 0
	for _, m := range c.Mounts {
		if m.Type == "volume" {
			volumes++
		}
		name := m.Source
		if !whole {
			name = ellipsis(name, 15)
		}
		mounts = append(mounts, name)
	}
	row.Mounts, row.LocalVolumes = strings.Join(mounts, ","), strconv.Itoa(volumes)
	return row
}

// shownCommand joins a command as docker does: arguments with a space in them
// are quoted.
func shownCommand(command []string) string {
	words := slices.Clone(command)
	for i := range words {
		if i > 0 && strings.Contains(words[i], " ") {
			words[i] = "'" + words[i] + "'"
		}
	}
	return strings.Join(words, " ")
}
