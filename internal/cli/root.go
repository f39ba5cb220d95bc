package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// topLevel lists the commands that stand directly below strake. Each function
// makes a fresh command: docker's short spelling and the long one below
// `image` or `container` are two commands made by the same function, told
// apart by use, the first word of the usage line.
//
// A command that needs -h for itself (run --hostname) declares its own flag
// "help" without a shorthand, which takes the place of the global one.
func (a *App) topLevel() []*cobra.Command {
	return []*cobra.Command{
		common(a.versionCommand(), 90),

		common(a.runCommand("run"), 10),
		common(a.psCommand("ps"), 20),
		common(a.buildCommand("build"), 30),
		common(a.pullCommand("pull"), 40),
		common(a.pushCommand("push"), 50),
		common(a.imagesCommand("images"), 60),
		common(a.loginCommand(), 70),
		common(a.logoutCommand(), 80),

		a.commitCommand("commit"),
		a.diffCommand("diff"),
		a.doctorCommand(),
		a.exportCommand("export"),
		a.historyCommand("history"),
		a.importCommand("import"),
		a.infoCommand(),
		a.inspectCommand(),
		a.installShimCommand(),
		a.loadCommand("load"),
		a.manCommand(),
		a.outdatedCommand(),
		a.rmCommand("rm"),
		a.rmiCommand("rmi"),
		a.saveCommand("save"),
		a.searchCommand(),
		a.tagCommand("tag"),
		a.tagsCommand(),
		a.undoCommand(),

		a.builderCommand(),
		a.buildxCommand(),
		a.containerCommand(),
		a.imageCommand(),
		a.manifestCommand(),
		a.registryCommand(),
		a.systemCommand(),
	}
}

// run executes args.
func (a *App) run(ctx context.Context, args []string) error {
	root := a.rootCommand()
	a.confine(root, "")
	rest, err := a.parseGlobal(root, args[1:])
	if err != nil {
		return err
	}
	if a.flags.version {
		fmt.Fprintln(a.Out, a.versionLine())
		return nil
	}
	if len(rest) > 0 && (rest[0] == cobra.ShellCompRequestCmd || rest[0] == cobra.ShellCompNoDescRequestCmd) {
		a.setCompletion(root)
	}
	root.SetArgs(rest)
	return root.ExecuteContext(ctx)
}

// parseGlobal reads the flags before the command and returns what follows.
// Only those: a flag after the command is the command's own.
func (a *App) parseGlobal(root *cobra.Command, args []string) ([]string, error) {
	set := pflag.NewFlagSet(root.Name(), pflag.ContinueOnError)
	set.SetInterspersed(false)
	set.Usage = func() {}
	set.AddFlagSet(root.Flags())
	set.AddFlagSet(root.PersistentFlags())
	switch err := set.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return []string{"--help"}, nil
	case err != nil:
		return nil, usageError(root, err)
	}
	if help, _ := set.GetBool("help"); help {
		return append([]string{"--help"}, set.Args()...), nil
	}
	if len(a.flags.hosts) > 0 {
		return nil, &Failure{Code: 125, Err: fmt.Errorf("--host is not supported: %s has no daemon to talk to; --root names the store it works on", a.name)}
	}
	if a.flags.context != "" {
		return nil, &Failure{Code: 125, Err: fmt.Errorf("--context is not supported: %s has no daemon to talk to; --root names the store it works on", a.name)}
	}
	return set.Args(), a.setLog()
}

func (a *App) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:                   a.name + " [OPTIONS] COMMAND [ARG...]",
		Short:                 "Container images without a daemon: build, move, keep, inspect and run them",
		SilenceUsage:          true,
		SilenceErrors:         true,
		TraverseChildren:      true,
		DisableFlagsInUseLine: true,
		CompletionOptions:     cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.helpUnasked(cmd)
			}
			return fmt.Errorf("%[1]s: unknown command: %[1]s %[2]s\n\nRun '%[1]s --help' for more information", a.name, args[0])
		},
	}
	root.PersistentPreRun = func(cmd *cobra.Command, _ []string) {
		a.command = strings.TrimPrefix(cmd.CommandPath(), a.name+" ")
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetFlagErrorFunc(usageError)
	a.setHelp(root)

	fs := root.Flags()
	fs.StringVar(&a.flags.root, "root", "", "Directory of the store (default \"/var/lib/strake\" for root, else \"$XDG_DATA_HOME/strake\"; STRAKE_ROOT sets it too)")
	fs.StringVar(&a.flags.config, "config", "", "Directory of docker's config.json with the registries' credentials (default \"~/.docker\")")
	fs.BoolVarP(&a.flags.debug, "debug", "D", false, "Log what happens to stderr")
	fs.StringVarP(&a.flags.logLevel, "log-level", "l", "", `Log from this level on ("debug", "info", "warn", "error", "fatal")`)
	fs.BoolVarP(&a.flags.version, "version", "v", false, "Print version information and quit")
	fs.StringArrayVarP(&a.flags.hosts, "host", "H", nil, "")
	fs.StringVarP(&a.flags.context, "context", "c", "", "")
	for _, refused := range []string{"host", "context"} {
		fs.Lookup(refused).Hidden = true
	}
	pf := root.PersistentFlags()
	pf.BoolP("help", "h", false, "Print usage")
	pf.Lookup("help").Hidden = true
	// The error is only about a flag that does not exist.
	_ = pf.MarkShorthandDeprecated("help", "use --help")

	root.AddCommand(a.topLevel()...)
	plainUsage(root)
	return root
}

// plainUsage keeps cobra's "[flags]" out of the usage lines of cmd and all below
// it: theirs say OPTIONS where it belongs.
func plainUsage(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = true
	for _, c := range cmd.Commands() {
		plainUsage(c)
	}
}

// group makes a command that only holds others.
func (a *App) group(use, short string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.helpUnasked(cmd) },
	}
	cmd.AddCommand(sub...)
	return cmd
}

// helpUnasked is the help of a group that was called without a command: docker
// prints it where errors go, so that $(docker image) is empty.
func (a *App) helpUnasked(cmd *cobra.Command) error {
	if a.name == "docker" {
		return cmd.Usage()
	}
	return cmd.Help()
}

// containerCommand is `strake container`.
func (a *App) containerCommand() *cobra.Command {
	ls := a.psCommand("ls")
	ls.Aliases = []string{"list", "ps"}
	rm := a.rmCommand("rm")
	rm.Aliases = []string{"remove"}
	return a.group("container", "Manage containers", a.commitCommand("commit"), a.diffCommand("diff"), a.exportCommand("export"), a.containerInspectCommand(), ls, a.containerPruneCommand(), rm, a.runCommand("run"))
}

// imageCommand is `strake image`.
func (a *App) imageCommand() *cobra.Command {
	rm := a.rmiCommand("rm")
	rm.Aliases = []string{"remove"}
	return a.group("image", "Manage images",
		a.buildCommand("build"),
		a.imageCatCommand(),
		a.imageCopyCommand(),
		a.imageDiffCommand(),
		a.historyCommand("history"),
		a.importCommand("import"),
		a.imageInspectCommand(),
		a.loadCommand("load"),
		a.imageLogCommand(),
		a.imageListCommand(),
		a.imageMutateCommand(),
		a.imageRebaseCommand(),
		a.imageSquashCommand(),
		a.imagePinCommand(true),
		a.imagePinCommand(false),
		a.imagePruneCommand(),
		a.pullCommand("pull"),
		a.pushCommand("push"),
		rm,
		a.saveCommand("save"),
		a.tagCommand("tag"),
	)
}
