package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/container"
)

type psOptions struct {
	all, quiet, noTrunc, latest bool
	last                        int
	format                      string
}

func (a *App) psCommand(use string) *cobra.Command {
	var o psOptions
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS]",
		Short: "List containers",
		Example: `  strake ps -a
  strake ps -aq --format '{{.Names}}: {{.Status}}'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.ps(cmd.Context(), &o) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "Show those that ended too")
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.IntVarP(&o.last, "last", "n", -1, "Show the last n, whatever their state")
	fs.BoolVarP(&o.latest, "latest", "l", false, "Show the last one, whatever its state")
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "Don't cut IDs and commands short")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Show only container IDs")
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
	last := o.last
	if o.latest {
		last = 1
	}
	rows := []*psRow{}
	for _, c := range list {
		if !o.all && last < 0 && c.State != container.Running {
			continue
		}
		if last >= 0 && len(rows) == last {
			break
		}
		rows = append(rows, newPsRow(c, o.noTrunc))
	}
	header := term.Header{"ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED",
		"Ports": "PORTS", "State": "STATE", "Status": "STATUS", "HealthStatus": "HEALTH STATUS", "Size": "SIZE", "Names": "NAMES", "Labels": "LABELS",
		"Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS"}
	format := o.format
	if format == "" || format == "table" {
		format = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
		if o.quiet {
			format = "{{.ID}}"
		}
	}
	return term.PrintRows(a.Out, format, header, rows)
}

func newPsRow(c *container.Container, whole bool) *psRow {
	row := &psRow{
		ID: c.ID, Image: c.Image, Names: c.Name, State: string(c.State), LocalVolumes: "0", Size: "0B", Networks: c.Network,
		CreatedAt: c.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"), RunningFor: ago(c.Created), labels: c.Labels,
	}
	command := strings.Join(c.Command, " ")
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
	row.Labels = strings.Join(labels, ",")
	return row
}
