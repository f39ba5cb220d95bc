package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci/ref"
)

type undoOptions struct {
	list, all, force bool
	format           string
}

func (a *App) undoCommand() *cobra.Command {
	var o undoOptions
	cmd := &cobra.Command{
		Use:   "undo [OPTIONS] [ID]",
		Short: "Take back what removed or moved images: rmi, prune, tag, build, pull, load",
		Example: `  strake undo
  strake undo --list
  strake undo 12`,
		Args: maxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.list || o.format != "" {
				if len(args) > 0 {
					return errors.New("--list takes no ID")
				}
				if o.force {
					return errors.New("--list changes nothing: leave out --force")
				}
				return a.undoList(cmd.Context(), &o)
			}
			if o.all {
				return errors.New("--all is about the list: add --list")
			}
			var id int64
			if len(args) > 0 {
				n, err := strconv.ParseInt(args[0], 10, 64)
				if err != nil || n <= 0 {
					return fmt.Errorf("%q is no operation's ID: see %s undo --list", args[0], a.name)
				}
				id = n
			}
			return a.undo(cmd.Context(), id, o.force)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "With --list: also what cannot be undone any more")
	fs.BoolVarP(&o.force, "force", "f", false, "Put back also tags that have moved again since")
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.BoolVar(&o.list, "list", false, "Show what can be undone, the last first")
	return cmd
}

func (a *App) undo(ctx context.Context, id int64, force bool) error {
	s, err := a.Store()
	if err != nil {
		return err
	}
	a.command = "undo"
	u, err := s.Undo(ctx, id, force)
	if err != nil {
		return daemon(err)
	}
	fmt.Fprintf(a.Out, "Undone: %d %s\n", u.Operation, u.Command)
	named := map[string]bool{}
	for _, r := range u.Restored {
		if r.Ref.Path != "" {
			named[string(r.Digest)] = true
		}
	}
	for _, r := range u.Restored {
		switch {
		case r.Pin && r.Digest == "":
			fmt.Fprintln(a.Out, "Unpinned:", restoredName(r))
		case r.Pin:
			fmt.Fprintln(a.Out, "Pinned:", restoredName(r))
		case r.Ref.Path != "" && r.Digest == "":
			fmt.Fprintln(a.Out, "Untagged:", r.Ref.Familiar())
		case r.Ref.Path != "":
			fmt.Fprintf(a.Out, "Restored: %s\n", restoredName(r))
		case !named[string(r.Digest)]:
			fmt.Fprintln(a.Out, "Restored:", r.Digest)
		}
	}
	return a.undoFailures(u)
}

func restoredName(r store.Restored) string {
	switch {
	case r.Ref.Path == "":
		return strings.TrimPrefix(r.Ref.Tag, "/")
	case r.Pin || r.Ref.Digest != "":
		return r.Ref.Familiar()
	}
	return r.Ref.Familiar() + " " + string(r.Digest)
}

// undoFailures says what could not be put back.
func (a *App) undoFailures(u *store.Undone) error {
	var lines []string
	for _, r := range u.Moved {
		lines = append(lines, fmt.Sprintf("%s has moved since and stays: put it back all the same with %s undo --force %d", r.Ref.Familiar(), a.name, u.Operation))
	}
	for _, r := range u.Lost {
		name := string(r.Digest)
		if r.Ref.Path != "" {
			name = r.Ref.Familiar()
			if r.Ref.Digest == "" {
				name += " (" + string(r.Digest) + ")"
			}
		}
		lines = append(lines, name+" is lost: its space was reclaimed")
	}
	if len(lines) == 0 {
		return nil
	}
	return daemonf("%s", strings.Join(lines, "\n"))
}

// operationRow is a line of `undo --list`; its fields are the placeholders.
type operationRow struct {
	Bytes     string
	Command   string
	CreatedAt string
	ID        string
	Images    string
	Since     string
	Undoable  string
	Until     string
}

func (a *App) undoList(ctx context.Context, o *undoOptions) error {
	s, err := a.Store()
	if err != nil {
		return err
	}
	all, err := s.Operations(ctx, 0)
	if err != nil {
		return daemon(err)
	}
	format := o.format
	wide := format != "" && format != "table"
	if !wide {
		format = "table {{.ID}}\t{{.Since}}\t{{.Command}}\t{{.Images}}\t{{.Bytes}}"
		if o.all {
			format += "\t{{.Undoable}}"
		}
	}
	var rows []*operationRow
	for i := range all {
		op := &all[i]
		if !op.Possible && !o.all || !o.all && op.Undoes != 0 {
			continue
		}
		rows = append(rows, newOperationRow(op, wide))
	}
	header := term.Header{"ID": "ID", "Since": "TIME", "CreatedAt": "TIME", "Command": "COMMAND", "Images": "IMAGES", "Bytes": "WAITING", "Undoable": "UNDOABLE", "Until": "UNTIL"}
	return term.PrintRows(a.Out, format, header, rows)
}

