package frontend_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestCorpusRootless runs the corpus as root of a user namespace with
// subordinate ids, where everything has to come out as it does for root, but
// for what the kernel refuses: device nodes, a directory of /proc, and owners that
// are not among the ids.
func TestCorpusRootless(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	u, err := user.Lookup("strake-test")
	if err != nil {
		t.Skipf("test.sh makes this user: %v", err)
	}
	for _, p := range []string{"unshare", "newuidmap", "busybox"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s", p)
		}
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	// Where the user may read it, laid out as the source is.
	dir, err := os.MkdirTemp("/var/tmp", "strake-rootless-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	here := filepath.Join(dir, "internal/build/frontend")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	err = errors.Join(err, os.MkdirAll(here, 0o755), os.Mkdir(filepath.Join(dir, "tmp"), 0o755),
		os.WriteFile(filepath.Join(here, "frontend.test"), data, 0o755),
		os.CopyFS(filepath.Join(dir, "testdata/build"), os.DirFS("../../../testdata/build")),
		filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(p, uid, gid))
		}))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--map-auto", "--mount",
		"./frontend.test", "-test.v", "-test.run", "^TestCorpus$", "-test.skip", "^TestCorpus$/^(run-special|run-touch-nothing|run-device-nodes|bk-special-from|bk-nodes|bk-special-whiteouts|bk-big-owners)$")
	cmd.Dir = here
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+filepath.Join(dir, "tmp"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	if n := strings.Count(string(out), "    --- PASS: TestCorpus/"); err != nil || n < 100 {
		t.Errorf("%d cases passed: %v\n%s", n, err, out)
	}
}
