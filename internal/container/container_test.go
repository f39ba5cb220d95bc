package container

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/sandbox"
)

// The entrypoint and its arguments are put together as docker does it.
func TestCommand(t *testing.T) {
	list := func(s string) []string { return strings.Fields(s) }
	for _, c := range []struct{ why, entrypoint, cmd, own, args, want string }{
		{"the image's", "e", "c", "", "", "e c"},
		{"arguments replace the Cmd", "e", "c", "", "a b", "e a b"},
		{"without an entrypoint they are the command", "", "c", "", "a b", "a b"},
		{"an entrypoint drops the Cmd", "e", "c", "x", "", "x"},
		{"and takes arguments", "e", "c", "x", "a", "x a"},
		{"an empty one is none", "e", "c", "-", "a", "a"},
		{"and leaves nothing to run", "e", "c", "-", "", ""},
	} {
		o := &Options{Config: &oci.Image{}, Args: list(c.args), SetEntrypoint: c.own != ""}
		o.Config.Config.Entrypoint, o.Config.Config.Cmd = list(c.entrypoint), list(c.cmd)
		if o.Entrypoint = list(c.own); c.own == "-" {
			o.Entrypoint = []string{""}
		}
		if got := strings.Join(command(o), " "); got != c.want {
			t.Errorf("%s: %q, not %q", c.why, got, c.want)
		}
	}
}

// The caller's variables come after the image's, replace them where they are,
// and KEY alone removes; a key that begins like another is another.
func TestEnvironment(t *testing.T) {
	got := environment(&sandbox.Spec{Hostname: "h", Terminal: true}, []string{"A=1", "B=2", "PATH=/bin", "AB=3"}, []string{"B=9", "A", "C=x=y", "NONE"})
	want := []string{"PATH=/bin", "HOSTNAME=h", "TERM=xterm", "B=9", "AB=3", "C=x=y"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, not %q", got, want)
	}
}

// A container is found by name, ID and prefix, in docker's order; what is
// ambiguous or not there says so in docker's words.
func TestFind(t *testing.T) {
	ctx, set := t.Context(), testSet(t)
	for i, one := range []*Container{
		{ID: strings.Repeat("a", 64), Name: "one"},
		{ID: "aa" + strings.Repeat("b", 62), Name: "two"},
		{ID: "bb" + strings.Repeat("c", 62), Name: "aaa"}, // a name that is a prefix of an ID
	} {
		one.State, one.Created = Exited, time.Unix(int64(i), 0)
		if err := set.reserve(ctx, one); err != nil {
			t.Fatal(err)
		}
	}
	for in, want := range map[string]string{"one": "one", "/two": "two", strings.Repeat("a", 64): "one", "aab": "two", "b": "aaa", "aaa": "aaa"} {
		if got, err := set.Find(ctx, in); err != nil || got.Name != want {
			t.Errorf("%q is %+v, %v, not %s", in, got, err, want)
		}
	}
	for in, want := range map[string]struct {
		kind error
		text string
	}{
		"aa":  {oci.ErrInvalid, "multiple IDs found with provided prefix: aa"},
		"zz":  {oci.ErrNotFound, "No such container: zz"},
		"":    {oci.ErrNotFound, "No such container: "},
		"on":  {oci.ErrNotFound, "No such container: on"},
		"../": {oci.ErrNotFound, "No such container: ../"},
	} {
		if _, err := set.Find(ctx, in); !errors.Is(err, want.kind) || err.Error() != want.text {
			t.Errorf("%q: %v, not %s", in, err, want.text)
		}
	}
	list, err := set.List(ctx)
	if err != nil || len(list) != 3 || list[0].Name != "aaa" || list[2].Name != "one" {
		t.Errorf("the newest is not first: %v, %v", list, err)
	}
}

