package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// probe builds testdata/probe for an architecture into a root.
func probe(t *testing.T, dir, goarch string) {
	t.Helper()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "bin/probe"), "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+goarch, "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("needs the go command: %v\n%s", err, out)
	}
}

// The filter denies what docker's denies, to real processes of both
// architectures that the machine runs.
func TestSeccomp(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the numbers below are amd64's and 386's")
	}
	for _, c := range []struct {
		name, goarch string
		spec         Spec
		calls        string
		want         string
	}{
		// ptrace asks to look at a process that is not there: a probe that let
		// itself be traced would stop for ever at the next signal.
		{"docker's default", "amd64", Spec{},
			"unshare=272,0x10000000 mount=165,0,0,0,0,0 keyctl=250,0 add_key=248,0,0,0,0,0 clone3=435,0,0 clone_newuser=56,0x10000011,0,0,0,0 " +
				"bpf=321,0,0,0 vsock=41,40,1,0 inet=41,2,1,0 alg=41,38,5,0 personality=135,0xffffffff persona=135,0x400000 future=999 x32=0x40000027 io_uring=425,0,0 getpid=39 ptrace=101,1,0,0,0 swapon=167,0,0",
			"unshare operation not permitted;mount operation not permitted;keyctl operation not permitted;add_key operation not permitted;clone3 function not implemented;clone_newuser operation not permitted;" +
				"bpf operation not permitted;vsock operation not permitted;inet ok;alg operation not permitted;personality ok;persona operation not permitted;future function not implemented;x32 function not implemented;io_uring operation not permitted;getpid ok;ptrace no such process;swapon operation not permitted"},
		{"docker's default, 32 bit", "386", Spec{},
			"unshare=310,0x10000000 mount=21,0,0,0,0,0 clone3=435,0,0 future=999 getpid=20 socket=359,2,1,0 keyctl=288,0",
			"unshare operation not permitted;mount operation not permitted;clone3 function not implemented;future function not implemented;getpid ok;socket ok;keyctl operation not permitted"},
		{"SYS_ADMIN opens what it needs", "amd64", Spec{CapAdd: []string{"SYS_ADMIN"}},
			"unshare=272,0x20000 keyctl=250,0", "unshare ok;keyctl operation not permitted"},
		{"unconfined", "amd64", Spec{Seccomp: "unconfined"},
			"add_key=248,0,0,0,0,0 clone3=435,0,0", "add_key bad address;clone3 invalid argument"},
		{"a profile of the caller's", "amd64", Spec{Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getuid"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`},
			"getuid=102 getpid=39", "getuid operation not supported;getpid ok"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.Root = busybox(t)
			probe(t, c.spec.Root.Lowers[0], c.goarch)
			out, _ := sh(t, c.spec, "probe "+c.calls)
			got := strings.Split(strings.TrimSpace(out), "\n")
			want := strings.Split(c.want, ";")
			for i := range max(len(got), len(want)) {
				if i >= len(got) || i >= len(want) || got[i] != want[i] {
					t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
					break
				}
			}
		})
	}
}

// A process without a filter has a session keyring of its own, not strake's
// with the keys in it.
func TestSessionKeyring(t *testing.T) {
	root := busybox(t)
	probe(t, root.Lowers[0], runtime.GOARCH)
	ids := map[string]bool{}
	ours, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if err != nil {
		t.Fatal(err)
	}
	ids[fmt.Sprintf("session? %d\n", ours)] = true
	for range 2 {
		out, exit := sh(t, Spec{Root: root, Seccomp: "unconfined"}, fmt.Sprintf("probe session?=%d,%d,%d,0", unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, ^uint(2)))
		if exit.Code != 0 || !strings.HasPrefix(out, "session? ") || ids[out] {
			t.Errorf("exit code %d, keyring %q, known: %v", exit.Code, out, ids)
		}
		ids[out] = true
	}
}

func TestSeccompProfileThatStartsNothing(t *testing.T) {
	spec := Spec{Root: busybox(t), Args: []string{"true"}, Seccomp: `{"defaultAction":"SCMP_ACT_ERRNO"}`}
	if _, err := Start(t.Context(), &spec); err == nil || !strings.Contains(err.Error(), "without which no process can be started") {
		t.Errorf("%v", err)
	}
}
