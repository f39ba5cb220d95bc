package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// foreignShell is /bin/sh of the foreign bases: it runs itself again, as shells
// do, and says and writes what machine it is on.
const foreignShell = `package main

import ("fmt"; "os"; "os/exec"; "runtime"; "syscall")

func main() {
	if len(os.Args) > 1 && os.Args[1] == "-c" {
		cmd := exec.Command("/bin/sh", os.Args[2])
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil { fmt.Println(err); os.Exit(3) }
		return
	}
	var u syscall.Utsname
	syscall.Uname(&u)
	var m []byte
	for _, c := range u.Machine { if c != 0 { m = append(m, byte(c)) } }
	text := runtime.GOARCH + " on " + string(m) + ", " + os.Getenv("TARGETPLATFORM") + ": " + os.Args[1] + "\n"
	fmt.Print(text)
	if err := os.WriteFile("/ran", []byte(text), 0o644); err != nil { fmt.Println(err); os.Exit(4) }
}
`

// foreignBase imports base:GOARCH, whose shell is of that platform.
func (s *site) foreignBase(platform string, env ...string) {
	s.t.Helper()
	name := "base-" + strings.ReplaceAll(strings.TrimPrefix(platform, "linux/"), "/", "-")
	src := s.write(name+"/sh.go", []byte(foreignShell))
	bin := s.path(name + "/sh")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, src)
	build.Env = append(os.Environ(), append([]string{"CGO_ENABLED=0", "GOOS=linux", "GO111MODULE=off", "GOFLAGS="}, env...)...)
	if out, err := build.CombinedOutput(); err != nil {
		s.t.Fatalf("go build for %s: %v\n%s", platform, err, out)
	}
	body, err := os.ReadFile(bin)
	if err != nil {
		s.t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err = errors.Join(w.WriteHeader(&tar.Header{Name: "bin/", Mode: 0o755, Typeflag: tar.TypeDir}),
		w.WriteHeader(&tar.Header{Name: "bin/sh", Mode: 0o755, Typeflag: tar.TypeReg, Size: int64(len(body))}))
	if err == nil {
		_, err = w.Write(body)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		s.t.Fatal(err)
	}
	s.ok("import", "--platform", platform, s.write(name+".tar", b.Bytes()), name)
}

// emulate registers an emulator for a machine, by the head of its programs,
// and takes that back when the test ends. One that is registered already
// serves as well, and is left alone. The flags are Debian's: F has the kernel open the emulator now: a
// container has no file of that name.
func emulate(t *testing.T, arch, magic, mask string) {
	t.Helper()
	qemu, err := exec.LookPath("qemu-" + arch + "-static")
	if err != nil {
		t.Skip("needs qemu-user-static: ", err)
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "binfmt_misc", 0, ""); err != nil {
		t.Skip("needs a kernel with binfmt_misc: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		if pid, ours := strings.CutPrefix(e.Name(), "strake-test-"+arch+"-"); ours {
			if n, err := strconv.Atoi(pid); err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
				_ = os.WriteFile(file, []byte("-1"), 0) // of a test that was killed
			}
			continue
		}
		said, err := os.ReadFile(file)
		if err == nil && strings.HasPrefix(string(said), "enabled\n") && bytes.Contains(said, []byte("magic "+magic+"\n")) &&
			strings.Contains(strings.Split(string(said), "flags:")[1], "F") {
			t.Logf("%s serves for %s", e.Name(), arch)
			return
		}
	}
	escaped := func(hex string) string {
		var b strings.Builder
		for i := 0; i < len(hex); i += 2 {
			b.WriteString(`\x` + hex[i:i+2])
		}
		return b.String()
	}
	name := fmt.Sprintf("strake-test-%s-%d", arch, os.Getpid())
	rule := fmt.Sprintf(":%s:M::%s:%s:%s:POCF", name, escaped(magic), escaped(mask), qemu)
	if err := os.WriteFile(filepath.Join(dir, "register"), []byte(rule), 0); err != nil {
		t.Fatalf("register %s: %v", rule, err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("-1"), 0); err != nil {
			t.Error(err)
		}
	})
}

// The heads of programs, and which bits of them count: all but the OS's.
const (
	headArm64 = "7f454c460201010000000000000000000200b700"
	maskArm64 = "ffffffffffffff00fffffffffffffffffeffffff"
	headArm   = "7f454c4601010100000000000000000002002800"
	maskArm   = "ffffffffffffff00fffffffffffffffffeffffff"
)

// TestForeignPlatforms runs RUN where an emulator has to: one build for several
// platforms, of which this machine runs two itself. What runs natively
// ($BUILDPLATFORM) is done once.
func TestForeignPlatforms(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("registering an emulator needs root")
	}
	emulate(t, "aarch64", headArm64, maskArm64)
	emulate(t, "arm", headArm, maskArm)
	s := newSite(t)
	s.foreignBase("linux/amd64", "GOARCH=amd64")
	s.foreignBase("linux/386", "GOARCH=386")
	s.foreignBase("linux/arm64", "GOARCH=arm64")
	s.foreignBase("linux/arm/v7", "GOARCH=arm", "GOARM=7")
	s.write("c/Dockerfile", []byte(`FROM --platform=$BUILDPLATFORM base-amd64 AS native
RUN once
FROM base-${TARGETARCH}${TARGETVARIANT:+-$TARGETVARIANT}
ARG TARGETPLATFORM
COPY --from=native /ran /native
RUN made
`))
	all := []string{"linux/amd64", "linux/386", "linux/arm64", "linux/arm/v7"}
	out := s.run("build", "--progress=plain", "-t", "multi:1", "--platform", strings.Join(all, ","), "-o", "type=image", "-o", s.path("out"), s.path("c"))
	if out.code != 0 {
		t.Fatalf("build: %s", out.err)
	}
	if n := strings.Count(out.err, "native 2/2] RUN once\n"); n != 1 {
		t.Errorf("the native stage ran %d times, once is enough:\n%s", n, out.err)
	}
	ran := map[string]string{
		"linux/amd64": "amd64 on x86_64, linux/amd64: made\n", "linux/386": "386 on x86_64, linux/386: made\n",
		"linux/arm64": "arm64 on aarch64, linux/arm64: made\n", "linux/arm/v7": "arm on armv7l, linux/arm/v7: made\n",
	}
	for _, p := range all {
		dir := s.path("out/" + strings.ReplaceAll(p, "/", "_"))
		for file, want := range map[string]string{"ran": ran[p], "native": "amd64 on x86_64, : once\n"} {
			if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
				t.Errorf("%s: %s is %q, %v; want %q", p, file, got, err, want)
			}
		}
		// run goes through the emulator too.
		if got := s.ok("run", "--rm", "--platform", p, "multi:1", "/bin/sh", "again"); !strings.Contains(got, ": again") {
			t.Errorf("run --platform %s: %q", p, got)
		}
	}
}
