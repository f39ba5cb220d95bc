package frontend_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/errdefs"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

func TestCopyOntoScratch(t *testing.T) {
	l := newLab(t)
	l.write("a/b.txt", "hello")
	img := l.build("FROM scratch\nCOPY a /x/\nENV A=1 B=2\nCMD [\"/x\"]\n")
	img.want("x/b.txt", "hello")
	if len(img.RootFS.DiffIDs) != 1 || len(img.History) != 3 {
		t.Errorf("%d layers and %d lines of history, want 1 and 3", len(img.RootFS.DiffIDs), len(img.History))
	}
	if img.Config.Env == nil || !slices.Contains(img.Config.Env, "B=2") {
		t.Errorf("env %v", img.Config.Env)
	}
	for _, h := range img.History {
		if h.Created == nil {
			t.Errorf("no time in %+v", h)
		}
	}
}

func TestRun(t *testing.T) {
	l := newLab(t)
	img := l.build("FROM busybox\nWORKDIR /w\nRUN echo one >f && rm /etc/group && echo $HOME $PWD\nRUN cat f && echo two >>f\n")
	img.want("w/f", "one\ntwo\n")
	img.gone("etc/group")
	if got := l.logs.String(); !strings.Contains(got, "/root /w\n") || !strings.Contains(got, "one\n") {
		t.Errorf("output: %q", got)
	}
	if n := len(img.tocs[len(img.tocs)-1].Entries); n != 2 { // w and w/f
		t.Errorf("the last layer has %d entries: %+v", n, img.tocs[len(img.tocs)-1].Entries)
	}
}

func TestRunTrueLeavesAnEmptyLayer(t *testing.T) {
	l := newLab(t)
	img := l.build("FROM busybox\nRUN true\n")
	if got := img.tocs[1].Entries; len(got) != 0 {
		t.Errorf("RUN true left %+v", got)
	}
}

func TestMultiStageKeepsOnlyWhatIsCopied(t *testing.T) {
	l := newLab(t)
	img := l.build(`FROM busybox AS a
RUN mkdir /out && echo 1 >/out/x && echo junk >/junk
FROM busybox AS unused
RUN false
FROM busybox
COPY --from=a --chown=user:user /out/ /in/
`)
	img.want("in/x", "1\n")
	img.gone("junk")
	if e := img.entry("in/x"); e.UID != 1000 || e.GID != 1000 {
		t.Errorf("owner %d:%d", e.UID, e.GID)
	}
}

func TestCacheIsContentBased(t *testing.T) {
	l := newLab(t)
	const df = "FROM busybox\nCOPY a /a\nRUN cat /a >/b\nCOPY c /c\nRUN true\n"
	l.write("a", "1")
	l.write("c", "1")
	first := l.build(df)
	if len(l.ran) != 4 {
		t.Fatalf("the first build ran %q", l.ran)
	}
	again := l.build(df)
	if len(l.ran) != 0 {
		t.Errorf("nothing changed and these ran: %q", l.ran)
	}
	if again.out.ID != first.out.ID {
		t.Errorf("the same build has the image IDs %s and %s", first.out.ID, again.out.ID)
	}
	if err := os.Chtimes(filepath.Join(l.dir, "a"), *first.History[0].Created, *first.History[1].Created); err == nil {
		l.build(df)
		if len(l.ran) != 0 {
			t.Errorf("a touched file made these run: %q (trap 10)", l.ran)
		}
	}
	l.write("c", "2")
	if img := l.build(df); len(l.ran) != 2 {
		t.Errorf("after a change of c these ran: %q", l.ran)
	} else {
		img.want("c", "2")
	}
	l.write("unused", "x")
	if l.build(df); len(l.ran) != 0 {
		t.Errorf("a file that nothing copies made these run: %q", l.ran)
	}
	if l.build(df, "no-cache="); len(l.ran) != 4 {
		t.Errorf("--no-cache ran %q", l.ran)
	}
}

func TestCopyFromStageIsCachedByContent(t *testing.T) {
	l := newLab(t)
	df := func(s string) string {
		return "FROM busybox AS a\nRUN echo " + s + " >/log; echo same >/out\nFROM busybox\nCOPY --from=a /out /out\nRUN true\n"
	}
	l.build(df("1"))
	l.build(df("2"))
	if len(l.ran) != 1 {
		t.Errorf("the stage was run again but yields the same file, and these ran: %q", l.ran)
	}
}

func TestDockerignore(t *testing.T) {
	l := newLab(t)
	l.write(".dockerignore", "*\n!**/*.py\n")
	l.write("a.txt", "")
	l.write("src/a.py", "x")
	l.write("src/a.txt", "")
	img := l.build("FROM scratch\nCOPY . /\n")
	img.want("src/a.py", "x")
	img.gone("a.txt")
	img.gone("src/a.txt")
	if _, err := os.Stat(filepath.Join(l.dir, "a.txt")); err != nil {
		t.Errorf("the context was changed: %v", err)
	}
}

func TestBuildArgsAndTarget(t *testing.T) {
	l := newLab(t)
	const df = "ARG V=1\nFROM busybox AS a\nARG V\nRUN echo $V >/v\nFROM a AS b\nRUN echo b >/b\n"
	img := l.build(df, "build-arg:V=7", "target=a")
	img.want("v", "7\n")
	img.gone("b")
	if _, err := l.try(df, "target=zz"); err == nil || !strings.Contains(err.Error(), `target stage "zz" could not be found`) {
		t.Errorf("an unknown target: %v", err)
	}
}

