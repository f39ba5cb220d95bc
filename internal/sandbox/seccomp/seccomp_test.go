package seccomp

import (
	"testing"

	"golang.org/x/sys/unix"
)

func number(t testing.TB, calls []call, name string) uint32 {
	for _, c := range calls {
		if c.name == name {
			return c.nr
		}
	}
	t.Fatalf("no system call %s", name)
	return 0
}

const eperm, enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)

// The default profile, on every architecture there is a table for.
func TestDefault(t *testing.T) {
	p, err := Default([]string{"CAP_CHOWN", "CAP_SYS_CHROOT"})
	if err != nil {
		t.Skip(err)
	}
	a := native()[0]
	for _, c := range []struct {
		name string
		args [6]uint64
		want uint32
	}{
		{"read", [6]uint64{}, unix.SECCOMP_RET_ALLOW},
		{"openat2", [6]uint64{}, unix.SECCOMP_RET_ALLOW},
		{"mount", [6]uint64{}, eperm},
		{"chroot", [6]uint64{}, unix.SECCOMP_RET_ALLOW}, // with CAP_SYS_CHROOT
		{"reboot", [6]uint64{}, eperm},                  // without CAP_SYS_BOOT
		{"clone", [6]uint64{uint64(unix.SIGCHLD)}, unix.SECCOMP_RET_ALLOW},
		{"clone", [6]uint64{unix.CLONE_NEWUSER}, eperm},
		{"clone", [6]uint64{unix.CLONE_NEWNS | 1<<40}, eperm},
		{"clone3", [6]uint64{}, enosys},
		{"socket", [6]uint64{unix.AF_INET}, unix.SECCOMP_RET_ALLOW},
		{"socket", [6]uint64{unix.AF_VSOCK}, eperm},
		{"socket", [6]uint64{unix.AF_ALG}, eperm},
		{"socket", [6]uint64{unix.AF_VSOCK + 1}, unix.SECCOMP_RET_ALLOW},
		{"personality", [6]uint64{0xffffffff}, unix.SECCOMP_RET_ALLOW},
		{"personality", [6]uint64{0x20008}, unix.SECCOMP_RET_ALLOW},
		{"personality", [6]uint64{1 << 32}, eperm}, // the high half counts
	} {
		if got := p.Run(a.audit, number(t, a.calls, c.name), c.args); got != c.want {
			t.Errorf("%s%x: %#x, want %#x", c.name, c.args, got, c.want)
		}
	}
	if got := p.Run(a.audit, 5000, [6]uint64{}); got != enosys {
		t.Errorf("a call of the future: %#x", got)
	}
	if got := p.Run(unix.AUDIT_ARCH_S390X, 1, [6]uint64{}); got != unix.SECCOMP_RET_KILL_THREAD {
		t.Errorf("a foreign architecture: %#x", got)
	}
	if len(p.Filter) > 1000 {
		t.Errorf("%d instructions: neighbours are no ranges any more", len(p.Filter))
	}
}

// Every operator, at and around its value, in both halves.
func TestOperators(t *testing.T) {
	const v = 0x1_00000005
	for op, holds := range map[string]func(uint64) bool{
		"SCMP_CMP_EQ": func(x uint64) bool { return x == v },
		"SCMP_CMP_NE": func(x uint64) bool { return x != v },
		"SCMP_CMP_LT": func(x uint64) bool { return x < v },
		"SCMP_CMP_LE": func(x uint64) bool { return x <= v },
		"SCMP_CMP_GT": func(x uint64) bool { return x > v },
		"SCMP_CMP_GE": func(x uint64) bool { return x >= v },
	} {
		p, err := Compile(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getuid"],"action":"SCMP_ACT_ERRNO","errnoRet":38,
			"args":[{"index":2,"value":4294967301,"op":"`+op+`"},{"index":0,"value":7,"op":"SCMP_CMP_EQ"}]}]}`, nil)
		if err != nil {
			t.Fatal(err)
		}
		a := native()[0]
		nr := number(t, a.calls, "getuid")
		for _, x := range []uint64{0, 4, 5, 6, v - 1, v, v + 1, v + 1<<32, 0x2_00000004, 1 << 63} {
			want := uint32(unix.SECCOMP_RET_ALLOW)
			if holds(x) {
				want = enosys
			}
			if got := p.Run(a.audit, nr, [6]uint64{7, 0, x}); got != want {
				t.Errorf("%s %#x: %#x, want %#x", op, x, got, want)
			}
			if got := p.Run(a.audit, nr, [6]uint64{8, 0, x}); got != unix.SECCOMP_RET_ALLOW {
				t.Errorf("%s %#x: one condition of two was enough", op, x)
			}
		}
	}
}

func TestBadProfiles(t *testing.T) {
	for _, c := range []struct{ name, profile string }{
		{"no JSON", `{`},
		{"unknown action", `{"defaultAction":"SCMP_ACT_ALOW"}`},
		{"needs an agent", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}`},
		{"argument out of range", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}`},
		{"unknown operator", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"EQ"}]}]}`},
		{"starts nothing", `{"defaultAction":"SCMP_ACT_KILL"}`},
	} {
		if _, err := Compile(c.profile, nil); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
	if p, err := Compile(`{}`, nil); p != nil || err != nil {
		t.Errorf("an empty profile confines nothing: %v %v", p, err)
	}
}

// Whatever a profile says, it is refused or becomes a program that ends.
func FuzzCompile(f *testing.F) {
	f.Add(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_NE"}]}]}`)
	f.Add(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW"}]}`)
	f.Add(`{"syscalls":[null]}`)
	f.Fuzz(func(t *testing.T, profile string) {
		p, err := Compile(profile, []string{"CAP_SYS_ADMIN"})
		if err != nil || p == nil {
			return
		}
		for nr := range uint32(500) {
			p.Run(native()[0].audit, nr, [6]uint64{uint64(nr)})
		}
	})
}

func BenchmarkDefault(b *testing.B) {
	for b.Loop() {
		if _, err := Default(nil); err != nil {
			b.Fatal(err)
		}
	}
}
