package frontend_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
)

var (
	updateDocker = flag.Bool("update-docker", false, "record the corpus' goldens anew: from the docker engine at DOCKER_HOST, from ourselves where a case says so")
	updateOurs   = flag.Bool("update-ours", false, "record anew only the goldens that are strake's own")
	printOurs    = flag.Bool("print", false, "print what strake makes of each case instead of a comparison")
)

// corpusCase is one file of testdata/build; README.md there tells its form.
type corpusCase struct {
	name, path string
	archive    *txtar.Archive
	args       []string // frontend options "k=v"
	docker     []string // the same as flags of docker build
	ours       []string // parts of the golden that strake makes: "all", "history", …
	contexts   []string // further contexts, NAME=DIR
	secrets    map[string][]byte
	fail       bool
	golden     string
	corpusMore
}

func loadCorpus(t *testing.T) []*corpusCase {
	paths, err := filepath.Glob("../../../testdata/build/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	var cs []*corpusCase
	for _, p := range paths {
		a, err := txtar.ParseFile(p)
		if err != nil {
			t.Fatal(err)
		}
		c := &corpusCase{name: strings.TrimSuffix(filepath.Base(p), ".txtar"), path: p, archive: a, secrets: map[string][]byte{}}
		for line := range strings.Lines(string(a.Comment)) {
			c.directive(t, strings.TrimSpace(line))
		}
		a.Files = slices.DeleteFunc(a.Files, func(f txtar.File) bool {
			if f.Name == "golden" {
				c.golden = string(f.Data)
			}
			return f.Name == "golden"
		})
		cs = append(cs, c)
	}
	return cs
}

func (c *corpusCase) directive(t *testing.T, line string) {
	key, value, _ := strings.Cut(line, ":")
	value = strings.TrimSpace(value)
	switch key {
	case "build-arg", "label":
		c.args = append(c.args, key+":"+value)
		c.docker = append(c.docker, "--"+key, value)
	case "target":
		c.args = append(c.args, "target="+value)
		c.docker = append(c.docker, "--target", value)
	case "file":
		c.args = append(c.args, "filename="+value)
	case "no-network":
		c.args = append(c.args, "force-network-mode=none")
		c.docker = append(c.docker, "--network", "none")
	case "add-host":
		name, ip, _ := strings.Cut(value, ":")
		c.args = append(c.args, "add-hosts="+name+"="+ip)
		c.docker = append(c.docker, "--add-host", value)
	case "context":
		c.contexts = append(c.contexts, value)
	case "secret":
		id, text, _ := strings.Cut(value, "=")
		c.secrets[id] = []byte(text)
	case "ours":
		what, reason, ok := strings.Cut(value, " - ")
		if !ok || reason == "" {
			t.Fatalf("%s: %q gives no reason", c.name, line)
		}
		c.ours = strings.Fields(what)
	case "fails":
		c.fail = true
	default:
		if line != "" && !strings.HasPrefix(line, "#") && !c.more(key, value) {
			t.Fatalf("%s: unknown line %q", c.name, line)
		}
	}
}

// file is the Dockerfile's name.
func (c *corpusCase) file() string {
	for _, a := range c.args {
		if f, ok := strings.CutPrefix(a, "filename="); ok {
			return f
		}
	}
	return "Dockerfile"
}

// lay writes the case's files into dir and runs its make section there.
func (c *corpusCase) lay(t *testing.T, dir, path string) {
	t.Helper()
	for _, f := range c.archive.Files {
		if f.Name == "make" {
			continue
		}
		p := filepath.Join(dir, f.Name)
		data := f.Data
		if name, ok := strings.CutSuffix(f.Name, ".spec"); ok {
			p, data = filepath.Join(dir, name), specTar(t, string(f.Data))
		}
		if name, ok := strings.CutSuffix(f.Name, ".b64"); ok {
			p, data = filepath.Join(dir, name), unbase64(t, f.Data)
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range c.archive.Files {
		if f.Name != "make" {
			continue
		}
		cmd := exec.Command("busybox", "sh", "-euc", string(f.Data))
		cmd.Dir, cmd.Env = dir, []string{"PATH=" + path}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make: %v\n%s", err, out)
		}
	}
}

// TestCorpus builds every case of testdata/build and holds the image against
// its golden, most of which a real docker engine has made.
func TestCorpus(t *testing.T) {
	l := newLab(t)
	syscall.Umask(0o022)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox-static")
	}
	bin := t.TempDir()
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for a := range strings.FieldsSeq(string(applets)) {
		if err := os.Symlink(busybox, filepath.Join(bin, a)); err != nil {
			t.Fatal(err)
		}
	}
	layers := corpusBase(t, busybox)
	l.addImage("base", layers, nil)
	lower := flatten(t, [][]byte{layers})
	for p, f := range lower {
		if f.path == "bin/busybox" || p == "bin/busybox" {
			corpusBusybox = f.sha
		}
	}
	daemon := newBuildKit(t, l)
	recorder := (*dockerRecorder)(nil)
	if *updateDocker {
		recorder = newDockerRecorder(t, layers)
	}
	slots := make(chan struct{}, 2)
	for _, c := range loadCorpus(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			dir := filepath.Join(t.TempDir(), "corpus-"+c.name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			c.lay(t, dir, bin)
			c.serve(t, dir)
			got := c.plain(c.strake(t, l, dir, lower))
			if daemon != nil {
				daemon.hold(t, c, dir, lower, got)
			}
			if recorder != nil && !slices.Contains(c.ours, "all") && c.by == "" {
				c.record(t, merge(modernHistory(recorder.run(t, c, dir, lower), got), got, c.ours))
			} else if (*updateDocker || *updateOurs) && len(c.ours) > 0 {
				c.record(t, merge(c.golden, got, c.ours))
			}
			if *printOurs {
				t.Logf("\n%s", got)
			}
			if failed := got == failedGolden; failed != c.fail {
				t.Errorf("the build failed: %v; the case says %v", failed, c.fail)
			}
			if got != c.golden {
				t.Errorf("image differs from the golden (- golden, + strake):\n%s", lineDiff(c.golden, got))
			}
		})
	}
}

