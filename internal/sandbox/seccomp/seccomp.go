// Package seccomp compiles a seccomp profile in docker's format into the BPF
// program that the kernel runs before each system call of a process.
//
// It decides as runc and libseccomp do: a profile's names that an architecture
// does not have are skipped; a system call newer than every name that the
// profile knows fails with ENOSYS, so that a C library falls back to an older
// one; other architectures than the machine's and its compatible 32-bit one
// are killed. x32 on amd64 is refused with ENOSYS, where docker allows it.
package seccomp

//go:generate go run gen.go

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// call is one system call of one architecture.
type call struct {
	name string
	nr   uint32
}

// Program is a compiled profile.
type Program struct {
	Filter []unix.SockFilter
	Flags  uint32 // for seccomp(2)
}

// Default compiles docker's default profile for a process with the bounding
// set caps ("CAP_CHOWN", …).
func Default(caps []string) (*Program, error) {
	p, err := seccomp.GetDefaultProfile(specFor(caps))
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	return compile(p, native())
}

// Compile compiles a profile in docker's JSON.
func Compile(profile string, caps []string) (*Program, error) {
	// The library does not survive a null in the list.
	var list struct{ Syscalls []*json.RawMessage }
	if err := json.Unmarshal([]byte(profile), &list); err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	if slices.Contains(list.Syscalls, nil) {
		return nil, errors.New("seccomp profile: null in the list of system calls")
	}
	p, err := seccomp.LoadProfile(profile, specFor(caps))
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	if p == nil {
		return nil, nil // it says nothing: docker runs unconfined
	}
	program, err := compile(p, native())
	if err != nil {
		return nil, err
	}
	return program, startable(program, native())
}

func specFor(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
}

// arch is one architecture that a filter knows.
type arch struct {
	name  specs.Arch
	audit uint32
	calls []call
}

// native lists the machine's architecture and the 32-bit one that it also
// runs, the machine's first.
func native() []arch {
	switch runtime.GOARCH {
	case "amd64":
		return []arch{
			{specs.ArchX86_64, unix.AUDIT_ARCH_X86_64, callsAMD64()},
			{specs.ArchX86, unix.AUDIT_ARCH_I386, calls386()},
		}
	case "arm64":
		return []arch{
			{specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, callsARM64()},
			{specs.ArchARM, unix.AUDIT_ARCH_ARM, callsARM()},
		}
	case "386":
		return []arch{{specs.ArchX86, unix.AUDIT_ARCH_I386, calls386()}}
	case "arm":
		return []arch{{specs.ArchARM, unix.AUDIT_ARCH_ARM, callsARM()}}
	}
	return nil
}

// rule is one alternative for a system call: if all args match, action.
type rule struct {
	args   []specs.LinuxSeccompArg
	action uint32
}

// verdict is what is decided for one system call.
type verdict struct {
	rules  []rule // in order; the first whose args match decides
	action uint32 // otherwise
}

func (v verdict) equal(w verdict) bool {
	return v.action == w.action && len(v.rules) == 0 && len(w.rules) == 0
}

// Offsets in struct seccomp_data.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// privateCalls is where ARM's own calls begin, far above all others.
const privateCalls = 0x0f0000

func compile(p *specs.LinuxSeccomp, arches []arch) (*Program, error) {
	if len(arches) == 0 {
		return nil, fmt.Errorf("seccomp profiles are not supported on %s: use seccomp=unconfined", runtime.GOARCH)
	}
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	program := &Program{Flags: unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW}
	if p.Flags != nil {
		if program.Flags, err = flags(p.Flags); err != nil {
			return nil, err
		}
	}
	code := []bpf.Instruction{bpf.LoadAbsolute{Off: offArch, Size: 4}}
	for i, a := range arches {
		if i > 0 && !slices.Contains(p.Architectures, a.name) {
			continue
		}
		body, err := compileArch(p, a, fallback)
		if err != nil {
			return nil, err
		}
		code = append(code,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: a.audit, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(body))})
		code = append(code, body...)
	}
	code = append(code, bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_THREAD})
	raw, err := bpf.Assemble(code)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	if len(raw) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp profile compiles to %d instructions: the kernel takes %d", len(raw), unix.BPF_MAXINSNS)
	}
	for _, r := range raw {
		program.Filter = append(program.Filter, unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K})
	}
	return program, nil
}