func TestMounts(t *testing.T) {
	l := newLab(t)
	l.write("ctx.txt", "from context")
	l.opt.Secret = func(_ context.Context, id string) ([]byte, error) {
		if id == "s" {
			return []byte("hush"), nil
		}
		return nil, oci.ErrNotFound
	}
	const df = `FROM busybox AS other
RUN echo other >/o
FROM busybox
RUN --mount=type=bind,source=ctx.txt,target=/m/ctx.txt cat /m/ctx.txt >/1
RUN --mount=type=bind,from=other,target=/o,rw cat /o/o >/2 && echo x >/o/discarded
RUN --mount=type=cache,target=/cache,uid=1000,mode=0700 stat -c '%a %u' /cache >/3 && echo n >>/cache/n && cat /cache/n >>/3
RUN --mount=type=tmpfs,target=/t,size=1m echo x >/t/x && stat -f -c %T /t >/4
RUN --mount=type=secret,id=s,mode=0444 cat /run/secrets/s >/5
RUN --mount=type=secret,id=s,env=S echo $S >/6
RUN --mount=type=secret,id=nosuch ls /run/secrets >/7 2>&1 || true
`
	img := l.build(df)
	img.want("1", "from context")
	img.want("2", "other\n")
	img.want("3", "700 1000\nn\n")
	img.want("4", "tmpfs\n")
	img.want("5", "hush")
	img.want("6", "hush\n")
	for _, p := range []string{"m", "o", "t/x", "cache/n", "run/secrets/s"} {
		img.gone(p)
	}
	img = l.build(df, "no-cache=")
	img.want("3", "700 1000\nn\nn\n")
}

func TestLinkAndMerge(t *testing.T) {
	l := newLab(t)
	l.write("f", "x")
	img := l.build("FROM busybox AS a\nRUN echo 1 >/one\nFROM a\nCOPY --link f /new/dir/f\nRUN cat /new/dir/f /one >/all\n")
	img.want("new/dir/f", "x")
	img.want("all", "x1\n")
}

func TestHeredoc(t *testing.T) {
	l := newLab(t)
	img := l.build("FROM busybox\nRUN <<EOF\necho a >/a\necho b >/b\nEOF\nCOPY <<x /x\ntext\nx\n")
	img.want("a", "a\n")
	img.want("b", "b\n")
	img.want("x", "text\n")
}

func TestUserAndModes(t *testing.T) {
	l := newLab(t)
	l.write("f", "x")
	img := l.build("FROM busybox\nUSER user\nWORKDIR /home/w\nRUN touch mine || id -u >/tmp/id\nCOPY --chmod=4755 f /suid\n")
	if e := img.entry("suid"); e.Mode != 0o4755 || e.UID != 0 {
		t.Errorf("suid: mode %o owner %d", e.Mode, e.UID)
	}
	if e := img.entry("home/w"); e.Type != layer.Dir {
		t.Errorf("WORKDIR: %+v", e)
	}
}

func TestFailures(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct{ what, dockerfile, want string }{
		{"a command that fails", "FROM busybox\nRUN exit 3\n", `process "/bin/sh -c exit 3" did not complete successfully: exit code: 3`},
		{"a missing file", "FROM busybox\nCOPY nosuch /\n", `"/nosuch": not found`},
		{"an unknown instruction", "FROM busybox\nFOO bar\n", "dockerfile parse error on line 2: unknown instruction: FOO"},
		{"no stage", "# nothing\nARG A\n", "no stages to build"},
		{"an unknown image", "FROM nosuch\n", "nosuch"},
		{"a missing stage", "FROM busybox\nCOPY --from=zz /a /b\n", "zz"},
		{"a user that is not there", "FROM busybox\nUSER nobody\nRUN true\n", "unable to find user nobody"},
		{"a required ssh agent that is not there", "FROM busybox\nRUN --mount=type=ssh,required true\n", "no SSH key"},
	} {
		_, err := l.try(c.dockerfile)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", c.what, err, c.want)
		}
	}
	_, err := l.try("FROM busybox\nRUN exit 3\n")
	src := errdefs.Sources(err)
	if len(src) == 0 || src[0].Ranges[0].Start.Line != 2 {
		t.Errorf("the failed step does not say its line: %v", src)
	}
	var exit *build.ExitError
	if !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("no ExitError in %v", err)
	}
	l.build("FROM busybox\nRUN true\n") // the store still works
}

func TestIndependentStagesRunAtTheSameTime(t *testing.T) {
	l := newLab(t)
	// Each stage waits for the other's file in a cache mount that they share:
	// one after the other they could never finish.
	const meet = `RUN --mount=type=cache,id=meet,target=/m sh -c 'touch /m/ME; for i in $(seq 500); do test -e /m/OTHER && exit 0; sleep 0.02; done; exit 1'`
	a := strings.NewReplacer("ME", "a", "OTHER", "b", "$(seq 500)", strings.Repeat("x ", 500)).Replace(meet)
	b := strings.NewReplacer("ME", "b", "OTHER", "a", "$(seq 500)", strings.Repeat("x ", 500)).Replace(meet)
	l.build("FROM busybox AS a\n" + a + "\nFROM busybox AS b\n" + b + "\nFROM scratch\nCOPY --from=a /etc/passwd /a\nCOPY --from=b /etc/passwd /b\n")
}
