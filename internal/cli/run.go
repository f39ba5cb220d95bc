package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	xterm "golang.org/x/term"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/sandbox"
)

func (a *App) runCommand(use string) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   use + " [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Run a command in a new container made from an image",
		Long: `Run a command in a new container made from an image, in the foreground.

The network is the machine's own (--network host) or none; bridge networks and
published ports are not there yet. A VOLUME of the image is a directory of the
container's own and is removed with it.`,
		Example: `  strake run --rm -it debian:12 bash
  strake run --rm -v "$PWD":/src -w /src golang:1.26 go test ./...
  strake run --rm --network none -m 256m --cpus 0.5 web`,
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := a.runContainer(cmd.Context(), &f, args[0], args[1:])
			var failed *Failure
			if err == nil || errors.As(err, &failed) {
				return err
			}
			return &Failure{Err: err, Code: 125, Command: cmd.Name()}
		},
	}
	f.declare(cmd.Flags())
	return cmd
}

// refused is an error of run in the daemon's name.
func refused(err error) error {
	return &Failure{Err: err, Daemon: true, Code: 125, Command: "run"}
}

func (a *App) runContainer(ctx context.Context, f *runFlags, image string, args []string) error {
	opt, err := f.options()
	if err != nil {
		return err
	}
	if f.interactive && f.tty && !a.In.IsTerminal() {
		return &Failure{Err: errors.New("the input device is not a TTY"), Code: 1}
	}
	id, err := f.idFile()
	if err != nil {
		return err
	}
	defer id.close()
	s, err := a.Store()
	if err != nil {
		return refused(err)
	}
	ctx, release, err := s.Lease(ctx)
	if err != nil {
		return refused(err)
	}
	defer release()
	if opt.Image, err = a.runImage(ctx, s, f, image); err != nil {
		return err
	}
	if opt.Config, err = imageConfig(ctx, s, opt.Image.Manifest); err != nil {
		return refused(err)
	}
	opt.ImageName, opt.Args = image, args
	if err := makeSources(opt.Sandbox.Mounts); err != nil {
		return err
	}

	net, err := a.connect(ctx, s, f.network, &opt.Sandbox)
	if err != nil {
		return refused(err)
	}
	defer net.Close()
	streams := a.attach(f, &opt.Sandbox)
	run, err := container.In(s).Create(ctx, opt)
	if err != nil {
		return refused(err)
	}
	defer run.Close()
	if err := id.write(run.ID); err != nil {
		return err
	}
	// A signal that strake gets is the container's: it does not end the
	// context under which the container runs.
	life := ctx
	if f.sigProxy {
		life = context.WithoutCancel(ctx)
	}
	signals := make(chan os.Signal, 64)
	if f.sigProxy {
		signal.Notify(signals)
		defer signal.Stop(signals)
	}
	if err := run.Start(life); err != nil {
		streams.restore()
		return a.startFailed(err)
	}
	ended := make(chan struct{})
	go forward(run, signals, ended)
	exit, err := run.Wait(ctx)
	close(ended)
	streams.restore()
	if err != nil {
		return refused(err)
	}
	if exit.Code != 0 {
		return &Failure{Code: exit.Code}
	}
	return nil
}

// startFailed words a process that could not be started as docker does.
func (a *App) startFailed(err error) error {
	var failed *sandbox.StartError
	if !errors.As(err, &failed) {
		return refused(err)
	}
	switch failed.Code {
	case 125:
		return refused(failed.Err)
	case 126, 127:
		if a.name == "docker" {
			err = fmt.Errorf("failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: %w", failed.Err)
		}
		return &Failure{Err: err, Daemon: true, Code: failed.Code, Command: "run"}
	}
	// The container began and its program did not: runc says so on its stderr.
	return &Failure{Err: failed.Err, Code: failed.Code}
}

// forward passes signals on, but for those that are about strake itself.
func forward(run *container.Run, signals <-chan os.Signal, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case s := <-signals:
			switch s {
			case syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE, syscall.SIGWINCH:
			default:
				_ = run.Signal(s) // it has ended meanwhile
			}
		}
	}
}

