package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestDemo runs the README's first command: a Debian root, a multi-stage build
// with apt-get, push, pull into an empty store, run, and the page fetched.
func TestDemo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it installs packages and runs containers")
	}
	out, err := exec.CommandContext(t.Context(), "./demo.sh").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "The image went all the way round.") {
		t.Fatalf("demo.sh: %v\n%s", err, out)
	}
}
