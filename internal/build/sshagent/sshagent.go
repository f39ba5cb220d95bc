// Package sshagent lets the commands of a build sign with the user's ssh keys
// without seeing them: a socket in the sandbox behind which an agent answers
// from keys that were read here, or passes on what the user's own agent says.
//
// A build may list keys and sign. It can neither add, remove nor lock keys of
// the user's agent.
package sshagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/strake-project/strake/internal/oci"
)

// Agent is the keys of one --ssh id.
type Agent struct {
	socket string // of the user's agent
	keys   agent.Agent
}

// Open returns an agent of paths: the socket of an agent, or key files.
func Open(paths []string) (*Agent, error) {
	if len(paths) == 0 {
		return nil, fmt.Errorf("no agent socket and no key: %w", oci.ErrInvalid)
	}
	a := &Agent{keys: agent.NewKeyring()}
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if fi.Mode()&os.ModeSocket != 0 {
			if len(paths) > 1 {
				return nil, fmt.Errorf("%s is an agent's socket, which cannot go together with other paths: %w", p, oci.ErrInvalid)
			}
			a.socket = p
			return a, nil
		}
		if !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is neither an agent's socket nor a key: %w", p, oci.ErrInvalid)
		}
		if err := a.addKey(p); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// maxKey bounds a key file.
const maxKey = 100 << 10

func (a *Agent) addKey(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return fmt.Errorf("read key %s: %w", p, err)
	}
	key, err := ssh.ParseRawPrivateKey(b)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return fmt.Errorf("key %s has a passphrase: add it to an ssh-agent and give --ssh the agent: %w", p, oci.ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("%s is no private key: %w", p, oci.ErrInvalid)
	}
	if err := a.keys.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		return fmt.Errorf("key %s: %w", p, err)
	}
	return nil
}

// Listener is a socket behind which an Agent answers.
type Listener struct {
	// Path of the socket, in a directory that only its owner can enter: it is
	// there to be mounted.
	Path string
	l    net.Listener
	dir  string
	wg   sync.WaitGroup
	ctx  context.Context
	stop context.CancelFunc
}

// Listen makes a socket that the given owner may use. Close removes it.
func (a *Agent) Listen(ctx context.Context, uid, gid int, mode os.FileMode) (*Listener, error) {
	dir, err := os.MkdirTemp("", "strake-ssh-")
	if err != nil {
		return nil, err
	}
	s := &Listener{Path: filepath.Join(dir, "agent"), dir: dir}
	if err := s.listen(uid, gid, mode); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("ssh agent socket: %w", err)
	}
	s.ctx, s.stop = context.WithCancel(ctx)
	s.wg.Go(func() { s.serve(a) })
	return s, nil
}

func (s *Listener) listen(uid, gid int, mode os.FileMode) error {
	// By way of the directory's descriptor: a socket's path has 108 bytes, and
	// TMPDIR may be longer.
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	s.l, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/agent", d.Fd())})
	if err != nil {
		return err
	}
	s.l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err = os.Chown(s.Path, uid, gid); err == nil {
		err = os.Chmod(s.Path, mode)
	}
	if err != nil {
		s.l.Close()
	}
	return err
}

// Close ends all connections and removes the socket.
func (s *Listener) Close() error {
	s.stop()
	err := s.l.Close()
	s.wg.Wait()
	return errors.Join(err, os.RemoveAll(s.dir))
}

func (s *Listener) serve(a *Agent) {
	for {
		conn, err := s.l.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() {
			done := context.AfterFunc(s.ctx, func() { conn.Close() })
			defer done()
			defer conn.Close()
			a.answer(s.ctx, conn)
		})
	}
}

// answer serves one connection until it ends.
func (a *Agent) answer(ctx context.Context, conn net.Conn) {
	keys := a.keys
	if a.socket != "" {
		user, err := new(net.Dialer).DialContext(ctx, "unix", a.socket)
		if err != nil {
			return // to ssh, an agent that is gone
		}
		defer user.Close()
		done := context.AfterFunc(ctx, func() { user.Close() })
		defer done()
		keys = agent.NewClient(user)
	}
	_ = agent.ServeAgent(&readOnly{keys.(agent.ExtendedAgent)}, conn) // it ends with the process that asks, which sees why
}

// errReadOnly is what a build gets that wants to change the user's agent.
var errReadOnly = errors.New("a build cannot change the agent's keys")

// readOnly lists and signs.
type readOnly struct{ agent.ExtendedAgent }

func (readOnly) Add(agent.AddedKey) error   { return errReadOnly }
func (readOnly) Remove(ssh.PublicKey) error { return errReadOnly }
func (readOnly) RemoveAll() error           { return errReadOnly }
func (readOnly) Lock([]byte) error          { return errReadOnly }
func (readOnly) Unlock([]byte) error        { return errReadOnly }
func (readOnly) Signers() ([]ssh.Signer, error) {
	return nil, errReadOnly
}

func (readOnly) Extension(string, []byte) ([]byte, error) {
	return nil, agent.ErrExtensionUnsupported
}