// newOperationRow makes a line; unless wide, of many images the first are named.
func newOperationRow(op *store.Operation, wide bool) *operationRow {
	r := &operationRow{
		ID: strconv.FormatInt(op.ID, 10), Command: op.Command, Since: ago(op.At),
		CreatedAt: op.At.Local().Truncate(time.Second).String(),
		Bytes:     humanSize(op.Bytes), Undoable: strconv.FormatBool(op.Possible),
	}
	if op.Command == "" {
		r.Command = "-"
	}
	if op.Undoes != 0 {
		r.Command = fmt.Sprintf("%s %d", r.Command, op.Undoes)
	}
	if !op.Until.IsZero() {
		r.Until = op.Until.Local().Truncate(time.Second).String()
	}
	var names []string
	for _, n := range op.Names {
		names = append(names, n.Familiar())
	}
	for _, d := range op.Images {
		names = append(names, shortID(d, wide))
	}
	const few = 3
	if len(names) > few && !wide {
		names = append(names[:few-1], fmt.Sprintf("and %d more", len(names)-few+1))
	}
	r.Images = strings.Join(names, ", ")
	return r
}

func (a *App) imageLogCommand() *cobra.Command {
	var format string
	var last int
	var noTrunc bool
	cmd := &cobra.Command{
		Use:   "log [OPTIONS] NAME[:TAG]",
		Short: "Show where a tag has pointed, since when and by which command",
		Example: `  strake image log web
  strake image log -n 1 --format '{{.Digest}}' web:prod`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.imageLog(cmd.Context(), args[0], format, last, noTrunc)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&format, "format", "", formatHelp)
	fs.IntVarP(&last, "last", "n", 0, "Show the last n changes")
	fs.BoolVar(&noTrunc, "no-trunc", false, "Don't cut IDs short")
	return cmd
}

// tagLogRow is a line of `image log`; its fields are the placeholders.
type tagLogRow struct{ Command, CreatedAt, Digest, ID, Operation, Since, State string }

func (a *App) imageLog(ctx context.Context, name, format string, last int, noTrunc bool) error {
	r, err := ref.ParseImage(name)
	if err != nil {
		return daemon(err)
	}
	if r.Digest != "" {
		return fmt.Errorf("%s: a digest never moves: name a tag", name)
	}
	s, err := a.Store()
	if err != nil {
		return err
	}
	log, err := s.TagLog(ctx, r)
	if err != nil {
		return daemon(err)
	}
	if len(log) == 0 {
		return daemonf("No such image: %s", r.Familiar())
	}
	if last < 0 {
		return fmt.Errorf("--last %d: must not be negative", last)
	}
	if last > 0 {
		log = log[:min(last, len(log))]
	}
	whole := noTrunc || format == "json"
	table := format == "" || format == "table"
	if table {
		format = "table {{.Since}}\t{{.Digest}}\t{{.ID}}\t{{.State}}\t{{.Operation}}\t{{.Command}}"
	}
	var rows []*tagLogRow
	for _, c := range log {
		row := &tagLogRow{Command: c.Command, CreatedAt: c.At.Local().Truncate(time.Second).String(), Digest: string(c.Digest), Since: ago(c.At), State: string(c.State)}
		if c.Operation != 0 {
			row.Operation = strconv.FormatInt(c.Operation, 10)
		}
		switch {
		case c.Digest == "":
			row.Digest, row.ID, row.State = none, none, "untagged"
		case c.ID != "":
			row.ID = shortID(c.ID, whole)
		default:
			row.ID = none
		}
		if c.Digest != "" && !whole && table {
			row.Digest = shortID(c.Digest, false)
		}
		rows = append(rows, row)
	}
	header := term.Header{"Since": "TIME", "CreatedAt": "TIME", "Digest": "DIGEST", "ID": "IMAGE ID", "State": "STATE", "Operation": "OPERATION", "Command": "COMMAND"}
	return term.PrintRows(a.Out, format, header, rows)
}

func (a *App) systemReclaimCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "reclaim",
		Short:   "Free the space of removed images at once: no undo",
		Example: "  strake system reclaim",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.Store()
			if err != nil {
				return err
			}
			freed, err := s.Reclaim(cmd.Context())
			if err != nil {
				return daemon(err)
			}
			a.reclaimed(freed.Bytes)
			return nil
		},
	}
}

// keepRemovedEnv sets how long what was removed can be had back.
const keepRemovedEnv = "STRAKE_KEEP_REMOVED"

// keepRemoved reads it: a duration, with d for days; 0 frees space at once.
func keepRemoved() (time.Duration, error) {
	text := os.Getenv(keepRemovedEnv)
	if text == "" {
		return 0, nil
	}
	d, err := longDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%s: %q is no duration such as 36h or 7d", keepRemovedEnv, text)
	}
	if d == 0 {
		return -1, nil
	}
	return d, nil
}

// longDuration is time.ParseDuration that knows days and weeks too.
func longDuration(text string) (time.Duration, error) {
	for suffix, unit := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, ok := strings.CutSuffix(text, suffix); ok {
			count, err := strconv.ParseFloat(n, 64)
			if err != nil || count < 0 || count > 36500 {
				return 0, fmt.Errorf("invalid duration %q", text)
			}
			return time.Duration(count * float64(unit)), nil
		}
	}
	return time.ParseDuration(text)
}
