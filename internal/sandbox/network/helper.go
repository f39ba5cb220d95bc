package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dnsForward is an address at which pasta answers for the machine's resolver,
// where that one listens on loopback only.
const dnsForward = "169.254.1.1"

// startPasta connects u with pasta: it copies the machine's addresses and
// routes into the namespace. No port is forwarded in either direction, and the
// gateway is not the machine's loopback. Started by root it would become nobody,
// who may not look below the store: --runas keeps it what it is.
func startPasta(ctx context.Context, u *User, dir string) (func(), error) {
	ready := filepath.Join(dir, "pasta.pid")
	args := []string{"--config-net", "--foreground", "--stderr", "--quiet", "-t", "none", "-u", "none", "-T", "none", "-U", "none",
		"--no-map-gw", "--pid", ready, "--runas", "0"}
	conf, ok := resolvConf()
	if !ok {
		args = append(args, "--dns-forward", dnsForward)
		conf, _ = resolvConf(dnsForward)
	}
	u.ResolvConf = conf
	p := run(exec.Command("pasta", append(args, "--netns", u.file)...))
	// It writes its pid when all is set up.
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if info, err := os.Stat(ready); err == nil && info.Size() > 0 {
			return p.kill, nil
		}
		select {
		case <-p.ended:
			return nil, p.failed()
		case <-ctx.Done():
			p.kill()
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// startSlirp connects u with slirp4netns: 10.0.2.100 behind 10.0.2.2, which
// does not lead to the machine's loopback, and a resolver at 10.0.2.3.
func startSlirp(ctx context.Context, u *User, _ string) (func(), error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", "--ready-fd=3", "--netns-type=path", u.file, "tap0")
	cmd.ExtraFiles = []*os.File{w}
	u.ResolvConf, _ = resolvConf("10.0.2.3")
	p := run(cmd)
	w.Close()
	ready := make(chan bool, 1)
	go func() {
		n, _ := io.ReadFull(r, make([]byte, 1))
		ready <- n == 1
	}()
	select {
	case ok := <-ready:
		if ok {
			return p.kill, nil
		}
		<-p.ended
		return nil, p.failed()
	case <-ctx.Done():
		p.kill()
		return nil, ctx.Err()
	}
}

// process is a helper that runs. It dies with the thread that started it, and
// so with strake.
type process struct {
	cmd   *exec.Cmd
	out   bytes.Buffer
	err   error
	ended chan struct{}
}

// run starts cmd and returns when it was started, or was not.
func run(cmd *exec.Cmd) *process {
	p := &process{cmd: cmd, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // the terminal's keys are not for it
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.ended)
		p.err = cmd.Start()
		close(started)
		if p.err == nil {
			p.err = cmd.Wait()
		}
	}()
	<-started
	return p
}

func (p *process) kill() {
	if p.cmd.Process != nil {
		_ = p.cmd.Process.Signal(unix.SIGKILL) // it has nothing to save
	}
	<-p.ended
}

// failed is why it ended, in its own words.
func (p *process) failed() error {
	var lines []string
	for line := range strings.Lines(p.out.String()) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "syslog") {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return errors.Join(p.err, errors.New("it ended"))
	}
	return fmt.Errorf("%s", lines[len(lines)-1])
}
