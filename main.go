// Strake builds, moves, keeps and runs container images without a daemon,
// speaking docker's commands. This file turns signals into a context and a
// result into an exit code; everything else is below internal.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/strake-project/strake/internal/cli"
	"github.com/strake-project/strake/internal/cli/term"
)

func main() {
	collectLater()
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go watch(signals, cancel)
	os.Exit(cli.Main(ctx, os.Args, term.OS()))
}

// collectLater puts garbage collection off until the heap has 16 MB instead of
// 4: most commands end before that, and one less collection is a tenth of what
// they take. From the first collection on, everything is as usual.
func collectLater() {
	usual := debug.SetGCPercent(400)
	sentinel := new(*int)
	runtime.AddCleanup(sentinel, func(percent int) { debug.SetGCPercent(percent) }, usual)
}

// watch cancels the context at the first signal and ends the process at the
// third, for the case that something does not listen to the context.
func watch(signals <-chan os.Signal, cancel context.CancelCauseFunc) {
	s := <-signals
	cancel(cli.Signal{Signal: s})
	<-signals
	<-signals
	fmt.Fprintln(os.Stderr, "\ngot 3 SIGTERM/SIGINTs, forcefully exiting")
	os.Exit(1)
}
