package cli

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content/store"
)

// systemInfo is what info prints: of docker's API (GET /info) what is true of a
// store without a daemon, under its names.
type systemInfo struct {
	ID                string
	Containers        int
	ContainersRunning int
	ContainersPaused  int
	ContainersStopped int
	Images            int
	Driver            string
	DriverStatus      [][2]string
	Plugins           infoPlugins
	MemoryLimit       bool
	SwapLimit         bool
	CpuCfsPeriod      bool
	CpuCfsQuota       bool
	CPUShares         bool
	CPUSet            bool
	PidsLimit         bool
	IPv4Forwarding    bool
	Debug             bool
	NFd               int
	OomKillDisable    bool
	NGoroutines       int
	SystemTime        string
	LoggingDriver     string
	CgroupDriver      string
	CgroupVersion     string
	NEventsListener   int
	KernelVersion     string
	OperatingSystem   string
	OSVersion         string
	OSType            string
	Architecture      string

	IndexServerAddress string
	RegistryConfig     infoRegistries
	NCPU               int
	MemTotal           int64
	DockerRootDir      string
	HTTPProxy          string `json:"HttpProxy"`
	HTTPSProxy         string `json:"HttpsProxy"`
	NoProxy            string
	Name               string
	Labels             []string
	ExperimentalBuild  bool
	ServerVersion      string
	Runtimes           map[string]infoRuntime
	DefaultRuntime     string
	Swarm              infoSwarm
	LiveRestoreEnabled bool
	Isolation          string
	InitBinary         string
	SecurityOptions    []string
	Warnings           []string

	ClientInfo infoClient
}

type infoPlugins struct{ Volume, Network, Authorization, Log []string }

type infoRuntime struct {
	Path string `json:"path"`
}

type infoSwarm struct{ NodeID, LocalNodeState string }

type infoRegistries struct {
	InsecureRegistryCIDRs []string
	IndexConfigs          map[string]infoIndex
	Mirrors               []string
}

type infoIndex struct {
	Name             string
	Mirrors          []string
	Secure, Official bool
}

type infoClient struct {
	Debug    bool
	Version  string
	Context  string
	Plugins  []string
	Warnings []string
}

