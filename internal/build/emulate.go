package build

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/containerd/platforms"

	"github.com/strake-project/strake/internal/content"
)

// foreign adds to err, of a command that did not start because of cause, what
// would let it run where it is another platform's. Where binfmt_misc knows an emulator
// nothing has to be done: the kernel runs it.
func (s *step) foreign(cause, err error) error {
	if !errors.Is(cause, syscall.ENOEXEC) && !strings.Contains(cause.Error(), "exec format error") {
		return err
	}
	p, host := s.platform(), content.Host()
	if platforms.Only(host).Match(p) {
		return err
	}
	return fmt.Errorf("%w: %s does not run on %s without an emulator: apt-get install qemu-user-static, or docker run --privileged --rm tonistiigi/binfmt --install %s, registers one",
		err, platforms.Format(p), platforms.Format(host), p.Architecture)
}
