package main

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

var (
	killSeed   = flag.Uint64("kill.seed", 1, "where and when TestKill kills")
	killRounds = flag.Int("kill.rounds", 15, "how often TestKill kills each command")
)

// Strake is killed at random moments of pull, build, load and push, fifteen
// times each, in a store in which the debris of all rounds comes together.
// After each, everything from before is there and works, nothing runs on or is
// mounted, and the same command again completes.
func TestKill(t *testing.T) {
	for i, test := range []struct {
		name string
		make func(k *kills)
	}{
		{"pull", killPull}, {"build", killBuild}, {"load", killLoad}, {"push", killPush}, {"push to docker-registry", killPushDebian},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			k := &kills{site: newSite(t), r: rand.New(rand.NewPCG(*killSeed, uint64(i)))}
			k.earlier()
			test.make(k)
		})
	}
}

// kills is one store that lives through many.
type kills struct {
	*site
	r     *rand.Rand
	ids   string            // of the earlier images
	saved [sha256.Size]byte // of their archive
}

// earlier makes the images that must stay.
func (k *kills) earlier() {
	k.t.Helper()
	k.busybox()
	k.write("keep/file", mebibytes(77, 3))
	k.write("keep/Dockerfile", []byte("FROM base:1\nCOPY file /\nRUN sha256sum file > sum\n"))
	k.ok("build", "-q", "-t", "keep:1", "keep")
	k.ids = k.id("base:1", "keep:1")
	archive := []byte(k.ok("save", "base:1", "keep:1"))
	k.saved = sha256.Sum256(archive)
	other := siteAt(k.t, k.t.TempDir())
	other.ok("load", "-i", k.write("keep.tar", archive))
	other.sound(true)
	if got := other.id("base:1", "keep:1"); got != k.ids {
		k.t.Fatalf("saved and loaded, %s are %s", k.ids, got)
	}
}

// intact tells whether the earlier images inspect, save and run.
func (k *kills) intact(deep bool) {
	k.t.Helper()
	if got := k.id("base:1", "keep:1"); got != k.ids {
		k.t.Errorf("the earlier images were %s and are %s", k.ids, got)
	}
	if deep {
		k.ok("run", "--rm", "base:1", "true")
	}
	k.ok("run", "--rm", "keep:1", "sha256sum", "-c", "sum")
	if sha256.Sum256([]byte(k.ok("save", "base:1", "keep:1"))) != k.saved {
		k.t.Error("the earlier images save as another archive than before")
	}
	k.sound(deep)
}

// round is one command, made anew for each kill: what to run, and what must
// hold once it has completed.
type round struct {
	args  []string
	after func()
}

// kill runs next's commands, kills each at a random moment of the time that the
// first took, and lets it complete. A command that was faster than its kill
// does not count.
func (k *kills) kill(n int, next func(round int) round) {
	k.t.Helper()
	first := next(0)
	start := time.Now()
	k.ok(first.args...)
	whole := time.Since(start)
	first.after()
	killed, early := 0, 0
	for i := 1; killed < n && i < 3*n && !k.t.Failed(); i++ {
		c := next(i)
		after := time.Duration(k.r.Float64() * float64(whole))
		r := k.killed(time.After(after), c.args...)
		if r.code == 0 {
			early++
			whole = whole * 9 / 10
		} else if r.code != -1 {
			k.t.Fatalf("round %d: %v ended with exit code %d before its kill\n%s%s", i, c.args, r.code, r.out, r.err)
		} else {
			killed++
		}
		k.alone()
		k.intact(i%5 == 0)
		k.ok(c.args...)
		k.tidy() // without anybody having asked for it
		c.after()
		if k.t.Failed() {
			k.t.Logf("round %d of -kill.seed=%d: %v was killed after %v", i, *killSeed, c.args, after)
		}
	}
	k.alone()
	k.swept()
	k.intact(true)
	k.t.Logf("-kill.seed=%d: %d killed within %v, %d were faster", *killSeed, killed, whole, early)
	if killed < n {
		k.t.Errorf("killed only %d of %d", killed, n)
	}
}

// app builds the image app:1 elsewhere, so that no cache keeps its layers, and
// saves it as app.tar.
func (k *kills) app() (id string) {
	k.t.Helper()
	other := siteAt(k.t, k.t.TempDir())
	other.busybox()
	other.ok("build", "-q", "-t", "app:1", other.context("app", 1))
	other.ok("save", "-o", k.path("app.tar"), "app:1")
	return other.id("app:1")
}

