package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// branch is a command that stands directly below strake, with all below it.
type branch struct {
	name string
	make func(use string) *cobra.Command
}

// branches lists them. Each function makes a fresh command: docker's short
// spelling and the long one below `image` or `container` are two commands made
// by the same function, told apart by use, the first word of the usage line.
//
// A command that needs -h for itself (run --hostname) declares its own flag
// "help" without a shorthand, which takes the place of the global one.
func (a *App) branches() []branch {
	// one is a command that has no other spelling.
	one := func(make func() *cobra.Command) func(string) *cobra.Command {
		return func(string) *cobra.Command { return make() }
	}
	return []branch{
		{"build", a.buildCommand},
		{"commit", a.commitCommand},
		{"diff", a.diffCommand},
		{"doctor", one(a.doctorCommand)},
		{"export", a.exportCommand},
		{"history", a.historyCommand},
		{"images", a.imagesCommand},
		{"import", a.importCommand},
		{"info", one(a.infoCommand)},
		{"inspect", one(a.inspectCommand)},
		{"install-shim", one(a.installShimCommand)},
		{"load", a.loadCommand},
		{"login", one(a.loginCommand)},
		{"logout", one(a.logoutCommand)},
		{"man", one(a.manCommand)},
		{"outdated", one(a.outdatedCommand)},
		{"ps", a.psCommand},
		{"pull", a.pullCommand},
		{"push", a.pushCommand},
		{"rm", a.rmCommand},
		{"rmi", a.rmiCommand},
		{"run", a.runCommand},
		{"save", a.saveCommand},
		{"search", one(a.searchCommand)},
		{"tag", a.tagCommand},
		{"tags", one(a.tagsCommand)},
		{"undo", one(a.undoCommand)},
		{"version", one(a.versionCommand)},

		{"builder", one(a.builderCommand)},
		{"buildx", one(a.buildxCommand)},
		{"container", one(a.containerCommand)},
		{"image", one(a.imageCommand)},
		{"manifest", one(a.manifestCommand)},
		{"registry", one(a.registryCommand)},
		{"system", one(a.systemCommand)},
	}
}

// grow puts the branch called name below root, or all where there is none of
// that name: to make all takes as long as everything else before a command
// begins.
func (a *App) grow(root *cobra.Command, name string) {
	all := a.branches()
	if i := slices.IndexFunc(all, func(b branch) bool { return b.name == name }); i >= 0 {
		all = all[i : i+1]
		root.CompletionOptions.DisableDefaultCmd = true
	}
	for _, b := range all {
		root.AddCommand(b.make(b.name))
	}
	plainUsage(root)
	a.confine(root, commandTraits())
}

// wholeTree is the root with everything below it.
func (a *App) wholeTree() *cobra.Command {
	root := a.rootCommand()
	a.grow(root, "")
	return root
}

// run executes args.
func (a *App) run(ctx context.Context, args []string) error {
	root := a.rootCommand()
	rest, err := a.parseGlobal(root, args[1:])
	if err != nil {
		return err
	}
	if a.flags.version {
		fmt.Fprintln(a.Out, a.versionLine())
		return nil
	}
	called := ""
	if len(rest) > 0 {
		called = rest[0]
	}
	a.grow(root, called)
	if called == cobra.ShellCompRequestCmd || called == cobra.ShellCompNoDescRequestCmd {
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

// rootCommand is the root with nothing below it yet.
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
		a.command = a.pathOf(cmd)
		a.showBusy(cmd)
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
	return root
}

// pathOf is the names of cmd and of those above it, below the root.
func (a *App) pathOf(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), a.name+" ")
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