// A name is one container's, and none is a path.
func TestNames(t *testing.T) {
	ctx, set := t.Context(), testSet(t)
	one := func(name string) *Container { return &Container{ID: newID(), Name: name, State: Exited} }
	if err := set.reserve(ctx, one("taken")); err != nil {
		t.Fatal(err)
	}
	if err := set.reserve(ctx, one("taken")); !errors.Is(err, oci.ErrConflict) || !strings.HasPrefix(err.Error(), `Conflict. The container name "/taken" is already in use`) {
		t.Errorf("twice: %v", err)
	}
	for _, name := range []string{"x", "../x", "a/b", "-a", "a b", "a\n"} {
		if err := set.reserve(ctx, one(name)); !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	free := one("")
	if err := set.reserve(ctx, free); err != nil || !validName().MatchString(free.Name) {
		t.Errorf("a container without a name is called %q, %v", free.Name, err)
	}
}

// One whose strake was killed reads as exited with 137; with --rm it is gone,
// its directory with it. While its lock is held it runs.
func TestKilledStrake(t *testing.T) {
	ctx, set := t.Context(), testSet(t)
	add := func(name string, remove bool) *Container {
		one := &Container{ID: newID(), Name: name, State: Running, Pid: 1 << 30, Remove: remove}
		if err := os.MkdirAll(set.dir(one.ID), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := set.reserve(ctx, one); err != nil {
			t.Fatal(err)
		}
		return one
	}
	kept, gone, runs := add("kept", false), add("gone", true), add("runs", true)
	lock, err := os.Create(set.dir(runs.ID) + "/lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if got, err := set.Find(ctx, kept.Name); err != nil || got.State != Exited || got.ExitCode != 137 || got.Pid != 0 {
		t.Errorf("killed: %+v, %v", got, err)
	}
	if _, err := set.Find(ctx, gone.Name); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("killed, with --rm: %v", err)
	}
	if _, err := os.Stat(set.dir(gone.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory: %v", err)
	}
	if got, err := set.Find(ctx, runs.Name); err != nil || got.State != Running {
		t.Errorf("running: %+v, %v", got, err)
	}
	if err := set.Delete(ctx, runs.Name, false); !errors.Is(err, oci.ErrConflict) {
		t.Errorf("deleted while it runs: %v", err)
	}
}

func testSet(t *testing.T) *Set {
	t.Helper()
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return In(s)
}

// Whether a VOLUME is in the image is asked of the image: a link of its that
// leads out leads to its own root, and a whited out directory is not there.
func TestVolumes(t *testing.T) {
	ctx, set := t.Context(), testSet(t)
	host := t.TempDir()
	ctx, release, err := set.store.Lease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	one := &Container{ID: newID()}
	for _, entries := range [][]layer.Entry{
		{{Path: "here", Type: layer.Dir, Mode: 0o755}, {Path: "out", Type: layer.Symlink, Link: host, Mode: 0o777},
			{Path: "to", Type: layer.Symlink, Link: "/here", Mode: 0o777}, {Path: "gone", Type: layer.Dir, Mode: 0o755},
			{Path: "loop", Type: layer.Symlink, Link: "loop", Mode: 0o777}},
		{{Path: "gone", Type: layer.Whiteout}},
	} {
		w, err := set.store.NewLayer(ctx)
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(entries, func(a, b layer.Entry) int { return strings.Compare(a.Path, b.Path) })
		for _, e := range entries {
			if err := w.Write(e, nil); err != nil {
				t.Fatal(err)
			}
		}
		toc, err := w.Commit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		one.Layers = append(one.Layers, toc.DiffID)
	}
	declared := map[string]struct{}{}
	for _, v := range []string{"/here", "/to", "/out", "/gone", "/loop", "/new", "../../up", "/", "/mine/"} {
		declared[v] = struct{}{}
	}
	spec := &sandbox.Spec{Mounts: []sandbox.Mount{{Type: "tmpfs", Destination: "/mine"}}}
	if err := set.volumes(ctx, one, spec, declared); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range spec.Mounts[1:] {
		got = append(got, m.Destination)
		if fi, err := os.Stat(m.Source); err != nil || !fi.IsDir() || !strings.HasPrefix(m.Source, set.dir(one.ID)) {
			t.Errorf("%s is %s: %v", m.Destination, m.Source, err)
		}
	}
	if want := []string{"/up", "/gone", "/new", "/out"}; !slices.Equal(got, want) {
		t.Errorf("volumes at %q, not %q", got, want)
	}
}