const failedGolden = "failed\n"

// strake builds the case in this process.
func (c *corpusCase) strake(t *testing.T, shared *lab, dir string, lower map[string]*file) string {
	l := &lab{TB: t, store: shared.store, dir: dir}
	opts := map[string]string{"no-cache": "", "filename": "Dockerfile"}
	for _, kv := range c.args {
		k, v, _ := strings.Cut(kv, "=")
		opts[k] = v
	}
	l.opt.Locals = map[string]string{}
	for _, nc := range c.contexts {
		name, sub, _ := strings.Cut(nc, "=")
		l.opt.Locals[name] = filepath.Join(dir, sub)
		opts["context:"+name] = "local:" + name
	}
	l.opt.Secret = func(_ context.Context, id string) ([]byte, error) {
		if s, ok := c.secrets[id]; ok {
			return s, nil
		}
		return nil, oci.ErrNotFound
	}
	out, err := l.run(opts)
	if err != nil {
		t.Logf("build: %v\n%s", err, &l.logs)
		if strings.Contains(err.Error(), "panic") || errors.Is(err, oci.ErrUnsupported) && !c.fail {
			t.Error(err)
		}
		return failedGolden
	}
	return golden(t, c, l.config(out), l.layers(out), lower)
}

func (l *lab) manifest(out *build.Assembly) oci.Manifest {
	_, body, err := content.Manifest(context.Background(), l.store, out.Target, content.Host())
	if err != nil {
		l.Fatal(err)
	}
	var m oci.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		l.Fatal(err)
	}
	return m
}

func (l *lab) config(out *build.Assembly) []byte {
	b, err := content.ReadAll(context.Background(), l.store, l.manifest(out).Config)
	if err != nil {
		l.Fatal(err)
	}
	return b
}

// layers returns the image's layers as plain tars.
func (l *lab) layers(out *build.Assembly) [][]byte {
	var all [][]byte
	for _, d := range l.manifest(out).Layers {
		r, err := l.store.Open(context.Background(), d)
		if err != nil {
			l.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			l.Fatal(err)
		}
		all = append(all, plainTar(l.TB, b))
	}
	return all
}

// record writes the case's golden.
func (c *corpusCase) record(t *testing.T, text string) {
	a, err := txtar.ParseFile(c.path)
	if err != nil {
		t.Fatal(err)
	}
	a.Files = slices.DeleteFunc(a.Files, func(f txtar.File) bool { return f.Name == "golden" })
	a.Files = append(a.Files, txtar.File{Name: "golden", Data: []byte(text)})
	if err := os.WriteFile(c.path, txtar.Format(a), 0o644); err != nil {
		t.Fatal(err)
	}
	c.golden = text
}

