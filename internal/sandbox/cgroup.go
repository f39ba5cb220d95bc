package sandbox

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/userns"
)

// cgroup holds a process to its Limits. There is none without limits: killing
// goes by pid namespace, and making one would cost a build step more than all
// its mounts.
//
// The process joins it itself, between fork and exec.
//
// A cgroup that a killed strake left is empty and unlocked; whoever makes the
// next one removes it.
type cgroup struct {
	v2     bool
	dirs   []string   // one, or in version 1 one for each controller
	locks  []*os.File // held on dirs
	join   []*os.File // cgroup.procs of each
	memory string     // directory with the memory controller
}

const cgroupRoot = "/sys/fs/cgroup"

// setting is one file of a controller and what to write there.
type setting struct {
	controller, file, value string
	optional                bool // a kernel may lack it
}

func newCgroup(l Limits) (*cgroup, error) {
	if l == (Limits{}) {
		return nil, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return nil, fmt.Errorf("limits need cgroups: %s: %w", cgroupRoot, err)
	}
	g := &cgroup{v2: st.Type == unix.CGROUP2_SUPER_MAGIC}
	own, err := ownCgroups()
	if err != nil {
		return nil, err
	}
	name := "strake-" + strings.ToLower(rand.Text()[:16])
	if g.v2 {
		err = g.makeV2(l, own, name)
	} else {
		err = g.makeV1(l, own, name)
	}
	if err != nil {
		g.remove()
		return nil, fmt.Errorf("limit resources: %w%s", err, g.whyNot(err))
	}
	return g, nil
}

// whyNot is what an ordinary user can do about err.
func (g *cgroup) whyNot(err error) string {
	switch {
	case !userns.Inside() || !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EROFS):
		return ""
	case g.v2:
		return ": limits need a cgroup that is delegated to the user: systemd-run --user --scope -p Delegate=yes strake …"
	}
	return ": with cgroups of version 1 only root can limit resources"
}

func settingsV1(l Limits) []setting {
	var s []setting
	num := func(controller, file string, n int64, optional bool) {
		if n != 0 {
			s = append(s, setting{controller, file, strconv.FormatInt(n, 10), optional})
		}
	}
	num("memory", "memory.limit_in_bytes", l.Memory, false)
	swap := l.MemorySwap
	if swap == 0 {
		swap = 2 * l.Memory // docker's default
	}
	num("memory", "memory.memsw.limit_in_bytes", swap, true) // needs swapaccount=1
	num("cpu", "cpu.shares", int64(l.CPUShares), false)
	num("cpu", "cpu.cfs_period_us", int64(l.CPUPeriod), false)
	num("cpu", "cpu.cfs_quota_us", l.CPUQuota, false)
	num("pids", "pids.max", max(l.Pids, 0), false)
	if l.CPUSetCPUs != "" {
		s = append(s, setting{"cpuset", "cpuset.cpus", l.CPUSetCPUs, false})
	}
	if l.CPUSetMems != "" {
		s = append(s, setting{"cpuset", "cpuset.mems", l.CPUSetMems, false})
	}
	return s
}

func settingsV2(l Limits) []setting {
	var s []setting
	if l.Memory > 0 {
		s = append(s, setting{"memory", "memory.max", strconv.FormatInt(l.Memory, 10), false})
		swap := strconv.FormatInt(l.Memory, 10) // docker: as much swap as memory
		switch {
		case l.MemorySwap < 0:
			swap = "max"
		case l.MemorySwap > 0: // docker's number is the sum
			swap = strconv.FormatInt(max(l.MemorySwap-l.Memory, 0), 10)
		}
		s = append(s, setting{"memory", "memory.swap.max", swap, true})
	}
	if l.CPUShares > 0 { // 2…262144 becomes 1…10000, as in runc and systemd
		shares := min(max(l.CPUShares, 2), 262144)
		s = append(s, setting{"cpu", "cpu.weight", strconv.FormatUint(1+(shares-2)*9999/262142, 10), false})
	}
	if l.CPUQuota != 0 || l.CPUPeriod != 0 {
		quota, period := "max", uint64(100000)
		if l.CPUQuota > 0 {
			quota = strconv.FormatInt(l.CPUQuota, 10)
		}
		if l.CPUPeriod != 0 {
			period = uint64(l.CPUPeriod)
		}
		s = append(s, setting{"cpu", "cpu.max", quota + " " + strconv.FormatUint(period, 10), false})
	}
	if l.Pids > 0 {
		s = append(s, setting{"pids", "pids.max", strconv.FormatInt(l.Pids, 10), false})
	}
	if l.CPUSetCPUs != "" {
		s = append(s, setting{"cpuset", "cpuset.cpus", l.CPUSetCPUs, false})
	}
	if l.CPUSetMems != "" {
		s = append(s, setting{"cpuset", "cpuset.mems", l.CPUSetMems, false})
	}
	return s
}

