package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// commonCommands are named first in the help, in this order.
func commonCommands() []string {
	return []string{"run", "ps", "build", "pull", "push", "images", "login", "logout", "version"}
}

// noteAliases is a command's annotation with its other spellings.
const noteAliases = "aliases"

// spelled names all spellings of a command, without the program's name.
func (a *App) spelled(cmd *cobra.Command, spellings ...string) *cobra.Command {
	for i, s := range spellings {
		spellings[i] = a.name + " " + s
	}
	cmd.Annotations = map[string]string{noteAliases: strings.Join(spellings, ", ")}
	return cmd
}

// setHelp makes root and all below it print help in docker's layout.
func (a *App) setHelp(root *cobra.Command) {
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { a.printHelp(a.Out, cmd) })
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		a.printHelp(a.Err, cmd)
		return nil
	})
	root.SetHelpCommand(&cobra.Command{
		Use:    "help [command]",
		Short:  "Help about the command",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return fmt.Errorf("unknown help topic: %s", strings.Join(args, " "))
			}
			return found.Help()
		},
	})
}

// printHelp prints cmd's help: usage, purpose, aliases, examples, options,
// and the commands below it in their groups.
func (a *App) printHelp(w io.Writer, cmd *cobra.Command) {
	var b strings.Builder
	if cmd.HasSubCommands() {
		options := ""
		if cmd.HasAvailableLocalFlags() {
			options = " [OPTIONS]"
		}
		fmt.Fprintf(&b, "Usage:  %s%s COMMAND\n\n", cmd.CommandPath(), options)
	} else {
		fmt.Fprintf(&b, "Usage:  %s\n\n", cmd.UseLine())
	}
	b.WriteString(strings.TrimSpace(cmp.Or(cmd.Long, cmd.Short)) + "\n")
	if s := cmd.Annotations[noteAliases]; s != "" {
		fmt.Fprintf(&b, "\nAliases:\n  %s\n", s)
	} else if len(cmd.Aliases) > 0 {
		fmt.Fprintf(&b, "\nAliases:\n  %s", cmd.CommandPath())
		for _, alias := range cmd.Aliases {
			fmt.Fprintf(&b, ", %s %s", cmd.Parent().CommandPath(), alias)
		}
		b.WriteString("\n")
	}
	if cmd.Example != "" {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", strings.ReplaceAll(strings.TrimRight(cmd.Example, "\n"), "strake ", a.name+" "))
	}
	options := "Options"
	if !cmd.HasParent() {
		printGroups(&b, cmd)
		options = "Global Options"
	}
	columns, _ := a.Out.Size()
	if cmd.HasAvailableLocalFlags() {
		fmt.Fprintf(&b, "\n%s:\n%s\n", options, strings.TrimRight(cmd.LocalFlags().FlagUsagesWrapped(columns-1), " \n"))
	}
	if cmd.HasParent() {
		printCommands(&b, "Commands", below(cmd, func(*cobra.Command) bool { return true }))
	}
	if cmd.HasSubCommands() {
		fmt.Fprintf(&b, "\nRun '%s COMMAND --help' for more information on a command.\n", cmd.CommandPath())
	}
	// Nobody is left to hear that help could not be written.
	_, _ = io.WriteString(w, b.String())
}

func printGroups(b *strings.Builder, root *cobra.Command) {
	order := commonCommands()
	isCommon := func(c *cobra.Command) bool { return slices.Contains(order, c.Name()) }
	top := below(root, isCommon)
	slices.SortFunc(top, func(x, y *cobra.Command) int {
		return cmp.Compare(slices.Index(order, x.Name()), slices.Index(order, y.Name()))
	})
	printCommands(b, "Common Commands", top)
	printCommands(b, "Management Commands", below(root, (*cobra.Command).HasSubCommands))
	printCommands(b, "Commands", below(root, func(c *cobra.Command) bool { return !isCommon(c) && !c.HasSubCommands() }))
}

func below(cmd *cobra.Command, want func(*cobra.Command) bool) []*cobra.Command {
	var out []*cobra.Command
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && want(c) {
			out = append(out, c)
		}
	}
	return out
}

func printCommands(b *strings.Builder, title string, cmds []*cobra.Command) {
	if len(cmds) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s:\n", title)
	width := 11
	for _, c := range cmds {
		width = max(width, len(c.Name()))
	}
	for _, c := range cmds {
		fmt.Fprintf(b, "  %-*s %s\n", width, c.Name(), c.Short)
	}
}
