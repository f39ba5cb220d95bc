package cli

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/sandbox"
)

// runFlags are run's flags as they were given.
type runFlags struct {
	interactive, tty, remove, sigProxy, quiet bool
	readOnly, privileged, init, detach        bool
	name, hostname, user, workdir, network    string
	entrypoint, platform, pullPolicy, cidfile string
	memory, memorySwap, shmSize, cpusetCPUs   string
	cpusetMems, cpus, cgroupParent            string
	cpuShares                                 uint64
	cpuPeriod, cpuQuota, pids                 int64
	env, envFiles, volumes, mounts, tmpfs     []string
	addHosts, capAdd, capDrop, security       []string
	ulimits, groups, labels, publish          []string

	pull content.PullPolicy
	set  *pflag.FlagSet
}

func (f *runFlags) declare(fs *pflag.FlagSet) {
	f.set = fs
	fs.SetInterspersed(false) // what follows the image is the container's
	fs.StringArrayVar(&f.addHosts, "add-host", nil, "Add a line to /etc/hosts (host:ip)")
	fs.StringArrayVar(&f.capAdd, "cap-add", nil, "Add a capability")
	fs.StringArrayVar(&f.capDrop, "cap-drop", nil, "Drop a capability")
	fs.StringVar(&f.cgroupParent, "cgroup-parent", "", "Make the container's cgroup below this one")
	fs.StringVar(&f.cidfile, "cidfile", "", "Write the container's ID to this file")
	fs.Int64Var(&f.cpuPeriod, "cpu-period", 0, "Length of a CPU period in microseconds")
	fs.Int64Var(&f.cpuQuota, "cpu-quota", 0, "CPU time in a period, in microseconds")
	fs.Uint64VarP(&f.cpuShares, "cpu-shares", "c", 0, "CPU weight beside other containers")
	fs.StringVar(&f.cpus, "cpus", "", "Number of CPUs, such as 1.5")
	fs.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "CPUs to run on (0-3, 0,1)")
	fs.StringVar(&f.cpusetMems, "cpuset-mems", "", "Memory nodes to use (0-3, 0,1)")
	fs.BoolVarP(&f.detach, "detach", "d", false, "Not supported yet: run in the background")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "Replace the image's ENTRYPOINT")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "Set an environment variable")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "Set the environment variables of a file")
	fs.StringArrayVar(&f.groups, "group-add", nil, "Join a further group")
	fs.StringVarP(&f.hostname, "hostname", "h", "", "The container's host name")
	fs.Bool("help", false, "Print usage")
	fs.BoolVar(&f.init, "init", false, "Not supported yet: run an init as process 1")
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "Give the container our standard input")
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "Set a label of the container")
	fs.StringVarP(&f.memory, "memory", "m", "", "Limit memory (bytes, or with k, m, g)")
	fs.StringVar(&f.memorySwap, "memory-swap", "", "Limit memory and swap together (-1 for unlimited swap)")
	fs.StringArrayVar(&f.mounts, "mount", nil, "Mount a directory, a file or a tmpfs (type=bind,src=…,dst=…)")
	fs.StringVar(&f.name, "name", "", "The container's name")
	fs.StringVar(&f.network, "network", "default", "The container's network: host, none, or one of its own that pasta or slirp4netns connects; default is host for root, else one of the latter")
	fs.StringVar(&f.network, "net", "default", "")
	fs.Lookup("net").Hidden = true
	fs.Int64Var(&f.pids, "pids-limit", 0, "Limit the number of processes (-1 for no limit)")
	fs.StringVar(&f.platform, "platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "Run this platform's image of several (os[/arch[/variant]])")
	fs.BoolVar(&f.privileged, "privileged", false, "Take no precautions: all capabilities, no seccomp filter")
	fs.StringArrayVarP(&f.publish, "publish", "p", nil, "Not supported yet: publish a port")
	fs.StringVar(&f.pullPolicy, "pull", "missing", "Pull the image first (always, missing, never)")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Say nothing while pulling")
	fs.BoolVar(&f.readOnly, "read-only", false, "Make the container's root read-only")
	fs.BoolVar(&f.remove, "rm", false, "Remove the container when it ends")
	fs.StringArrayVar(&f.security, "security-opt", nil, "seccomp=FILE, seccomp=unconfined or no-new-privileges")
	fs.StringVar(&f.shmSize, "shm-size", "", "Size of /dev/shm")
	fs.BoolVar(&f.sigProxy, "sig-proxy", true, "Pass signals on to the process")
	fs.StringArrayVar(&f.tmpfs, "tmpfs", nil, "Mount a tmpfs (PATH[:size=…,mode=…])")
	fs.BoolVarP(&f.tty, "tty", "t", false, "Give the container a terminal")
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "Set a resource limit (name=soft[:hard])")
	fs.StringVarP(&f.user, "user", "u", "", "User or UID, with :group or :GID")
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "Bind-mount a directory or file (SOURCE:DESTINATION[:ro])")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "Working directory")
}

