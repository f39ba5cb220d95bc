//go:build amd64 || arm64

package sandbox

// vfork is clone(flags|CLONE_VM|CLONE_VFORK); it returns -errno as the kernel does.
//
//go:noescape
func vfork(flags uintptr) (pid uintptr)
