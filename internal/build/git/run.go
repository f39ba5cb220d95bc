package git

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// Error is a git command that failed.
type Error struct {
	Command string // "fetch"
	Stderr  string
	Err     error
}

func (e *Error) Unwrap() error { return e.Err }

// Error is one line: what git itself calls the reason, if it does.
func (e *Error) Error() string {
	var why []string
	for line := range strings.Lines(e.Stderr) {
		line = strings.TrimSpace(line)
		if n := len(why); n > 0 && strings.HasSuffix(why[n-1], ":") {
			why[n-1] += " " + line // the reason follows on a line of its own
			continue
		}
		for _, kind := range []string{"fatal: ", "error: ", "ERROR: ", "remote: "} {
			if s, ok := strings.CutPrefix(line, kind); ok && strings.TrimSpace(s) != "" {
				why = append(why, s)
			}
		}
	}
	if len(why) == 0 {
		why = strings.FieldsFunc(strings.TrimSpace(e.Stderr), func(r rune) bool { return r == '\n' || r == '\r' })
	}
	if n := len(why); n > 6 {
		why = why[n-6:]
	}
	s := strings.Join(why, "; ")
	if s != "" {
		s += ": "
	}
	return fmt.Sprintf("git %s: %s%v", e.Command, s, e.Err)
}

// runner runs git commands for one source.
type runner struct {
	g      *Git
	dir    string // scratch
	env    []string
	conf   *config
	gitDir string
	tree   string
}

// config is git's configuration, which it has from the environment: others
// cannot read that as they can arguments.
type config struct {
	pairs  [][2]string
	auth   string   // the Authorization header
	scopes []string // the URLs below which it is sent
}

func (c *config) set(key, value string) { c.pairs = append(c.pairs, [2]string{key, value}) }

func (c *config) environ() []string {
	env := []string{"GIT_CONFIG_COUNT=" + strconv.Itoa(len(c.pairs))}
	for i, kv := range c.pairs {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	return env
}

// runner makes what git needs to see and nothing else.
func (g *Git) runner(ctx context.Context, s *Source) (*runner, error) {
	dir, err := g.Scratch(ctx)
	if err != nil {
		return nil, err
	}
	ssh := "ssh -F /dev/null -o BatchMode=yes"
	if s.KnownHosts != "" {
		file := filepath.Join(dir, "known_hosts")
		if err := os.WriteFile(file, []byte(s.KnownHosts), 0o600); err != nil {
			return nil, err
		}
		ssh += " -o " + shellQuote(`UserKnownHostsFile="`+file+`"`)
	} else {
		ssh += " -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
	}
	r := &runner{g: g, dir: dir, env: []string{
		"PATH=" + os.Getenv("PATH"),
		"LC_ALL=C",
		"HOME=/dev/null",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir), // the store may lie in a repository
		"GIT_SSH_COMMAND=" + ssh,
		"GIT_ALLOW_PROTOCOL=http:https:ssh:git",
	}}
	if s.AuthSock != "" {
		r.env = append(r.env, "SSH_AUTH_SOCK="+s.AuthSock)
	}
	for _, name := range []string{
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO",
	} {
		if v, ok := os.LookupEnv(name); ok {
			r.env = append(r.env, name+"="+v)
		}
	}
	r.conf = &config{auth: s.Auth, pairs: [][2]string{
		{"core.hooksPath", "/dev/null"},
		{"credential.helper", ""},
		{"gc.auto", "0"},
		{"maintenance.auto", "false"},
		{"advice.detachedHead", "false"},
		// A server that sends nothing is given up.
		{"http.lowSpeedLimit", "1"},
		{"http.lowSpeedTime", strconv.Itoa(int(g.stall().Seconds()))},
	}}
	if s.Auth != "" {
		r.conf.authorize(authScope(s))
	}
	return r, nil
}

// authScope is where a repository's credentials are sent: to itself, and on
// GitHub, as its own actions do, to the submodules there as well.
func authScope(s *Source) string {
	if u, err := url.Parse(s.Remote); err == nil && s.AuthHost {
		return u.Scheme + "://" + u.Host + "/"
	}
	remote := s.Remote
	for _, p := range []string{"https://github.com/", "https://www.github.com/"} {
		if strings.HasPrefix(remote, p) {
			return p
		}
	}
	return remote
}

// in is r for a repository and a work tree.
func (r *runner) in(gitDir, tree string) *runner {
	c := *r
	c.gitDir, c.tree = gitDir, tree
	return &c
}

// local is r with access to repositories on the disk, and to nothing else.
func (r *runner) local() *runner {
	c := *r
	c.env = append([]string(nil), r.env...)
	for i, e := range c.env {
		if strings.HasPrefix(e, "GIT_ALLOW_PROTOCOL=") {
			c.env[i] = "GIT_ALLOW_PROTOCOL=file"
		}
	}
	return &c
}

// maxOutput bounds what is kept of a command's output: refs of a large
// repository, a commit.
const maxOutput = 64 << 20

// run runs a git command and returns what it wrote to stdout. A repository that
// has moved is followed there.
func (r *runner) run(ctx context.Context, args ...string) ([]byte, error) {
	for moves := 0; ; moves++ {
		out, err := r.once(ctx, args...)
		if err == nil || moves == maxMoves || !r.follow(ctx, err) {
			return out, err
		}
	}
}

func (r *runner) once(ctx context.Context, args ...string) ([]byte, error) {
	name := args[0]
	for i := 0; name == "-c" && i+2 < len(args); i += 2 {
		name = args[i+2]
	}
	var all []string
	if r.gitDir != "" {
		all = append(all, "--git-dir", r.gitDir)
	}
	if r.tree != "" {
		all = append(all, "--work-tree", r.tree)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, "git", append(all, args...)...)
	cmd.Dir, cmd.Env = r.dir, slices.Concat(r.env, r.conf.environ())
	if r.tree != "" {
		cmd.Dir = r.tree
	}
	stdout := &output{log: r.g.Log, stream: 1}
	stderr := &output{log: r.g.Log, stream: 2}
	if name == "cat-file" || name == "rev-parse" || name == "ls-remote" {
		stdout.log = nil // answers to us
	}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// Helpers (ssh, git-remote-https) go with their git.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err := withUmask(func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		defer r.watch(cmd.Process.Pid, cancel)()
		return cmd.Wait()
	})
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("there is no git program in PATH, which git repositories need: install git: %w", oci.ErrUnsupported)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, &Error{Command: name, Stderr: stderr.String(), Err: err}
	}
	if stdout.cut {
		return nil, fmt.Errorf("git %s: more than %d bytes of output: %w", name, maxOutput, oci.ErrInvalid)
	}
	return stdout.Bytes(), nil
}

// withUmask calls fn where the umask is 022, whatever the user's is: what git
// writes becomes an image. The thread ends with it, because its umask is its own
// from then on.
func withUmask(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("a umask for git: %w", err)
			return
		}
		unix.Umask(0o022)
		done <- fn()
	}()
	return <-done
}

// output keeps and shows what a command writes.
type output struct {
	bytes.Buffer
	log    func(stream int, data []byte)
	stream int
	cut    bool
}

func (o *output) Write(p []byte) (int, error) {
	if o.log != nil {
		o.log(o.stream, p)
	}
	if o.Len()+len(p) > maxOutput {
		o.cut = true
		return len(p), nil
	}
	return o.Buffer.Write(p)
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func base64Of(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
