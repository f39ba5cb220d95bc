package sshagent

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// keyFile writes a new private key.
func keyFile(t *testing.T, passphrase string) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(key, "test")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "test", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(p, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func dial(t *testing.T, a *Agent) agent.ExtendedAgent {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	l, err := a.Listen(t.Context(), os.Getuid(), os.Getgid(), 0o640)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(l.Path)
	if err != nil || fi.Mode().Perm() != 0o640 || fi.Mode()&os.ModeSocket == 0 {
		t.Fatalf("the socket is %v, %v", fi.Mode(), err)
	}
	conn, err := net.Dial("unix", l.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return agent.NewClient(conn)
}

// check that a build can list and sign, and change nothing.
func check(t *testing.T, c agent.ExtendedAgent) {
	t.Helper()
	keys, err := c.List()
	if err != nil || len(keys) != 1 {
		t.Fatalf("list: %v, %v", keys, err)
	}
	sig, err := c.Sign(keys[0], []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := keys[0].Verify([]byte("data"), sig); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"remove": c.Remove(keys[0]), "remove all": c.RemoveAll(), "lock": c.Lock([]byte("x")), "unlock": c.Unlock([]byte("x")),
	} {
		if err == nil {
			t.Errorf("a build could %s", what)
		}
	}
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	if c.Add(agent.AddedKey{PrivateKey: key}) == nil {
		t.Error("a build could add a key")
	}
	if keys, err := c.List(); err != nil || len(keys) != 1 {
		t.Errorf("after all that: %v, %v", keys, err)
	}
}

func TestKeys(t *testing.T) {
	a, err := Open([]string{keyFile(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	check(t, dial(t, a))
}

func TestSocket(t *testing.T) {
	users, err := Open([]string{keyFile(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	l, err := users.Listen(t.Context(), os.Getuid(), os.Getgid(), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := Open([]string{l.Path})
	if err != nil {
		t.Fatal(err)
	}
	check(t, dial(t, a))
}

func TestOpenRefuses(t *testing.T) {
	locked := keyFile(t, "secret")
	dir := filepath.Dir(locked)
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ paths, want string }{
		{locked, "has a passphrase"},
		{garbage, "is no private key"},
		{dir, "neither an agent's socket nor a key"},
		{dir + "/none", "no such file"},
	} {
		if _, err := Open([]string{c.paths}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Open(%s) = %v, want %q", c.paths, err, c.want)
		}
	}
}
