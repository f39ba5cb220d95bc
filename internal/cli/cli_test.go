package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

func testApp(name string) (*App, *bytes.Buffer, *bytes.Buffer) {
	var out, err bytes.Buffer
	return &App{name: name, busy: new(term.Busy), Streams: term.Streams{In: term.NewIn(strings.NewReader("")), Out: term.NewOut(&out), Err: term.NewOut(&err)}}, &out, &err
}

// TestEveryCommand: each has a sentence, an example that calls it by its name,
// an argument check, and no panic when its help is printed.
func TestEveryCommand(t *testing.T) {
	a, out, _ := testApp("strake")
	root := a.wholeTree()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			walk(c)
		}
		if cmd == root || cmd.Name() == "help" {
			return
		}
		path := cmd.CommandPath()
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: its sentence is %q", path, cmd.Short)
		}
		if cmd.Args == nil {
			t.Errorf("%s takes any arguments", path)
		}
		if !cmd.HasSubCommands() && !strings.Contains(cmd.Example, "strake ") {
			t.Errorf("%s has no example", path)
		}
		out.Reset()
		if err := cmd.Help(); err != nil || !strings.HasPrefix(out.String(), "Usage:  "+path) {
			t.Errorf("%s --help: %v: %s", path, err, out)
		}
	}
	walk(root)
}

