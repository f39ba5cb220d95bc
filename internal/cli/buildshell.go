package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/spf13/pflag"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/sandbox"
)

// shellFlags is --shell-on-fail.
type shellFlags struct{ onFail bool }

func (f *shellFlags) declare(fs *pflag.FlagSet) {
	fs.BoolVar(&f.onFail, "shell-on-fail", false, "Open a shell in the file system of a RUN instruction that failed")
}

func (f *shellFlags) check(a *App) error {
	if f.onFail && (!a.In.IsTerminal() || !a.Out.IsTerminal()) {
		return errors.New("--shell-on-fail needs a terminal on stdin and stdout")
	}
	return nil
}

// failShell is what to do with a step that failed: nothing, or a shell in it.
// Of several that fail at once the first one gets it.
func (a *App) failShell(f *shellFlags, printer *term.BuildPrinter) func(context.Context, *build.FailedStep) {
	if !f.onFail {
		return nil
	}
	var once sync.Once
	return func(ctx context.Context, failed *build.FailedStep) {
		once.Do(func() {
			resume := printer.Pause()
			defer resume()
			a.openShell(ctx, failed)
		})
	}
}

func (a *App) openShell(ctx context.Context, failed *build.FailedStep) {
	fmt.Fprintf(a.Err, "\n%s\n%v\nThis is a shell in it. When you leave it, the build fails.\n", oneLine(failed.Name), failed.Err)
	failed.Spec.Env = append(failed.Spec.Env, "TERM="+envOr("TERM", "xterm"))
	var tried []string
	for _, args := range failed.Shells {
		spec := *failed.Spec
		spec.Args = args
		streams := a.attach(&runFlags{tty: true, interactive: true}, &spec)
		p, err := sandbox.Start(ctx, &spec)
		if err == nil {
			_, err = p.Wait()
			streams.restore()
			if err != nil {
				fmt.Fprintf(a.Err, "the shell: %v\n", err)
			}
			return
		}
		streams.restore()
		var start *sandbox.StartError
		if !errors.As(err, &start) || start.Code != 126 && start.Code != 127 {
			fmt.Fprintf(a.Err, "no shell: %v\n", err)
			return
		}
		tried = append(tried, strings.Join(args, " "))
	}
	fmt.Fprintf(a.Err, "no shell: the image has none of %s\n", strings.Join(tried, ", "))
}
