package cli

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/buildkit/util/entitlements"
	"github.com/spf13/pflag"

	"github.com/strake-project/strake/internal/build/sshagent"
	"github.com/strake-project/strake/internal/sandbox"
)

// buildLimits are the flags of build about what its commands may use. Those of
// docker's first builder that change nothing here are accepted with the values
// for which that is so.
type buildLimits struct {
	shmSize, memory, memorySwap       string
	cpuShares                         uint64
	cpuPeriod, cpuQuota               int64
	cpusetCPUs, cpusetMems, isolation string
	allow, ssh, security              []string
	compress, forceRM, noTrust        bool
}

func (f *buildLimits) declare(fs *pflag.FlagSet) {
	fs.StringVar(&f.shmSize, "shm-size", "", `Shared memory size for build containers`)
	fs.StringVarP(&f.memory, "memory", "m", "", "Memory limit of the RUN instructions")
	fs.StringVar(&f.memorySwap, "memory-swap", "", `Swap limit equal to memory plus swap: "-1" to enable unlimited swap`)
	fs.Uint64VarP(&f.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	fs.Int64Var(&f.cpuPeriod, "cpu-period", 0, "Limit the CPU CFS (Completely Fair Scheduler) period")
	fs.Int64Var(&f.cpuQuota, "cpu-quota", 0, "Limit the CPU CFS (Completely Fair Scheduler) quota")
	fs.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	fs.StringVar(&f.cpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	fs.StringArrayVar(&f.allow, "allow", nil, `Allow extra privileged entitlement ("network.host", "security.insecure")`)
	fs.StringArrayVar(&f.ssh, "ssh", nil, `SSH agent socket or keys to expose to the build ("default|<id>[=<socket>|<key>[,<key>]]")`)
	fs.StringSliceVar(&f.security, "security-opt", nil, "Security options (none is known to docker's builder on Linux either)")
	fs.StringVar(&f.isolation, "isolation", "", `Container isolation technology ("default")`)
	fs.BoolVar(&f.compress, "compress", false, "Compress the build context (there is no transfer: it changes nothing)")
	fs.BoolVar(&f.forceRM, "force-rm", false, "Always remove intermediate containers (there are none: it changes nothing)")
	fs.BoolVar(&f.noTrust, "disable-content-trust", true, "Skip image verification (always)")
}

// frontendOpts adds the limits to the frontend's options, after the checks that
// docker's engine does.
func (f *buildLimits) frontendOpts(o map[string]string) error {
	if len(f.security) > 0 {
		return errors.New("The daemon on this platform does not support setting security options on build")
	}
	if f.isolation != "" && f.isolation != "default" {
		return fmt.Errorf("invalid isolation %q: only default is there on Linux", f.isolation)
	}
	if !f.noTrust {
		return errors.New("--disable-content-trust=false is not supported: images are not verified by Notary")
	}
	for _, a := range f.allow {
		e, _, err := entitlements.Parse(a)
		if err != nil {
			return err
		}
		if e == entitlements.EntitlementDevice {
			return errors.New("--allow device is not supported: a build has no devices")
		}
	}
	if f.cpuQuota < 0 {
		return fmt.Errorf("invalid --cpu-quota %d: it is a number of microseconds", f.cpuQuota)
	}
	// What run has of them is what a RUN has.
	run := runFlags{memory: f.memory, memorySwap: f.memorySwap, shmSize: f.shmSize, cpuPeriod: f.cpuPeriod, cpuQuota: f.cpuQuota}
	var spec sandbox.Spec
	if err := run.parseLimits(&spec); err != nil {
		return innerFailure(err) // it is not run that refuses
	}
	set := func(key string, n int64) {
		if n != 0 {
			o[key] = strconv.FormatInt(n, 10)
		}
	}
	set("shm-size", spec.ShmSize)
	set("memory", spec.Limits.Memory)
	set("memswap", spec.Limits.MemorySwap)
	set("cpuperiod", f.cpuPeriod)
	set("cpuquota", f.cpuQuota)
	if f.cpuShares != 0 {
		o["cpushares"] = strconv.FormatUint(f.cpuShares, 10)
	}
	if f.cpusetCPUs != "" {
		o["cpusetcpus"] = f.cpusetCPUs
	}
	if f.cpusetMems != "" {
		o["cpusetmems"] = f.cpusetMems
	}
	return nil
}

// allowed are the entitlements of --allow; who asks for --network host allows
// it, as with buildx.
func (f *buildLimits) allowed(network string) map[string]bool {
	m := map[string]bool{"network.host": network == "host"}
	for _, a := range f.allow {
		m[a] = true
	}
	return m
}

// sshKey is one --ssh: an id and the agent's socket or the key files.
type sshKey struct {
	id    string
	paths []string
}

// parseSSH reads --ssh.
func parseSSH(list []string) ([]sshKey, error) {
	var keys []sshKey
	seen := map[string]bool{}
	for _, s := range list {
		id, value, _ := strings.Cut(s, "=")
		if id == "" {
			id = "default"
		}
		if seen[id] {
			return nil, fmt.Errorf("invalid duplicate ID %s", id)
		}
		seen[id] = true
		if value == "" {
			value = os.Getenv("SSH_AUTH_SOCK")
		}
		if value == "" {
			return nil, errors.New("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
		}
		paths := strings.Split(value, ",")
		for i, p := range paths {
			if rest, home := strings.CutPrefix(p, "~/"); home {
				paths[i] = os.Getenv("HOME") + "/" + rest
			}
		}
		keys = append(keys, sshKey{id, paths})
	}
	return keys, nil
}

// openAgents opens the agents of --ssh.
func openAgents(keys []sshKey) (agents map[string]*sshagent.Agent, err error) {
	agents = map[string]*sshagent.Agent{}
	for _, k := range keys {
		if agents[k.id], err = sshagent.Open(k.paths); err != nil {
			return nil, fmt.Errorf("--ssh %s: %w", k.id, err)
		}
	}
	return agents, nil
}