// options turns the flags into what package container takes.
func (f *runFlags) options() (*container.Options, error) {
	for _, no := range []struct {
		given bool
		what  string
	}{
		{f.detach, "--detach is not supported yet: the container runs in the foreground"},
		{f.init, "--init is not supported yet"},
		{len(f.publish) > 0, "--publish is not supported yet: with --network host the container's ports are the machine's"},
	} {
		if no.given {
			return nil, refused(errors.New(no.what))
		}
	}
	f.pull = content.PullPolicy(f.pullPolicy)
	switch f.pull {
	case content.PullAlways, content.PullMissing, content.PullNever:
	default:
		return nil, fmt.Errorf(`invalid pull option: '%s': must be one of "always", "missing" or "never"`, f.pullPolicy)
	}
	opt := &container.Options{Name: f.name, Remove: f.remove, SetEntrypoint: f.set.Changed("entrypoint"), Entrypoint: []string{f.entrypoint}}
	spec := &opt.Sandbox
	spec.User, spec.Cwd, spec.Hostname = f.user, f.workdir, f.hostname
	spec.Groups, spec.CapAdd, spec.CapDrop = f.groups, f.capAdd, f.capDrop
	spec.Privileged, spec.ReadOnly = f.privileged, f.readOnly
	var err error
	if spec.Network, err = networkMode(f.network); err != nil {
		return nil, refused(err)
	}
	for _, parse := range []func(*sandbox.Spec) error{f.parseHosts, f.parseSecurity, f.parseLimits, f.parseMounts} {
		if err := parse(spec); err != nil {
			return nil, err
		}
	}
	if opt.Env, err = f.environment(); err != nil {
		return nil, err
	}
	for _, l := range f.labels {
		k, v, _ := strings.Cut(l, "=")
		if k == "" {
			return nil, fmt.Errorf("invalid argument %q for \"-l, --label\" flag: invalid label '%s': empty name", l, l)
		}
		if opt.Labels == nil {
			opt.Labels = map[string]string{}
		}
		opt.Labels[k] = v
	}
	return opt, nil
}

// idFile is the file of --cidfile. It is made before there is a container, and
// goes away again where none came.
type idFile struct {
	file *os.File // nil where there is no such flag
	kept bool
}

func (f *runFlags) idFile() (*idFile, error) {
	if f.cidfile == "" {
		return &idFile{}, nil
	}
	file, err := os.OpenFile(f.cidfile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("container ID file found, make sure the other container isn't running or delete %s", f.cidfile)
	}
	if err != nil {
		return nil, fmt.Errorf("failed to create the container ID file: %w", err)
	}
	return &idFile{file: file}, nil
}

func (i *idFile) write(id string) error {
	if i.file == nil {
		return nil
	}
	i.kept = true
	_, err := i.file.WriteString(id)
	return errors.Join(err, i.file.Close())
}

func (i *idFile) close() {
	if i.file != nil && !i.kept {
		i.file.Close()
		os.Remove(i.file.Name())
	}
}

// environment is the files' and then the flags' variables. KEY without a value
// takes ours, or is removed where we have none.
func (f *runFlags) environment() ([]string, error) {
	var env []string
	add := func(kv string) error {
		key, _, set := strings.Cut(kv, "=")
		if key == "" {
			return fmt.Errorf("invalid environment variable: %s", kv)
		}
		if v, ok := os.LookupEnv(key); !set && ok {
			kv = key + "=" + v
		}
		env = append(env, kv)
		return nil
	}
	for _, name := range f.envFiles {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(file)
		for n := 1; lines.Scan(); n++ {
			line := strings.TrimLeft(strings.TrimPrefix(lines.Text(), "\uFEFF"), " \t")
			if line == "" || line[0] == '#' {
				continue
			}
			key, _, set := strings.Cut(line, "=")
			if strings.ContainsAny(key, " \t") {
				file.Close()
				return nil, fmt.Errorf("invalid env file (%s): variable '%s' contains whitespaces", name, key)
			}
			if _, ok := os.LookupEnv(key); !set && !ok {
				continue // docker: a name alone that is not set is left out
			}
			if err := add(line); err != nil {
				file.Close()
				return nil, fmt.Errorf("invalid env file (%s): no variable name on line '%s'", name, line)
			}
		}
		err = errors.Join(lines.Err(), file.Close())
		if err != nil {
			return nil, fmt.Errorf("invalid env file (%s): %w", name, err)
		}
	}
	for _, kv := range f.env {
		if err := add(kv); err != nil {
			return nil, err
		}
	}
	return env, nil
}

