package seccomp

import (
	"encoding/binary"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// leaf makes the code that ends in a verdict.
func leaf(v verdict) ([]bpf.Instruction, error) {
	var code []bpf.Instruction
	for _, r := range v.rules {
		// Conditions are built from the last to the first: each knows how far
		// it is to the end of the rule, where the next rule begins.
		body := []bpf.Instruction{bpf.RetConstant{Val: r.action}}
		for i := len(r.args) - 1; i >= 0; i-- {
			test, err := condition(r.args[i], len(body))
			if err != nil {
				return nil, err
			}
			body = append(test, body...)
		}
		if len(body) > 200 {
			return nil, fmt.Errorf("seccomp profile: a rule with %d conditions is too long", len(r.args))
		}
		code = append(code, body...)
	}
	return append(code, bpf.RetConstant{Val: v.action}), nil
}

// condition makes the code that falls through if a holds and otherwise skips
// the rest of its rule, which is left instructions long. Arguments are 64 bits
// and BPF's registers 32: the high half is compared first.
func condition(a specs.LinuxSeccompArg, left int) ([]bpf.Instruction, error) {
	if a.Index > 5 {
		return nil, fmt.Errorf("seccomp profile: argument %d is out of range", a.Index)
	}
	low, high := offArgs+8*uint32(a.Index), offArgs+8*uint32(a.Index)+4
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 { // big endian
		low, high = high, low
	}
	hi, lo := uint32(a.Value>>32), uint32(a.Value)
	loadHigh := bpf.LoadAbsolute{Off: high, Size: 4}
	loadLow := bpf.LoadAbsolute{Off: low, Size: 4}
	out := uint8(left)
	switch a.Op {
	case specs.OpMaskedEqual:
		want := a.ValueTwo
		return []bpf.Instruction{
			loadHigh, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: hi},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(want >> 32), SkipFalse: out + 3},
			loadLow, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: lo},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(want), SkipFalse: out},
		}, nil
	case specs.OpEqualTo:
		return []bpf.Instruction{
			loadHigh, bpf.JumpIf{Cond: bpf.JumpEqual, Val: hi, SkipFalse: out + 2},
			loadLow, bpf.JumpIf{Cond: bpf.JumpEqual, Val: lo, SkipFalse: out},
		}, nil
	case specs.OpNotEqual:
		return []bpf.Instruction{
			loadHigh, bpf.JumpIf{Cond: bpf.JumpEqual, Val: hi, SkipFalse: 2},
			loadLow, bpf.JumpIf{Cond: bpf.JumpEqual, Val: lo, SkipTrue: out},
		}, nil
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		cond := bpf.JumpGreaterThan
		if a.Op == specs.OpGreaterEqual {
			cond = bpf.JumpGreaterOrEqual
		}
		return []bpf.Instruction{
			loadHigh,
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: hi, SkipTrue: 3},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: hi, SkipFalse: out + 2},
			loadLow, bpf.JumpIf{Cond: cond, Val: lo, SkipFalse: out},
		}, nil
	case specs.OpLessThan, specs.OpLessEqual:
		cond := bpf.JumpGreaterOrEqual
		if a.Op == specs.OpLessEqual {
			cond = bpf.JumpGreaterThan
		}
		return []bpf.Instruction{
			loadHigh,
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: hi, SkipTrue: out + 3},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: hi, SkipFalse: 2},
			loadLow, bpf.JumpIf{Cond: cond, Val: lo, SkipTrue: out},
		}, nil
	}
	return nil, fmt.Errorf("seccomp profile: unknown operator %q", a.Op)
}

// Run tells what the program answers to one system call.
func (p *Program) Run(audit, nr uint32, args [6]uint64) uint32 {
	raw := make([]bpf.RawInstruction, len(p.Filter))
	for i, f := range p.Filter {
		raw[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	// bpf.VM reads big-endian words, as of a packet.
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNr:], nr)
	binary.BigEndian.PutUint32(data[offArch:], audit)
	for i, a := range args {
		low, high := offArgs+8*i, offArgs+8*i+4
		if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
			low, high = high, low
		}
		binary.BigEndian.PutUint32(data[low:], uint32(a))
		binary.BigEndian.PutUint32(data[high:], uint32(a>>32))
	}
	code, _ := bpf.Disassemble(raw)
	vm, err := bpf.NewVM(code)
	if err != nil {
		return unix.SECCOMP_RET_KILL_PROCESS
	}
	ret, err := vm.Run(data)
	if err != nil {
		return unix.SECCOMP_RET_KILL_PROCESS
	}
	return uint32(ret)
}