// makeV1 makes a cgroup below strake's own in the hierarchy of each controller
// that is needed, so that what limits strake limits it too.
func (g *cgroup) makeV1(l Limits, own map[string]string, name string) error {
	made := map[string]string{}
	settings := settingsV1(l)
	if len(settings) == 0 { // only a place was asked for
		settings = []setting{{controller: "memory"}, {controller: "cpu"}, {controller: "pids"}}
	}
	for _, s := range settings {
		dir, ok := made[s.controller]
		if !ok {
			mount := filepath.Join(cgroupRoot, s.controller)
			if _, err := os.Stat(mount); err != nil {
				return fmt.Errorf("the machine has no cgroup controller %s", s.controller)
			}
			base := filepath.Join(mount, own[s.controller])
			if l.CgroupParent != "" {
				base = filepath.Join(mount, filepath.Clean("/"+l.CgroupParent))
				if err := os.MkdirAll(base, 0o755); err != nil {
					return err
				}
			} else if _, err := os.Stat(base); err != nil {
				base = mount // a path of another cgroup namespace
			}
			dir = filepath.Join(base, name)
			if err := g.mkdir(dir); err != nil {
				return err
			}
			made[s.controller] = dir
			if s.controller == "cpuset" { // empty ones take no task
				for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
					data, err := os.ReadFile(filepath.Join(base, f))
					if err != nil {
						return err
					}
					if err := writeFile(dir, f, strings.TrimSpace(string(data))); err != nil {
						return err
					}
				}
			}
		}
		if s.controller == "memory" {
			g.memory = dir
		}
		if s.file == "" {
			continue
		}
		if err := writeFile(dir, s.file, s.value); err != nil && !(s.optional && errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// makeV2 makes a cgroup beside strake's own: one that has processes in it may
// not have limited children.
func (g *cgroup) makeV2(l Limits, own map[string]string, name string) error {
	base := filepath.Join(cgroupRoot, filepath.Dir(filepath.Join("/", own[""])))
	if l.CgroupParent != "" {
		base = filepath.Join(cgroupRoot, filepath.Clean("/"+l.CgroupParent))
		if err := os.MkdirAll(base, 0o755); err != nil {
			return err
		}
	} else if _, err := os.Stat(base); err != nil {
		base = cgroupRoot
	}
	settings := settingsV2(l)
	for _, s := range settings {
		if err := writeFile(base, "cgroup.subtree_control", "+"+s.controller); err != nil {
			return fmt.Errorf("enable controller %s: %w", s.controller, err)
		}
	}
	dir := filepath.Join(base, name)
	if err := g.mkdir(dir); err != nil {
		return err
	}
	g.memory = dir
	for _, s := range settings {
		if err := writeFile(dir, s.file, s.value); err != nil && !(s.optional && errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

func (g *cgroup) mkdir(dir string) error {
	sweep(filepath.Dir(dir))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	g.dirs = append(g.dirs, dir)
	lock, err := os.Open(dir)
	if err == nil {
		g.locks = append(g.locks, lock)
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
	if err == nil {
		g.join = append(g.join, f)
	}
	return err
}

// sweep removes what killed strakes left in base.
func sweep(base string) {
	left, _ := filepath.Glob(filepath.Join(base, "strake-*"))
	for _, dir := range left {
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(dir) // fails while something lives in it
		}
		f.Close()
	}
}

func writeFile(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.WriteString(value); err != nil {
		return fmt.Errorf("write %s to %s: %w", value, file, unwrapPath(err))
	}
	return nil
}

// ownCgroups maps each controller ("" for version 2) to strake's own cgroup.
func ownCgroups() (map[string]string, error) {
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	own := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if parts := strings.SplitN(lines.Text(), ":", 3); len(parts) == 3 {
			for c := range strings.SplitSeq(parts[1], ",") {
				own[c] = parts[2]
			}
		}
	}
	return own, nil
}

// enter adds to the child's script that it joins: "0" is the writer itself.
func (g *cgroup) enter(s *script) {
	if g == nil {
		return
	}
	for _, f := range g.join {
		s.add("join cgroup "+filepath.Dir(f.Name()), unix.SYS_WRITE, f.Fd(), s.str("0"), 1)
	}
}

// oomKilled tells whether the kernel killed something in it for memory.
func (g *cgroup) oomKilled() bool {
	if g == nil || g.memory == "" {
		return false
	}
	for _, f := range []string{"memory.events", "memory.oom_control"} {
		data, err := os.ReadFile(filepath.Join(g.memory, f))
		if err != nil {
			continue
		}
		for line := range bytes.Lines(data) {
			var n int
			if _, err := fmt.Sscanf(string(line), "oom_kill %d", &n); err == nil {
				return n > 0
			}
		}
	}
	return false
}

func (g *cgroup) remove() error {
	if g == nil {
		return nil
	}
	for _, f := range g.join {
		f.Close()
	}
	var failed error
	for _, dir := range g.dirs {
		err := os.Remove(dir)
		for wait := time.Millisecond; errors.Is(err, unix.EBUSY) && wait < time.Second; wait *= 2 {
			time.Sleep(wait) // the last process is still leaving
			err = os.Remove(dir)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = fmt.Errorf("remove cgroup: %w", err)
		}
	}
	for _, f := range g.locks {
		f.Close()
	}
	return failed
}
