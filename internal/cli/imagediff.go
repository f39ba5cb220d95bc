package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/image"
)

type imageDiffOptions struct {
	lookOptions
	times, exitCode bool
	format          string
}

func (a *App) imageDiffCommand() *cobra.Command {
	var o imageDiffOptions
	cmd := &cobra.Command{
		Use:   "diff [OPTIONS] IMAGE IMAGE",
		Short: "Show how two images differ: files, packages and config",
		Long: `Show what was added (A), changed (C) and deleted (D) from the first image to the
second: files with their sizes, packages by the databases of dpkg and apk, and
the config. Of a directory that is new or gone, what is below it is counted,
not listed. Files whose time alone differs are the same, unless --times.` + lookLong,
		Example: `  strake image diff web:1.4 web:1.5
  strake image diff --exit-code --format json debian:12 registry.example.com/base:1`,
		Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.imageDiff(cmd.Context(), args[0], args[1], &o)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.exitCode, "exit-code", false, "End with 1 where the images differ")
	fs.StringVar(&o.format, "format", "", `Print as "json" or with a Go TEMPLATE`)
	fs.BoolVar(&o.times, "times", false, "Show files whose time alone differs")
	o.register(cmd)
	return cmd
}

func (a *App) imageDiff(ctx context.Context, nameA, nameB string, o *imageDiffOptions) error {
	format, err := term.ParseObjectFormat(o.format)
	if err != nil {
		return &Failure{Code: 64, Err: err}
	}
	return a.looking(ctx, func(ctx context.Context, s *store.Store) error {
		ia, err := a.look(ctx, s, nameA, &o.lookOptions)
		if err != nil {
			return err
		}
		ib, err := a.look(ctx, s, nameB, &o.lookOptions)
		if err != nil {
			return err
		}
		d, err := image.Diff(ctx, ia, ib, o.times)
		if err != nil {
			return daemon(err)
		}
		d.A.Name, d.B.Name = nameA, nameB
		switch o.format {
		case "":
			w := bufio.NewWriter(a.Out)
			printDifference(w, d)
			err = w.Flush()
		case "json":
			enc := json.NewEncoder(a.Out)
			enc.SetEscapeHTML(false)
			err = enc.Encode(d)
		default:
			err = format.Print(a.Out, []any{d})
		}
		if err == nil && o.exitCode && !d.Empty() {
			return exit(1)
		}
		return err
	})
}

// printDifference prints the sections that have something to say.
func printDifference(w io.Writer, d *image.Difference) {
	if len(d.Config) > 0 {
		fmt.Fprintln(w, "Config:")
		for _, c := range d.Config {
			fmt.Fprintf(w, "%s %s%s\n", c.Kind, safeName(c.Field), fromTo(c.Kind, safeName(c.Old), safeName(c.New)))
		}
	}
	if len(d.Packages) > 0 {
		fmt.Fprintln(w, "Packages:")
		for _, p := range d.Packages {
			fmt.Fprintf(w, "%s %s%s\n", p.Kind, safeName(p.Name), fromTo(p.Kind, safeName(p.Old), safeName(p.New)))
		}
	}
	if len(d.Files) > 0 {
		fmt.Fprintln(w, "Files:")
	}
	for _, f := range d.Files {
		name := safeName(f.Path)
		if f.Dir && f.Path != "/" {
			name += "/"
		}
		fmt.Fprintf(w, "%s %s", f.Kind, name)
		switch {
		case f.Kind == "C" && f.OldSize != f.NewSize:
			fmt.Fprintf(w, "  %s -> %s", shortSize(f.OldSize), shortSize(f.NewSize))
		case f.Kind == "C":
		case f.Dir:
			entries := "entries"
			if f.Files == 1 {
				entries = "entry"
			}
			fmt.Fprintf(w, "  %s in %d %s", shortSize(f.OldSize+f.NewSize), f.Files, entries)
		default:
			fmt.Fprintf(w, "  %s", shortSize(f.OldSize+f.NewSize))
		}
		if len(f.What) > 0 {
			fmt.Fprintf(w, "  (%s)", strings.Join(f.What, ", "))
		}
		fmt.Fprintln(w)
	}
	if !d.Empty() {
		sign, n := "+", d.B.Size-d.A.Size
		if n < 0 {
			sign, n = "-", -n
		}
		fmt.Fprintf(w, "Size: %s -> %s (%s%s)\n", shortSize(d.A.Size), shortSize(d.B.Size), sign, shortSize(n))
	}
}

func fromTo(kind, old, new string) string {
	if kind == "C" {
		return " " + old + " -> " + new
	}
	return strings.TrimRight(" "+old+new, " ")
}
