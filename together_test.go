package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// Two builds, a pull and an rmi work on one store at the same moment, as
// processes of their own, several times over: each does what it does alone.
func TestTogether(t *testing.T) {
	reg, _ := serve(t)
	remote := reg.addr + "/team/app:1"
	maker := newSite(t)
	maker.busybox()
	maker.ok("build", "-q", "-t", remote, maker.context("app", 9))
	maker.ok("push", "-q", remote)
	pulled := maker.id(remote)

	// The same steps in the same order give the same image where nothing but
	// them decides: COPY, and RUN that sets its files' times, at a fixed epoch.
	dockerfile := func(s *site, name string, seed uint64) []string {
		for _, file := range []string{s.write(name+"/random", mebibytes(seed, 6)), s.write(name+"/shared", mebibytes(5, 2))} {
			if err := os.Chtimes(file, time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
				t.Fatal(err)
			}
		}
		s.write(name+"/Dockerfile", fmt.Appendf(nil, `FROM base:1 AS a
COPY shared /shared
RUN sha256sum /shared > /sum && touch -d @1000000000 /sum /
FROM base:1 AS b
COPY random /random
RUN --mount=type=cache,target=/cache date >> /cache/%s; head -c 1000 /random > /head && touch -d @1000000000 /head /
FROM a
COPY --from=b /head /random /
RUN sha256sum -c /sum && touch -d @1000000000 /head
`, name))
		return []string{"build", "-q", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", "-t", name + ":1", s.path(name)}
	}
	alone, together := siteAt(t, t.TempDir()), siteAt(t, t.TempDir())
	base := maker.path("base.tar")
	maker.ok("save", "-o", base, "base:1")
	alone.ok("load", "-i", base)
	together.ok("load", "-i", base)
	for i := range 5 {
		one, two := fmt.Sprintf("one%d", i), fmt.Sprintf("two%d", i)
		want := map[string]string{remote: pulled, "base:1": maker.id("base:1")}
		for _, s := range []*site{alone, together} {
			for _, name := range []string{one, two} {
				args := dockerfile(s, name, uint64(i))
				if s == alone {
					s.ok(args...)
					want[name+":1"] = s.id(name + ":1")
				}
			}
		}
		// What goes shares layers with what comes: the last round's image, whose
		// layers the builds' cache holds, and a name of the image being pulled.
		old := fmt.Sprintf("one%d:1", i-1)
		if i == 0 {
			old = "old:1"
			together.ok("tag", "base:1", old)
		}
		var wg sync.WaitGroup
		for _, args := range [][]string{
			{"build", "-q", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", "-t", one + ":1", together.path(one)},
			{"build", "-q", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", "-t", two + ":1", together.path(two)},
			{"pull", remote},
			{"rmi", old},
		} {
			wg.Go(func() {
				if r := together.run(args...); r.code != 0 || r.err != "" {
					t.Errorf("round %d: %v: exit code %d\n%s%s", i, args, r.code, r.out, r.err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		for name, id := range want {
			if got := together.id(name); got != id {
				t.Errorf("round %d: %s is %s, alone it was %s", i, name, got, id)
			}
		}
		if r := together.run("inspect", old); r.code == 0 {
			t.Errorf("round %d: %s was removed and is there", i, old)
		}
		for _, name := range []string{one, two} {
			together.ok("run", "--rm", name+":1", "sh", "-c", "sha256sum -c /sum && cmp -n 1000 /head /random")
		}
		together.appRuns(remote)
		together.sound(i == 4)
		if i < 4 { // the next pull fetches it all again, beside a dead name of it
			together.ok("rmi", remote)
		}
	}
	together.alone()
	together.swept()
	together.sound(true)
	for name := range strings.FieldsSeq(together.ok("images", "--format", "{{.Repository}}:{{.Tag}}")) {
		together.ok("run", "--rm", name, "true")
	}
}

// Eight builds of one Dockerfile at the same moment: the cache is shared, the
// result is one.
func TestTogetherSameBuild(t *testing.T) {
	s := newSite(t)
	s.busybox()
	dir := s.context("app", 4)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if r := s.run("build", "-q", "-t", fmt.Sprintf("app:%d", i), dir); r.code != 0 {
				t.Errorf("build %d: exit code %d\n%s", i, r.code, r.err)
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		s.appRuns(fmt.Sprintf("app:%d", i))
	}
	s.sound(true)
	s.alone()
	s.swept()
}