// compileArch makes the part of the program that decides a's calls.
func compileArch(p *specs.LinuxSeccomp, a arch, fallback uint32) ([]bpf.Instruction, error) {
	verdicts, newest, err := decide(p, a, fallback)
	if err != nil {
		return nil, err
	}
	// Neighbours with the same fate become one range: a binary search over
	// ranges is a tenth of a list of calls, which the kernel has to check,
	// compile and emulate for its cache each time the filter is installed.
	type span struct {
		from uint32
		v    verdict
	}
	var spans []span
	add := func(from uint32, v verdict) {
		if n := len(spans); n == 0 || !spans[n-1].v.equal(v) {
			spans = append(spans, span{from, v})
		}
	}
	unknown := verdict{action: fallback}
	next := uint32(0)
	numbers := make([]uint32, 0, len(verdicts))
	for nr := range verdicts {
		numbers = append(numbers, nr)
	}
	slices.Sort(numbers)
	beyond := unknown
	if stub(p, fallback) {
		beyond.action = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	for _, nr := range numbers {
		if nr > newest && next <= newest {
			add(next, unknown)
			next = newest + 1
		}
		if nr > next {
			if next > newest {
				add(next, beyond)
			} else {
				add(next, unknown)
			}
		}
		add(nr, verdicts[nr])
		next = nr + 1
	}
	if next <= newest {
		add(next, unknown)
		next = newest + 1
	}
	add(next, beyond)

	var build func([]span) ([]bpf.Instruction, error)
	build = func(s []span) ([]bpf.Instruction, error) {
		if len(s) == 1 {
			return leaf(s[0].v)
		}
		half := len(s) / 2
		low, err := build(s[:half])
		if err != nil {
			return nil, err
		}
		high, err := build(s[half:])
		if err != nil {
			return nil, err
		}
		code := []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: s[half].from, SkipTrue: uint8(min(len(low), 255))}}
		if len(low) > 255 { // too far for a conditional jump
			code = []bpf.Instruction{
				bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: s[half].from, SkipFalse: 1},
				bpf.Jump{Skip: uint32(len(low))},
			}
		}
		return append(append(code, low...), high...), nil
	}
	search, err := build(spans)
	if err != nil {
		return nil, err
	}
	return append([]bpf.Instruction{bpf.LoadAbsolute{Off: offNr, Size: 4}}, search...), nil
}

// stub tells whether calls that are newer than the profile get ENOSYS instead
// of its default action: where that is not to allow them.
func stub(p *specs.LinuxSeccomp, fallback uint32) bool {
	return fallback != unix.SECCOMP_RET_ALLOW && fallback != unix.SECCOMP_RET_LOG
}

// decide works out the verdict for each call that the profile names, and the
// highest number among them.
func decide(p *specs.LinuxSeccomp, a arch, fallback uint32) (map[uint32]verdict, uint32, error) {
	numbers := make(map[string]uint32, len(a.calls))
	for _, c := range a.calls {
		numbers[c.name] = c.nr
	}
	for alias, name := range aliases() {
		if nr, ok := numbers[name]; ok {
			if _, has := numbers[alias]; !has {
				numbers[alias] = nr
			}
		}
	}
	verdicts := map[uint32]verdict{}
	newest := uint32(0)
	for _, s := range p.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, 0, err
		}
		for _, name := range s.Names {
			nr, ok := numbers[name]
			if !ok {
				continue
			}
			if nr < privateCalls {
				newest = max(newest, nr)
			}
			v, ok := verdicts[nr]
			if !ok {
				v.action = fallback
			}
			if len(s.Args) == 0 {
				v.action = act
			} else {
				v.rules = append(v.rules, alternatives(s.Args, act)...)
			}
			verdicts[nr] = v
		}
	}
	for nr, v := range verdicts {
		v.rules = slices.DeleteFunc(v.rules, func(r rule) bool { return r.action == v.action })
		if len(v.rules) == 0 {
			v.rules = nil
		}
		verdicts[nr] = v
	}
	return verdicts, newest, nil
}

// alternatives: all of a rule's conditions must hold; but where one argument
// is named twice, each condition is a rule of its own, as in runc.
func alternatives(args []specs.LinuxSeccompArg, act uint32) []rule {
	seen := map[uint]bool{}
	twice := false
	for _, a := range args {
		twice = twice || seen[a.Index]
		seen[a.Index] = true
	}
	if !twice {
		return []rule{{args, act}}
	}
	var rules []rule
	for _, a := range args {
		rules = append(rules, rule{[]specs.LinuxSeccompArg{a}, act})
	}
	return rules
}

// aliases maps libseccomp's names to those of golang.org/x/sys.
func aliases() map[string]string {
	return map[string]string{
		"newfstatat": "fstatat", "arm_fadvise64_64": "fadvise64_64", "arm_sync_file_range": "sync_file_range2",
	}
}

func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	ret := uint32(unix.EPERM)
	if errno != nil {
		if *errno > 0xfff {
			return 0, fmt.Errorf("seccomp profile: errno %d is out of range", *errno)
		}
		ret = uint32(*errno)
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | ret, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | ret, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActNotify:
		return 0, errors.New("seccomp profile: SCMP_ACT_NOTIFY needs an agent, which strake does not have")
	}
	return 0, fmt.Errorf("seccomp profile: unknown action %q", a)
}

func flags(list []specs.LinuxSeccompFlag) (uint32, error) {
	var f uint32
	for _, name := range list {
		switch name {
		case "SECCOMP_FILTER_FLAG_TSYNC": // the filter is for one thread anyway
		case specs.LinuxSeccompFlagLog:
			f |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			f |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return 0, fmt.Errorf("seccomp profile: unknown flag %q", name)
		}
	}
	return f, nil
}

// startable refuses a profile under which a process cannot be started: the
// filter is in force when the child still has these to do.
func startable(p *Program, arches []arch) error {
	needed := []string{"execve", "prctl", "rt_sigprocmask", "setgid", "setgroups", "setuid"}
	for _, c := range arches[0].calls {
		if !slices.Contains(needed, c.name) {
			continue
		}
		if got := p.Run(arches[0].audit, c.nr, [6]uint64{}); got != unix.SECCOMP_RET_ALLOW && got != unix.SECCOMP_RET_LOG {
			return fmt.Errorf("seccomp profile denies %s, without which no process can be started", c.name)
		}
	}
	return nil
}