// Docker 20.10's frontend leaves these out of the history that newer ones write.
var (
	copyFlags = regexp.MustCompile(` --(from|chown|chmod|link|exclude|parents|checksum|keep-git-dir)(=\S+)?`)
	argValues = regexp.MustCompile(`^(history \(empty\) "ARG [^=]*?)(=.*)?"`)
)

// modernHistory takes our lines of the history where they differ from
// docker's only in what its old frontend does not write.
func modernHistory(theirs, ours string) string {
	lines := func(s string) (all, history []string) {
		all = strings.SplitAfter(s, "\n")
		for _, l := range all {
			if strings.HasPrefix(l, "history") {
				history = append(history, l)
			}
		}
		return all, history
	}
	plain := func(s string) string {
		return strings.TrimRight(argValues.ReplaceAllString(copyFlags.ReplaceAllString(s, ""), "$1"), "\"\n")
	}
	a, ha := lines(theirs)
	_, hb := lines(ours)
	if len(ha) != len(hb) {
		return theirs
	}
	n := 0
	for i, l := range a {
		if strings.HasPrefix(l, "history") {
			if plain(l) == plain(hb[n]) {
				a[i] = hb[n]
			}
			n++
		}
	}
	return strings.Join(a, "")
}

// merge takes from ours the lines of the kinds in parts, the rest from theirs.
func merge(theirs, ours string, parts []string) string {
	if slices.Contains(parts, "all") {
		return ours
	}
	var b strings.Builder
	kind := func(line string) string {
		switch head, _, _ := strings.Cut(line, " "); head {
		case "history", "failed", "author":
			return head
		default:
			if strings.HasPrefix(head, "config.") {
				return head
			}
			return "files"
		}
	}
	for _, src := range []struct {
		text string
		ours bool
	}{{theirs, false}, {ours, true}} {
		for line := range strings.Lines(src.text) {
			if slices.Contains(parts, kind(line)) == src.ours {
				b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
			}
		}
	}
	lines := strings.SplitAfter(b.String(), "\n")
	lines = lines[:len(lines)-1]
	rank := map[string]int{"history": 1, "files": 2}
	slices.SortStableFunc(lines, func(x, y string) int { return rank[kind(x)] - rank[kind(y)] })
	return strings.Join(lines, "")
}

func lineDiff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	var b strings.Builder
	for _, s := range w {
		if !slices.Contains(g, s) {
			fmt.Fprintf(&b, "- %s\n", s)
		}
	}
	for _, s := range g {
		if !slices.Contains(w, s) {
			fmt.Fprintf(&b, "+ %s\n", s)
		}
	}
	if b.Len() == 0 {
		return "the same lines in another order or number\n" + got
	}
	return b.String()
}

// dockerRecorder builds with a docker engine's BuildKit.
type dockerRecorder struct{ docker string }

func newDockerRecorder(t *testing.T, base []byte) *dockerRecorder {
	r := &dockerRecorder{docker: os.Getenv("DOCKER")}
	if r.docker == "" {
		r.docker = "docker"
	}
	cmd := exec.Command(r.docker, "import", "-c", "ENV PATH=/bin", "-", "base:latest")
	cmd.Stdin = bytes.NewReader(base)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v\n%s", err, out)
	}
	return r
}

func (r *dockerRecorder) run(t *testing.T, c *corpusCase, dir string, lower map[string]*file) string {
	tag := "strake-corpus:" + c.name
	args := append([]string{"build", "--no-cache", "--progress=plain", "-t", tag, "-f", filepath.Join(dir, c.file())}, c.docker...)
	for id, text := range c.secrets {
		p := filepath.Join(t.TempDir(), id)
		if err := os.WriteFile(p, text, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--secret", "id="+id+",src="+p)
	}
	cmd := exec.Command(r.docker, append(args, dir)...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Logf("docker: %v\n%s", err, out)
		return failedGolden
	}
	defer exec.Command(r.docker, "rmi", "-f", tag).Run()
	b, err := exec.Command(r.docker, "save", tag).Output()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeSymlink { // a layer that is there twice
			files[h.Name] = []byte("link " + filepath.Join(filepath.Dir(h.Name), h.Linkname))
			continue
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
	var m []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &m); err != nil {
		t.Fatal(err)
	}
	var layers [][]byte
	for _, n := range m[0].Layers {
		body := files[n]
		if to, ok := strings.CutPrefix(string(body[:min(len(body), 300)]), "link "); ok {
			body = files[to]
		}
		layers = append(layers, body)
	}
	return golden(t, c, files[m[0].Config], layers, lower)
}
