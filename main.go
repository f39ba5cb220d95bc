// Strake builds, moves, keeps and runs container images without a daemon,
// speaking docker's commands. This file turns signals into a context and a
// result into an exit code; everything else is below internal.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/strake-project/strake/internal/cli"
	"github.com/strake-project/strake/internal/cli/term"
)

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go watch(signals, cancel)
	os.Exit(cli.Main(ctx, os.Args, term.OS()))
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
