package sandbox

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// rlimitNames are docker's names in the order of the kernel's numbers.
func rlimitNames() []string {
	return strings.Fields("cpu fsize data stack core rss nproc nofile memlock as locks sigpending msgqueue nice rtprio rttime")
}

// rlimit is one resource limit by its number.
type rlimit struct {
	resource int
	name     string
	limit    unix.Rlimit
}

func newRlimits(list []Rlimit) ([]rlimit, error) {
	var limits []rlimit
next:
	for _, r := range list {
		if r.Soft > r.Hard {
			return nil, fmt.Errorf("ulimit soft limit must be less than or equal to hard limit: %d > %d", r.Soft, r.Hard)
		}
		for i, n := range rlimitNames() {
			if n == r.Name {
				limits = append(limits, rlimit{i, n, unix.Rlimit{Cur: r.Soft, Max: r.Hard}})
				continue next
			}
		}
		return nil, fmt.Errorf("invalid ulimit type: %s", r.Name)
	}
	return limits, nil
}