// TestCommandTables: every command has its traits, and what is said of commands
// by their names is of commands that there are.
func TestCommandTables(t *testing.T) {
	a, _, _ := testApp("strake")
	all, known := commandTraits(), map[string]bool{}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		path := a.pathOf(cmd)
		known[path] = true
		if _, ok := all[path]; !ok && !cmd.HasSubCommands() {
			t.Errorf("commandTraits does not know %q", path)
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(a.wholeTree())
	for path := range all {
		if !known[path] {
			t.Errorf("commandTraits knows %q, which is no command", path)
		}
	}
	for _, name := range commonCommands() {
		if !known[name] {
			t.Errorf("commonCommands knows %q, which is no command", name)
		}
	}
	for _, b := range a.branches() {
		if got := b.make(b.name).Name(); got != b.name {
			t.Errorf("the branch %s makes %s", b.name, got)
		}
	}
}

// TestReport holds what is printed, under both names, and the exit code.
func TestReport(t *testing.T) {
	gone := errors.New("gone")
	for _, c := range []struct {
		why            string
		err            error
		strake, docker string
		code           int
	}{
		{"a plain error is the client's own", gone, "gone", "gone", 1},
		{"the daemon's words begin with its name", daemon(gone), "Error: gone", "Error response from daemon: gone", 1},
		{"daemon of a failure changes nothing", daemon(&Failure{Err: gone, Code: 7}), "gone", "gone", 7},
		{"several errors have a line each and the first one's code", errors.Join(daemon(gone), &Failure{Err: gone, Code: 3}), "Error: gone\ngone", "Error response from daemon: gone\ngone", 1},
		{"run names its help", &Failure{Err: gone, Code: 125, Daemon: true, Command: "run"},
			"strake: Error: gone\n\nRun 'strake run --help' for more information", "docker: Error response from daemon: gone\n\nRun 'docker run --help' for more information", 125},
		{"only the code", exit(42), "", "", 42},
		{"a kind that says nothing new is left out", daemonf("x is no tar: %w", oci.ErrInvalid), "Error: x is no tar", "Error response from daemon: x is no tar", 1},
		{"not found belongs to the sentence", daemonf("x: %w", oci.ErrNotFound), "Error: x: not found", "Error response from daemon: x: not found", 1},
	} {
		for name, want := range map[string]string{"strake": c.strake, "docker": c.docker} {
			a, _, stderr := testApp(name)
			code := a.report(context.Background(), c.err)
			if got := strings.TrimSuffix(stderr.String(), "\n"); got != want || code != c.code {
				t.Errorf("%s: %s printed %q with code %d, want %q with %d", c.why, name, got, code, want, c.code)
			}
		}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(Signal{syscall.SIGTERM})
	for _, err := range []error{ctx.Err(), context.Cause(ctx), fmt.Errorf("Get x: %w", context.Cause(ctx))} {
		a, _, stderr := testApp("strake")
		if code := a.report(ctx, daemon(err)); code != 143 || stderr.Len() > 0 {
			t.Errorf("%v after SIGTERM: code %d, %q", err, code, stderr)
		}
	}
}

func TestTimestamp(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"10m":                            now.Add(-10 * time.Minute),
		"1h30m":                          now.Add(-90 * time.Minute),
		"1700000000":                     time.Unix(1700000000, 0),
		"1700000000.5":                   time.Unix(1700000000, 5e8),
		"2026-01-02T03:04:05Z":           time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-01-02T03:04:05.000000006Z": time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		"2026-01-02T03:04:05+02:00":      time.Date(2026, 1, 2, 1, 4, 5, 0, time.UTC),
		"2026-01-02T03:04":               time.Date(2026, 1, 2, 3, 4, 0, 0, time.Local),
		"2026-01-02":                     time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
	} {
		got, err := timestamp(in, now)
		if err != nil || !got.Equal(want) {
			t.Errorf("timestamp(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "1.x", "2026-13-01", "1700000000.1234567890x"} {
		if got, err := timestamp(in, now); err == nil {
			t.Errorf("timestamp(%q) = %v, want an error", in, got)
		}
	}
}

func FuzzTimestamp(f *testing.F) {
	f.Add("1.-5")
	f.Fuzz(func(_ *testing.T, s string) { _, _ = timestamp(s, time.Unix(0, 0)) })
}

func TestFilters(t *testing.T) {
	var f filters
	for _, s := range []string{"label=a=b", " Label!= c", "dangling=1", ""} {
		if err := f.Set(s); err != nil {
			t.Errorf("Set(%q): %v", s, err)
		}
	}
	if d := cmp.Diff(filters{{"label", "a=b"}, {"label!", "c"}, {"dangling", "1"}}, f, cmp.AllowUnexported(filter{})); d != "" {
		t.Error(d)
	}
	if err := f.Set("label"); err == nil {
		t.Error("a filter without a value is taken")
	}
	for values, want := range map[string]string{"true": "", "1": "", "0": "", "True": "[True]", "maybe": "[maybe]", "true,false": "[true false]"} {
		var f filters
		for _, v := range strings.Split(values, ",") {
			f = append(f, filter{"dangling", v})
		}
		_, err := f.boolean("dangling")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("dangling=%s: %v", values, err)
		}
	}
}

func TestMatches(t *testing.T) {
	r, err := ref.ParseImage("busybox:1.36")
	if err != nil {
		t.Fatal(err)
	}
	other, err := ref.ParseImage("example.com/team/web:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pattern string
		r       ref.Ref
		want    bool
	}{
		{"busybox", r, true}, {"busy*", r, true}, {"busybox:1.*", r, true}, {"*:1.36", r, true}, {"docker.io/library/busybox", r, true},
		{"busybox:2", r, false}, {"box", r, false}, {"*", other, false}, {"*/*/*", other, true}, {"example.com/team/web:*", other, true}, {"web", other, false},
	} {
		if got := matches(c.pattern, c.r); got != c.want {
			t.Errorf("%s matches %s: %v", c.pattern, c.r.Familiar(), got)
		}
	}
}

// FuzzChanges: no --change makes strake panic, and a refused one is an error.
func FuzzChanges(f *testing.F) {
	for _, s := range []string{"CMD [\"a\"]", "EXPOSE 1-2/udp", "ENV A=b C=$A", "HEALTHCHECK NONE", "LABEL a='b", "VOLUME [\"/a\", \"b\"]", "WORKDIR ${A:-b}"} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, s string) {
		_ = applyChanges(&oci.Image{}, []string{s})
	})
}

func TestServerOf(t *testing.T) {
	for in, want := range map[string]string{
		"": "docker.io", "https://index.docker.io/v1/": "docker.io", "docker.io": "docker.io",
		"http://127.0.0.1:5000/v2/": "127.0.0.1:5000", "ghcr.io": "ghcr.io",
	} {
		var args []string
		if in != "" {
			args = []string{in}
		}
		if got := serverOf(args); got != want {
			t.Errorf("serverOf(%q) = %q, want %q", in, got, want)
		}
	}
}