func (f *runFlags) parseHosts(spec *sandbox.Spec) error {
	for _, h := range f.addHosts {
		invalid := func(err error) error { return fmt.Errorf("invalid argument %q for \"--add-host\" flag: %w", h, err) }
		host, ip, ok := splitHost(h)
		switch {
		case !ok:
			return invalid(fmt.Errorf("bad format for add-host: %q", h))
		case ip == hostGateway:
			var err error
			if ip, err = gateway(h, spec.Network); err != nil {
				return refused(err)
			}
		case !isIP(ip):
			return invalid(fmt.Errorf("invalid IP address in add-host: %q", ip))
		}
		spec.ExtraHosts = append(spec.ExtraHosts, host+":"+ip)
	}
	return nil
}

func (f *runFlags) parseSecurity(spec *sandbox.Spec) error {
	for _, o := range f.security {
		key, value, set := strings.Cut(o, "=")
		if !set {
			key, value, set = strings.Cut(o, ":")
		}
		switch {
		case key == "no-new-privileges":
			on := true
			if set {
				var err error
				if on, err = strconv.ParseBool(value); err != nil {
					return refused(fmt.Errorf("invalid --security-opt: %q", o))
				}
			}
			spec.NoNewPrivileges = on
		case key == "seccomp" && value == "unconfined":
			spec.Seccomp = value
		case key == "seccomp" && value == "builtin":
			spec.Seccomp = ""
		case key == "seccomp":
			profile, err := os.ReadFile(value)
			if err != nil {
				return fmt.Errorf("opening seccomp profile (%s) failed: %w", value, err)
			}
			spec.Seccomp = string(profile)
		case key == "apparmor" && value == "unconfined", key == "label" && value == "disable":
			// It is so anyway.
		default:
			return refused(fmt.Errorf("--security-opt %q is not supported", o))
		}
	}
	return nil
}

func (f *runFlags) parseLimits(spec *sandbox.Spec) error {
	l := &spec.Limits
	for _, size := range []struct {
		flag, value string
		to          *int64
	}{{"-m, --memory", f.memory, &l.Memory}, {"--memory-swap", f.memorySwap, &l.MemorySwap}, {"--shm-size", f.shmSize, &spec.ShmSize}} {
		if size.value == "" {
			continue
		}
		if size.value == "-1" && size.to == &l.MemorySwap {
			l.MemorySwap = -1
			continue
		}
		n, err := units.RAMInBytes(size.value)
		if err != nil {
			return fmt.Errorf("invalid argument %q for %q flag: %w", size.value, size.flag, err)
		}
		*size.to = n
	}
	if l.Memory != 0 && l.Memory < 6<<20 {
		return refused(errors.New("Minimum memory limit allowed is 6MB"))
	}
	if l.MemorySwap > 0 && l.MemorySwap < l.Memory {
		return refused(errors.New("Minimum memoryswap limit should be larger than memory limit, see usage"))
	}
	if l.MemorySwap > 0 && l.Memory == 0 {
		return refused(errors.New("You should always set the Memory limit when using Memoryswap limit, see usage"))
	}
	if f.cpuPeriod != 0 && (f.cpuPeriod < 1000 || f.cpuPeriod > 1000000) {
		return refused(errors.New("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"))
	}
	if f.cpuQuota > 0 && f.cpuQuota < 1000 {
		return refused(errors.New("CPU cfs quota can not be less than 1ms (i.e. 1000)"))
	}
	l.CPUShares, l.CPUPeriod, l.CPUQuota = f.cpuShares, f.cpuPeriod, f.cpuQuota
	l.CPUSetCPUs, l.CPUSetMems, l.CgroupParent = f.cpusetCPUs, f.cpusetMems, f.cgroupParent
	if f.cpus != "" {
		n, err := strconv.ParseFloat(f.cpus, 64)
		if err != nil || math.IsNaN(n) || n <= 0 || n > 1e6 {
			return fmt.Errorf("invalid argument %q for \"--cpus\" flag: it is a number of CPUs, such as 1.5", f.cpus)
		}
		if l.CPUPeriod != 0 || l.CPUQuota != 0 {
			return refused(errors.New("Conflicting options: Nano CPUs and CPU Period cannot both be set"))
		}
		l.CPUPeriod, l.CPUQuota = 100000, int64(n*100000)
	}
	if f.pids > 0 {
		l.Pids = f.pids
	}
	for _, u := range f.ulimits {
		parsed, err := units.ParseUlimit(u)
		if err != nil {
			return fmt.Errorf("invalid argument %q for \"--ulimit\" flag: %w", u, err)
		}
		spec.Rlimits = append(spec.Rlimits, sandbox.Rlimit{Name: parsed.Name, Soft: uint64(parsed.Soft), Hard: uint64(parsed.Hard)})
	}
	return nil
}
