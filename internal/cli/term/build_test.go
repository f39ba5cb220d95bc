package term

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/oci"
)

// script plays a build to a printer, with a clock of its own.
type script struct {
	p *BuildPrinter
	t time.Time
}

func newScript(t *testing.T, out *strings.Builder) *script {
	t.Helper()
	p, err := NewBuildPrinter("plain", NewOut(out))
	if err != nil {
		t.Fatal(err)
	}
	return &script{p, time.Now().Add(-time.Hour)}
}

func (s *script) at(seconds float64) *time.Time {
	t := s.t.Add(time.Duration(seconds * float64(time.Second)))
	return &t
}

func (s *script) vertex(v build.Vertex) { s.p.Event(build.Event{Vertex: &v}) }

func (s *script) log(d oci.Digest, seconds float64, text string) {
	s.p.Event(build.Event{Log: &build.Log{Vertex: d, Stream: 1, Data: []byte(text), At: *s.at(seconds)}})
}

// TestPlain pins BuildKit's plain form.
func TestPlain(t *testing.T) {
	var out strings.Builder
	s := newScript(t, &out)
	s.vertex(build.Vertex{Digest: "a", Name: "[internal] load build definition from Dockerfile", Started: s.at(0)})
	s.p.Event(build.Event{Status: &build.Status{Vertex: "a", ID: "transferring dockerfile:", Started: *s.at(0)}})
	s.p.Event(build.Event{Status: &build.Status{Vertex: "a", ID: "transferring dockerfile:", Current: 80, Started: *s.at(0), Completed: s.at(0)}})
	s.vertex(build.Vertex{Digest: "a", Name: "[internal] load build definition from Dockerfile", Started: s.at(0), Completed: s.at(0.01)})
	s.vertex(build.Vertex{Digest: "c", Name: "[2/4] COPY . .", Started: s.at(0), Completed: s.at(0), Cached: true})
	s.vertex(build.Vertex{Digest: "r", Name: "[3/4] RUN make", Started: s.at(1)})
	s.log("r", 1.123, "first line\nsecond ")
	s.log("r", 12.5, "line\n")
	s.log("r", 13.5, "third\nno end")
	s.p.Event(build.Event{Warning: &build.Warning{Vertex: "r", Short: "careful"}})
	s.vertex(build.Vertex{Digest: "r", Name: "[3/4] RUN make", Started: s.at(1), Completed: s.at(14.26)})
	s.vertex(build.Vertex{Digest: "e", Name: "[4/4] RUN exit 3", Started: s.at(15)})
	s.log("e", 15.002, "oops\n")
	s.vertex(build.Vertex{Digest: "e", Name: "[4/4] RUN exit 3", Started: s.at(15), Completed: s.at(15.5), Error: `process "/bin/sh -c exit 3" did not complete successfully: exit code: 3`})
	s.p.Close(errors.New("failed"))
	want := `#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 80B done
#1 DONE 0.0s

#2 [2/4] COPY . .
#2 CACHED

#3 [3/4] RUN make
#3 0.123 first line
#3 0.123 second line
#3 12.50 third
#3 WARN: careful
#3 12.50 no end
#3 DONE 13.3s

#4 [4/4] RUN exit 3
#4 0.002 oops
#4 ERROR: process "/bin/sh -c exit 3" did not complete successfully: exit code: 3
------
 > [4/4] RUN exit 3:
0.002 oops
------

 1 warning found (use strake --debug to expand):
 - careful
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}

// TestPlainTurns: a step that runs beside another waits, is not lost, and
// comes with its own heading.
func TestPlainTurns(t *testing.T) {
	var out strings.Builder
	s := newScript(t, &out)
	s.vertex(build.Vertex{Digest: "a", Name: "A", Started: s.at(0)})
	s.vertex(build.Vertex{Digest: "b", Name: "B", Started: s.at(0)})
	s.log("b", 0, "b1\n")
	s.log("a", 0, "a1\n")
	s.vertex(build.Vertex{Digest: "b", Name: "B", Started: s.at(0), Completed: s.at(2)})
	s.log("a", 0, "a2\n")
	s.vertex(build.Vertex{Digest: "a", Name: "A", Started: s.at(0), Completed: s.at(1)})
	s.vertex(build.Vertex{Digest: "c", Name: "C", Started: s.at(0), Completed: s.at(1), Error: "context canceled"})
	s.p.Close(nil)
	want := "#1 A\n#1 0.000 a1\n#1 0.000 a2\n#1 DONE 1.0s\n\n#2 B\n#2 0.000 b1\n#2 DONE 2.0s\n\n#3 C\n#3 CANCELED\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}

// TestPlainLeaves: after its turn a running step gives way and comes back.
func TestPlainLeaves(t *testing.T) {
	var out strings.Builder
	v := &plainView{out: NewOut(&out)}
	p := &BuildPrinter{view: v, byID: map[oci.Digest]*step{}, stop: make(chan struct{})}
	s := &script{p, time.Now().Add(-time.Hour)}
	s.vertex(build.Vertex{Digest: "a", Name: "A", Started: s.at(0)})
	s.vertex(build.Vertex{Digest: "b", Name: "B", Started: s.at(0), Completed: s.at(0)})
	v.since = time.Now().Add(-2 * turn)
	v.tick(p)
	s.log("a", 0, "a1\n")
	s.p.Close(nil)
	want := "#1 A\n#1 ...\n\n#2 B\n#2 DONE 0.0s\n\n#1 A\n#1 0.000 a1\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}

// TestPlainStatus: a status that goes on gets its line after all, and another
// where it has moved enough.
func TestPlainStatus(t *testing.T) {
	var out strings.Builder
	v := &plainView{out: NewOut(&out)}
	p := &BuildPrinter{view: v, byID: map[oci.Digest]*step{}, stop: make(chan struct{})}
	s := &script{p, time.Now()}
	s.vertex(build.Vertex{Digest: "a", Name: "A", Started: s.at(0)})
	status := func(current int64) {
		p.Event(build.Event{Status: &build.Status{Vertex: "a", ID: "sha256:x", Current: current, Total: 1000}})
	}
	status(10)
	p.steps[0].statuses[0].since = time.Now().Add(-time.Second)
	v.tick(p)
	status(20)
	status(200)
	want := "#1 A\n#1 sha256:x 10B / 1.00kB\n#1 sha256:x 200B / 1.00kB\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}

func TestModes(t *testing.T) {
	var out strings.Builder
	for _, mode := range []string{"tty", "fancy"} {
		if _, err := NewBuildPrinter(mode, NewOut(&out)); err == nil {
			t.Errorf("mode %s on a pipe: no error", mode)
		}
	}
	p, err := NewBuildPrinter("quiet", NewOut(&out))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	p.Event(build.Event{Vertex: &build.Vertex{Digest: "a", Name: "A", Started: &now}})
	p.Close(errors.New("x"))
	if out.Len() > 0 {
		t.Errorf("quiet printed %q", out.String())
	}
}

// TestTTY draws twice over itself and ends with the whole list.
func TestTTY(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	var out strings.Builder
	v := &ttyView{out: NewOut(&out)}
	p := &BuildPrinter{view: v, byID: map[oci.Digest]*step{}, begin: time.Now(), stop: make(chan struct{})}
	s := &script{p, time.Now()}
	s.vertex(build.Vertex{Digest: "a", Name: "[1/2] FROM x", Started: s.at(0), Completed: s.at(0), Cached: true})
	s.vertex(build.Vertex{Digest: "b", Name: "[2/2] RUN make", Started: s.at(0)})
	s.log("b", 0, "\x1b[31mred\x1b[0m 10%\r20%\n")
	v.tick(p)
	first := out.String()
	for _, want := range []string{"[+] Building 0.0s (1/2)\x1b[K\n", " => CACHED [1/2] FROM x", " => [2/2] RUN make", " => => # 20%"} {
		if !strings.Contains(first, want) {
			t.Errorf("%q lacks %q", first, want)
		}
	}
	if strings.Contains(first, "\x1b[31m") {
		t.Errorf("the program's colours get through: %q", first)
	}
	s.vertex(build.Vertex{Digest: "b", Name: "[2/2] RUN make", Started: s.at(0), Completed: s.at(1)})
	p.Close(nil)
	last := strings.TrimPrefix(out.String(), first)
	for _, want := range []string{"\x1b[4A\r[+] Building 0.0s (2/2) FINISHED\x1b[K\n", "1.0s\x1b[K\n"} {
		if !strings.Contains(last, want) {
			t.Errorf("%q lacks %q", last, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"plain", "plain"},
		{"a\tb", "a b"},
		{"10%\r20%\r", "20%"},
		{"\x1b[1;31mred\x1b[0m", "red"},
		{"\x1b]0;title\x07text", "text"},
		{"\x1b]0;title\x1b\\text", "text"},
		{"bell\x07 del\x7f c1\u009b", "bell del c1"},
		{"cut\x1b[", "cut"},
		{"cut\x1b", "cut"},
	} {
		if got := printable(c.in); got != c.want {
			t.Errorf("printable(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("\x1b[31mred\r\n\x1b]0;x\x07")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range printable(s) {
			if r < ' ' || r == 0x7f || r >= 0x80 && r <= 0x9f {
				t.Fatalf("printable(%q) lets %q through", s, r)
			}
		}
	})
}

func TestFit(t *testing.T) {
	rows := []row{{"old", true}, {"running", false}, {"new", true}, {"also running", false}}
	got := fit(rows, 2)
	if len(got) != 2 || got[0].text != "running" || got[1].text != "also running" {
		t.Errorf("fit left %v", got)
	}
	if got := fit(rows[:1], 0); len(got) != 1 {
		t.Errorf("fit left %v of one row", got)
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 999: "999B", 1000: "1.00kB", 1234567: "1.23MB", 999999: "1.00MB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %s, want %s", n, got, want)
		}
	}
}
