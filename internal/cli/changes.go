package cli

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/sys/signal"

	"github.com/strake-project/strake/internal/oci"
)

// applyChanges applies the instructions of --change to an image's config, as
// a Dockerfile would: CMD ENTRYPOINT ENV EXPOSE HEALTHCHECK LABEL ONBUILD
// STOPSIGNAL USER VOLUME WORKDIR.
func applyChanges(conf *oci.Image, changes []string) error {
	for _, change := range changes {
		ast, err := parser.Parse(strings.NewReader(change))
		if err != nil {
			return err
		}
		for _, node := range ast.AST.Children {
			if !isChange(node.Value) {
				return fmt.Errorf("%s is not a valid change command: %w", node.Value, oci.ErrInvalid)
			}
			cmd, err := instructions.ParseCommand(node)
			if err != nil {
				return innermost(err)
			}
			if err := applyChange(conf, cmd); err != nil {
				return err
			}
		}
	}
	return nil
}

func isChange(name string) bool {
	return slices.Contains([]string{"cmd", "entrypoint", "env", "expose", "healthcheck", "label", "onbuild", "stopsignal", "user", "volume", "workdir"}, strings.ToLower(name))
}

// innermost is the parser's own sentence, without the place in a Dockerfile
// that there is not.
func innermost(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok || u.Unwrap() == nil {
			return err
		}
		err = u.Unwrap()
	}
}

func applyChange(conf *oci.Image, cmd instructions.Command) error {
	c := &conf.Config
	if e, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		lex := shell.NewLex('\\')
		env := shell.EnvsFromSlice(c.Env)
		err := e.Expand(func(word string) (string, error) {
			out, _, err := lex.ProcessWord(word, env)
			return out, err
		})
		if err != nil {
			return err
		}
	}
	switch cmd := cmd.(type) {
	case *instructions.CmdCommand:
		c.Cmd = commandLine(conf, cmd.ShellDependantCmdLine)
	case *instructions.EntrypointCommand:
		c.Entrypoint = commandLine(conf, cmd.ShellDependantCmdLine)
	case *instructions.EnvCommand:
		for _, kv := range cmd.Env {
			c.Env = setEnv(c.Env, kv.Key, kv.Value)
		}
	case *instructions.ExposeCommand:
		return expose(conf, cmd.Ports)
	case *instructions.HealthCheckCommand:
		c.Healthcheck = cmd.Health
	case *instructions.LabelCommand:
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		for _, kv := range cmd.Labels {
			c.Labels[kv.Key] = kv.Value
		}
	case *instructions.OnbuildCommand:
		c.OnBuild = append(c.OnBuild, cmd.Expression)
	case *instructions.StopSignalCommand:
		if _, err := signal.ParseSignal(cmd.Signal); err != nil {
			return err
		}
		c.StopSignal = cmd.Signal
	case *instructions.UserCommand:
		c.User = cmd.User
	case *instructions.VolumeCommand:
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		for _, v := range cmd.Volumes {
			c.Volumes[v] = struct{}{}
		}
	case *instructions.WorkdirCommand:
		if path.IsAbs(cmd.Path) {
			c.WorkingDir = path.Clean(cmd.Path)
		} else {
			c.WorkingDir = path.Join("/", c.WorkingDir, cmd.Path)
		}
	}
	return nil
}

// commandLine is the arguments of CMD or ENTRYPOINT: in the shell form the
// image's shell runs them.
func commandLine(conf *oci.Image, l instructions.ShellDependantCmdLine) []string {
	if !l.PrependShell {
		return l.CmdLine
	}
	sh := []string{"/bin/sh", "-c"}
	if len(conf.Config.Shell) > 0 {
		sh = slices.Clone(conf.Config.Shell)
	}
	return append(sh, strings.Join(l.CmdLine, " "))
}

// setEnv replaces key's entry or appends one.
func setEnv(env []string, key, value string) []string {
	for i, e := range env {
		if k, _, _ := strings.Cut(e, "="); k == key {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

// expose adds PORT, PORT/PROTOCOL and FIRST-LAST/PROTOCOL.
func expose(conf *oci.Image, ports []string) error {
	for _, spec := range ports {
		text, proto, given := strings.Cut(spec, "/")
		if !given {
			proto = "tcp"
		}
		proto = strings.ToLower(proto)
		if !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
			return fmt.Errorf("invalid proto: %s: %w", proto, oci.ErrInvalid)
		}
		low, high, ranged := strings.Cut(text, "-")
		if !ranged {
			high = low
		}
		first, err1 := strconv.ParseUint(low, 10, 16)
		last, err2 := strconv.ParseUint(high, 10, 16)
		if err1 != nil || err2 != nil || first > last {
			return fmt.Errorf("invalid containerPort: %s: %w", text, oci.ErrInvalid)
		}
		if conf.Config.ExposedPorts == nil {
			conf.Config.ExposedPorts = map[string]struct{}{}
		}
		for p := first; p <= last; p++ {
			conf.Config.ExposedPorts[fmt.Sprintf("%d/%s", p, proto)] = struct{}{}
		}
	}
	return nil
}
