package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
)

func (a *App) installShimCommand() *cobra.Command {
	var dir string
	var force, remove bool
	cmd := &cobra.Command{
		Use:   "install-shim [OPTIONS]",
		Short: "Make a link named docker, so that scripts call strake",
		Long: `Make a symbolic link named docker to this binary: called by that name, strake
prints docker's texts to the letter. Another program of that name is not
overwritten without --force.`,
		Example: `  strake install-shim
  strake install-shim --dir ~/.local/bin
  strake install-shim --remove`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if force && remove {
				return errors.New("--remove removes only a link to this binary: leave out --force")
			}
			return a.installShim(dir, force, remove)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&dir, "dir", "", "Directory of the link (default: that of this binary)")
	fs.BoolVar(&force, "force", false, "Replace another program named docker in that directory")
	fs.BoolVar(&remove, "remove", false, "Remove the link again")
	return cmd
}

func (a *App) installShim(dir string, force, remove bool) error {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return fmt.Errorf("where this binary is: %w", err)
	}
	if dir == "" {
		dir = filepath.Dir(self)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	link := filepath.Join(dir, "docker")
	state, err := shimAt(link, self)
	switch {
	case err != nil:
		return err
	case remove && state == shimOurs:
		return os.Remove(link)
	case remove && state == shimNone:
		return fmt.Errorf("there is no %s", link)
	case remove:
		return fmt.Errorf("%s is not a link to %s: it stays", link, self)
	case state == shimForeign && !force:
		return fmt.Errorf("%s is another program; choose another directory with --dir, or replace it with --force", link)
	case state != shimOurs:
		if err := replaceLink(self, link); err != nil {
			return err
		}
	}
	fmt.Fprintf(a.Out, "%s -> %s\n", link, self)
	a.sayPath(dir, link)
	return nil
}

const (
	shimNone = iota
	shimOurs
	shimForeign
)

func shimAt(link, self string) (int, error) {
	if _, err := os.Lstat(link); errors.Is(err, fs.ErrNotExist) {
		return shimNone, nil
	} else if err != nil {
		return shimNone, err
	}
	if to, err := filepath.EvalSymlinks(link); err == nil && to == self && link != self {
		return shimOurs, nil
	}
	return shimForeign, nil
}

// replaceLink makes link in one step: there is never no docker.
func replaceLink(to, link string) error {
	aside := fmt.Sprintf("%s.%d", link, os.Getpid())
	if err := os.Symlink(to, aside); err != nil {
		return fmt.Errorf("%s: %w", link, errors.Unwrap(err)) // nobody asked for the name aside
	}
	if err := os.Rename(aside, link); err != nil {
		os.Remove(aside)
		return err
	}
	return nil
}

// sayPath tells whether the shell finds the link.
func (a *App) sayPath(dir, link string) {
	found, err := exec.LookPath("docker")
	switch {
	case err != nil:
		fmt.Fprintf(a.Err, "The directory is not in PATH: export PATH=%s:$PATH\n", dir)
	case found != link:
		fmt.Fprintf(a.Err, "PATH finds %s first: export PATH=%s:$PATH\n", found, dir)
	}
}
