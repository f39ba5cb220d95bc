#include "textflag.h"

// func vfork(flags uintptr) (pid uintptr)
// The child returns first and uses the stack below; so the return address
// waits in a register that the system call keeps.
TEXT ·vfork(SB),NOSPLIT|NOFRAME,$0-16
	MOVQ flags+0(FP), DI
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	XORL R8, R8
	XORL R9, R9
	MOVL $56, AX // clone
	POPQ R12
	SYSCALL
	PUSHQ R12
	MOVQ AX, pid+8(FP)
	RET