func killPull(k *kills) {
	reg, _ := serve(k.t)
	id := k.app()
	name := reg.addr + "/team/app:1"
	other := siteAt(k.t, k.t.TempDir())
	other.ok("load", "-i", k.path("app.tar"))
	other.ok("tag", "app:1", name)
	other.ok("push", "-q", name)
	k.kill(*killRounds, func(i int) round {
		return round{[]string{"pull", name}, func() {
			if got := k.id(name); got != id {
				k.t.Errorf("pulled %s, want %s", got, id)
			}
			k.appRuns(name)
			k.ok("rmi", name)
		}}
	})
}

func killBuild(k *kills) {
	dir := k.context("app", 1)
	k.kill(*killRounds, func(i int) round {
		k.write("app/random", mebibytes(uint64(i), 10)) // no step is in the cache
		return round{[]string{"build", "-q", "-t", "app:1", dir}, func() {
			k.appRuns("app:1")
			k.ok("rmi", "app:1")
		}}
	})
}

func killLoad(k *kills) {
	id := k.app()
	k.kill(*killRounds, func(i int) round {
		return round{[]string{"load", "-i", "app.tar"}, func() {
			if got := k.id("app:1"); got != id {
				k.t.Errorf("loaded %s, want %s", got, id)
			}
			k.appRuns("app:1")
			k.ok("rmi", "app:1")
		}}
	})
}

func killPush(k *kills) {
	k.pushes(func() (*server, *site) { return serve(k.t) }, *killRounds)
}

func killPushDebian(k *kills) {
	k.pushes(func() (*server, *site) { return serveDebian(k.t), nil }, (*killRounds+2)/3)
}

// pushes kills pushes, each to an empty registry, of an image whose
// layers were never packed.
func (k *kills) pushes(start func() (*server, *site), n int) {
	id := k.app()
	k.kill(n, func(i int) round {
		reg, behind := start()
		k.ok("load", "-i", "app.tar")
		name := fmt.Sprintf("%s/team/app:%d", reg.addr, i)
		k.ok("tag", "app:1", name)
		return round{[]string{"push", name}, func() {
			k.pushed(reg, behind, name, id)
			k.ok("rmi", "app:1", name)
			reg.kill()
		}}
	})
}

// pushed tells whether the registry has the image, whole.
func (k *kills) pushed(reg *server, behind *site, name, id string) {
	k.t.Helper()
	other := siteAt(k.t, k.t.TempDir())
	other.ok("pull", "-q", name)
	if got := other.id(name); got != id {
		k.t.Errorf("the registry has %s, want %s", got, id)
	}
	other.appRuns(name)
	if behind != nil {
		behind.sound(true)
	}
	os.RemoveAll(other.dir)
}

// The registry is killed at random moments of a push. The push says so in one
// line; with the registry back, the same push completes and the registry's
// store is sound.
func TestKillRegistry(t *testing.T) {
	for i, test := range []struct {
		name  string
		start func(t *testing.T) (*server, *site)
	}{
		{"strake", serve},
		{"docker-registry", func(t *testing.T) (*server, *site) { return serveDebian(t), nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			k := &kills{site: newSite(t), r: rand.New(rand.NewPCG(*killSeed, uint64(100+i)))}
			k.busybox()
			id := k.app()
			var whole time.Duration
			for i := range 6 {
				reg, behind := test.start(t)
				k.ok("load", "-i", "app.tar")
				name := fmt.Sprintf("%s/team/app:%d", reg.addr, i)
				k.ok("tag", "app:1", name)
				if i == 0 {
					begin := time.Now()
					k.ok("push", name)
					whole = time.Since(begin)
				} else {
					var out, errs bytes.Buffer
					push := k.cmd("push", name)
					push.Stdout, push.Stderr = &out, &errs
					if err := push.Start(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Duration(k.r.Float64() * float64(whole)))
					reg.kill()
					r := k.finish(push, &out, &errs)
					t.Logf("round %d: exit code %d %s", i, r.code, r.err)
					if r.code != 0 && (r.code != 1 || strings.Count(r.err, "\n") != 1) {
						t.Errorf("round %d: the push ended with exit code %d and\n%s", i, r.code, r.err)
					}
					reg.start()
					k.ok("push", name)
				}
				k.pushed(reg, behind, name, id)
				k.ok("rmi", "app:1", name)
				reg.kill()
			}
			k.sound(true)
		})
	}
}
