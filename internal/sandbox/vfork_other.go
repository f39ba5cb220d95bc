//go:build !amd64 && !arm64

package sandbox

import "syscall"

//go:nosplit
func vfork(flags uintptr) (pid uintptr) { return ^uintptr(syscall.ENOSYS) + 1 }