func (a *App) infoCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "info [OPTIONS]",
		Short: "Show what the store holds and what this machine can do",
		Example: `  strake info
  strake info --format '{{.OSType}}/{{.Architecture}}'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.info(cmd.Context(), format) },
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", `Print as "json" or with a Go TEMPLATE`)
	return a.spelled(cmd, "system info", "info")
}

func (a *App) info(ctx context.Context, format string) error {
	s, err := a.Store()
	if err != nil {
		return err
	}
	info, err := a.gatherInfo(ctx, s)
	if err != nil {
		return err
	}
	if format == "" {
		return a.printInfo(info)
	}
	return a.printTemplate("", format, info, "system.dockerInfo")
}

func (a *App) gatherInfo(ctx context.Context, s *store.Store) (*systemInfo, error) {
	info := &systemInfo{
		Driver:         "overlayfs",
		Plugins:        infoPlugins{Volume: []string{"local"}, Network: []string{"host", "null"}, Log: []string{}},
		OomKillDisable: false, LoggingDriver: "none", CgroupDriver: "cgroupfs", CgroupVersion: cgroupVersion(),
		OSType: "linux", NCPU: runtime.NumCPU(), DockerRootDir: s.Root(), ServerVersion: Version,
		NGoroutines: runtime.NumGoroutine(), Debug: a.flags.debug,
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig: infoRegistries{InsecureRegistryCIDRs: []string{"::1/128", "127.0.0.0/8"}, Mirrors: []string{},
			IndexConfigs: map[string]infoIndex{"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true}}},
		HTTPProxy: proxy("HTTP_PROXY"), HTTPSProxy: proxy("HTTPS_PROXY"), NoProxy: proxy("NO_PROXY"),
		Labels: []string{}, Runtimes: map[string]infoRuntime{"strake": {Path: "strake"}}, DefaultRuntime: "strake",
		Swarm:           infoSwarm{LocalNodeState: "inactive"},
		SecurityOptions: []string{"name=seccomp,profile=builtin"},
		ClientInfo:      infoClient{Debug: a.flags.debug, Version: Version, Context: "default", Plugins: []string{}},
	}
	if os.Geteuid() != 0 || a.entered {
		info.SecurityOptions = append(info.SecurityOptions, "name=rootless")
	}
	limits := info.CgroupVersion == "1" && os.Geteuid() == 0
	info.MemoryLimit, info.SwapLimit, info.CpuCfsPeriod, info.CpuCfsQuota = limits, limits, limits, limits
	info.CPUShares, info.CPUSet, info.PidsLimit = limits, limits, limits
	info.machine()
	containers, err := container.In(s).List(ctx)
	if err != nil {
		return nil, daemon(err)
	}
	for _, c := range containers {
		info.Containers++
		if c.State == container.Running {
			info.ContainersRunning++
		} else {
			info.ContainersStopped++
		}
	}
	images, err := s.Images(ctx)
	info.Images = len(images)
	return info, daemon(err)
}

// machine fills in what the kernel and the distribution say.
func (i *systemInfo) machine() {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		i.KernelVersion, i.Architecture = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
	}
	var mem unix.Sysinfo_t
	if unix.Sysinfo(&mem) == nil {
		i.MemTotal = int64(uint64(mem.Totalram) * uint64(mem.Unit))
	}
	var fs unix.Statfs_t
	if unix.Statfs(i.DockerRootDir, &fs) == nil {
		names := map[int64]string{unix.EXT4_SUPER_MAGIC: "extfs", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
			unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs"}
		i.DriverStatus = [][2]string{{"Backing Filesystem", cmp.Or(names[int64(fs.Type)], "<unknown>")}}
	}
	i.Name, _ = os.Hostname()
	release := osRelease()
	i.OperatingSystem, i.OSVersion = cmp.Or(release["PRETTY_NAME"], "Linux"), release["VERSION_ID"]
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err == nil {
		i.IPv4Forwarding = strings.TrimSpace(string(b)) == "1"
	}
}

// osRelease reads /etc/os-release; nothing where there is none.
func osRelease() map[string]string {
	values := map[string]string{}
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return values
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		if plain, err := strconv.Unquote(value); err == nil {
			value = plain
		}
		values[key] = value
	}
	return values
}

func cgroupVersion() string {
	var fs unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return "2"
	}
	return "1"
}

// proxy is a setting for proxies without the password in it.
func proxy(name string) string {
	value := cmp.Or(os.Getenv(name), os.Getenv(strings.ToLower(name)))
	if scheme, rest, ok := strings.Cut(value, "://"); ok {
		if _, host, secret := strings.Cut(rest, "@"); secret {
			return scheme + "://xxxxx:xxxxx@" + host
		}
	}
	return value
}

// printInfo prints it in docker's layout.
func (a *App) printInfo(i *systemInfo) error {
	var b strings.Builder
	line := func(label string, value any) {
		if value != "" {
			fmt.Fprintf(&b, "%s %v\n", label, value)
		}
	}
	b.WriteString("Client:\n")
	line(" Version:   ", i.ClientInfo.Version)
	line(" Context:   ", i.ClientInfo.Context)
	line(" Debug Mode:", i.ClientInfo.Debug)
	b.WriteString("\nServer:\n")
	line(" Containers:", i.Containers)
	line("  Running:", i.ContainersRunning)
	line("  Paused:", i.ContainersPaused)
	line("  Stopped:", i.ContainersStopped)
	line(" Images:", i.Images)
	line(" Server Version:", i.ServerVersion)
	line(" Storage Driver:", i.Driver)
	for _, s := range i.DriverStatus {
		line("  "+s[0]+":", s[1])
	}
	line(" Logging Driver:", i.LoggingDriver)
	line(" Cgroup Driver:", i.CgroupDriver)
	line(" Cgroup Version:", i.CgroupVersion)
	b.WriteString(" Plugins:\n")
	line("  Volume:", strings.Join(i.Plugins.Volume, " "))
	line("  Network:", strings.Join(i.Plugins.Network, " "))
	line(" Swarm:", i.Swarm.LocalNodeState)
	line(" Runtimes:", i.DefaultRuntime)
	line(" Default Runtime:", i.DefaultRuntime)
	b.WriteString(" Security Options:\n")
	for _, o := range i.SecurityOptions {
		name, profile, _ := strings.Cut(strings.TrimPrefix(o, "name="), ",profile=")
		line(" ", name)
		line("   Profile:", profile)
	}
	line(" Kernel Version:", i.KernelVersion)
	line(" Operating System:", i.OperatingSystem)
	line(" OSType:", i.OSType)
	line(" Architecture:", i.Architecture)
	line(" CPUs:", i.NCPU)
	line(" Total Memory:", units.BytesSize(float64(i.MemTotal)))
	line(" Name:", i.Name)
	line(" Docker Root Dir:", i.DockerRootDir)
	line(" Debug Mode:", i.Debug)
	line(" HTTP Proxy:", i.HTTPProxy)
	line(" HTTPS Proxy:", i.HTTPSProxy)
	line(" No Proxy:", i.NoProxy)
	line(" Experimental:", i.ExperimentalBuild)
	b.WriteString(" Insecure Registries:\n")
	for _, cidr := range i.RegistryConfig.InsecureRegistryCIDRs {
		line(" ", cidr)
	}
	line(" Live Restore Enabled:", i.LiveRestoreEnabled)
	b.WriteByte('\n')
	text := b.String()
	if a.name != "docker" {
		text = strings.Replace(text, " Docker Root Dir:", " Root Dir:", 1)
	}
	_, err := a.Out.Write([]byte(text))
	return err
}
