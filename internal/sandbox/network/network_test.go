package network

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
)

// Servers on the machine's loopback are no servers for a namespace: they are
// left out, and where none is left the caller is told.
func TestResolvConf(t *testing.T) {
	if _, err := os.Stat("/etc/resolv.conf"); err != nil {
		t.Skip("needs /etc/resolv.conf")
	}
	conf, ok := resolvConf("10.0.2.3", "fd00::3")
	if !ok || !strings.HasPrefix(string(conf), "nameserver 10.0.2.3\nnameserver fd00::3\n") || strings.Count(string(conf), "nameserver") != 2 {
		t.Errorf("with servers of our own: %v\n%s", ok, conf)
	}
	conf, ok = resolvConf()
	if strings.Contains(string(conf), "nameserver 127.") || ok != strings.Contains(string(conf), "nameserver ") {
		t.Errorf("the machine's: %v\n%s", ok, conf)
	}
}

// A network that could not be had is asked for once, is an error only where it
// was asked for by name, and a caller that gave up spoils it for nobody.
func TestSharedWithoutHelper(t *testing.T) {
	for _, need := range []bool{false, true} {
		asked := 0
		s := &Shared{Helper: "no-such-helper", Need: need, Log: slog.New(slog.DiscardHandler), Dir: func() (string, error) {
			asked++
			return t.TempDir(), nil
		}}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if u, err := s.Get(gone); u != nil || !errors.Is(err, context.Canceled) {
			t.Errorf("need %v, given up: %v, %v", need, u, err)
		}
		for range 2 {
			u, err := s.Get(t.Context())
			if u != nil || need != errors.Is(err, ErrNone) {
				t.Errorf("need %v: %v, %v", need, u, err)
			}
		}
		if asked != 2 {
			t.Errorf("need %v: started %d times, not once for who gave up and once for the others", need, asked)
		}
		s.Close()
	}
	var none *Shared
	none.Close()
	if none.Getter() != nil {
		t.Error("no network has a getter")
	}
}