// runImage finds the image, and pulls it where --pull says so.
func (a *App) runImage(ctx context.Context, s *store.Store, f *runFlags, name string) (*store.Image, error) {
	r, err := ref.Parse(name)
	if err != nil {
		return nil, err
	}
	absent := false
	if f.pull != content.PullAlways {
		img, err := s.Find(ctx, name)
		absent = err != nil
		if err == nil && f.platform == "" {
			return img, nil
		}
		if err != nil && !isNotFound(err) {
			return nil, refused(err)
		}
	}
	r = r.WithDefaultTag()
	p := content.Host()
	if f.platform != "" {
		if p, err = platforms.Parse(f.platform); err != nil {
			return nil, fmt.Errorf("error parsing specified platform: %w", err)
		}
		p = platforms.Normalize(p)
	}
	printer := term.NewTransferPrinter(a.Err, term.Pull)
	if absent && f.pull == content.PullMissing && !f.quiet {
		fmt.Fprintf(a.Err, "Unable to find image '%s' locally\n", r.Familiar())
	}
	_, err = a.ensure(ctx, s, r, p, f.pull, func(e content.Event) {
		if !f.quiet {
			printer.Event(e)
		}
	})
	printer.Close()
	if err != nil {
		if f.pull == content.PullNever && isNotFound(err) {
			if img, err := s.Find(ctx, r.String()); err == nil {
				return nil, refused(&noPlatform{name: r.Familiar(), wanted: platforms.Format(p), present: presentPlatforms(ctx, s, img)})
			}
			err = fmt.Errorf("No such image: %s", r.Familiar())
		}
		return nil, refused(err)
	}
	img, err := s.Find(ctx, r.String())
	if err != nil {
		return nil, refused(err)
	}
	if f.platform != "" {
		if img, err = ofPlatform(ctx, s, img, r.Familiar(), f.platform); err != nil {
			return nil, refused(innerFailure(err))
		}
	}
	return img, nil
}

func innerFailure(err error) error {
	var f *Failure
	if errors.As(err, &f) && f.Err != nil {
		return f.Err
	}
	return err
}

// attached is what run did to the streams.
type attached struct {
	state  *xterm.State // of the terminal that was made raw
	fd     int
	output sync.WaitGroup
	resize chan os.Signal
}

// attach connects the streams to the process to be.
func (a *App) attach(f *runFlags, spec *sandbox.Spec) *attached {
	t := &attached{}
	if !f.tty {
		if f.interactive {
			spec.Stdin = a.In.Reader
		}
		spec.Stdout, spec.Stderr = a.Out.Writer, a.Err.Writer
		return t
	}
	spec.Terminal = true
	spec.OnTerminal = func(master *os.File) {
		if f.interactive {
			t.fd = int(a.In.File().Fd())
			t.state, _ = xterm.MakeRaw(t.fd)
			go io.Copy(master, a.In)
		}
		t.follow(a.Out.File(), master)
		t.output.Go(func() {
			io.Copy(a.Out, master) // ends with EIO when the last process has closed it
		})
	}
	return t
}

// follow keeps the container's terminal as large as ours.
func (t *attached) follow(ours, master *os.File) {
	if ours == nil {
		return
	}
	set := func() {
		if size, err := unix.IoctlGetWinsize(int(ours.Fd()), unix.TIOCGWINSZ); err == nil {
			raw, err := master.SyscallConn()
			if err == nil {
				raw.Control(func(fd uintptr) { unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) })
			}
		}
	}
	t.resize = make(chan os.Signal, 1)
	signal.Notify(t.resize, syscall.SIGWINCH)
	set()
	go func() {
		for range t.resize {
			set()
		}
	}()
}

// restore gives the terminal back as it was, when all output was shown.
func (t *attached) restore() {
	t.output.Wait()
	if t.resize != nil {
		signal.Stop(t.resize)
		close(t.resize)
	}
	if t.state != nil {
		xterm.Restore(t.fd, t.state)
	}
}
