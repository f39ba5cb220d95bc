package cli

import (
	"cmp"
	"context"
	"errors"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/sandbox"
)

// containerObject is what inspect prints of a container: of docker's API
// (GET /containers/NAME/json) what is true without a daemon, in its order and
// under its names.
type containerObject struct {
	ID              string `json:"Id"`
	Created         time.Time
	Path            string
	Args            []string
	State           containerState
	Image           oci.Digest
	LogPath         string
	Name            string
	RestartCount    int
	Driver          string
	Platform        string
	MountLabel      string
	ProcessLabel    string
	AppArmorProfile string
	ExecIDs         []string
	HostConfig      hostConfig
	GraphDriver     graphDriver
	SizeRw          *int64 `json:",omitempty"`
	SizeRootFs      *int64 `json:",omitempty"`
	Mounts          []mountPoint
	Config          containerConfig
	NetworkSettings networkSettings
}

type containerState struct {
	Status     string
	Running    bool
	Paused     bool
	Restarting bool
	OOMKilled  bool
	Dead       bool
	Pid        int
	ExitCode   int
	Error      string
	StartedAt  time.Time
	FinishedAt time.Time
}

// hostConfig is what run was told about the machine.
// What strake has no flag for is what docker shows where it was not given.
type hostConfig struct {
	Binds           []string
	ContainerIDFile string
	LogConfig       logConfig
	NetworkMode     string
	PortBindings    map[string][]struct{}
	RestartPolicy   restartPolicy
	AutoRemove      bool
	VolumeDriver    string
	VolumesFrom     []string
	ConsoleSize     [2]int
	CapAdd          []string
	CapDrop         []string
	CgroupnsMode    string
	hostNames
	GroupAdd        []string
	IpcMode         string
	Cgroup          string
	Links           []string
	OomScoreAdj     int
	PidMode         string
	Privileged      bool
	PublishAllPorts bool
	ReadonlyRootfs  bool
	SecurityOpt     []string
	UTSMode         string
	UsernsMode      string
	ShmSize         int64
	Runtime         string
	Isolation       string
	hostLimits
}

type hostNames struct {
	Dns        []string
	DnsOptions []string
	DnsSearch  []string
	ExtraHosts []string
}

type hostLimits struct {
	CpuShares            uint64
	Memory               int64
	NanoCpus             int64
	CgroupParent         string
	BlkioWeight          int
	BlkioWeightDevice    []struct{}
	BlkioDeviceReadBps   []struct{}
	BlkioDeviceWriteBps  []struct{}
	BlkioDeviceReadIOps  []struct{}
	BlkioDeviceWriteIOps []struct{}
	CpuPeriod            int64
	CpuQuota             int64
	CpuRealtimePeriod    int64
	CpuRealtimeRuntime   int64
	CpusetCpus           string
	CpusetMems           string
	Devices              []struct{}
	DeviceCgroupRules    []string
	DeviceRequests       []struct{}
	MemoryReservation    int64
	MemorySwap           int64
	MemorySwappiness     *int64
	OomKillDisable       bool
	PidsLimit            *int64
	Ulimits              []sandbox.Rlimit
	CpuCount             int64
	CpuPercent           int64
	IOMaximumIOps        int64
	IOMaximumBandwidth   int64
}

type logConfig struct {
	Type   string
	Config map[string]string
}

type restartPolicy struct {
	Name              string
	MaximumRetryCount int
}

type mountPoint struct {
	Type        string
	Name        string `json:",omitempty"`
	Source      string
	Destination string
	Driver      string `json:",omitempty"`
	Mode        string
	RW          bool
	Propagation string
}

type containerConfig struct {
	Hostname     string
	Domainname   string
	User         string
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	Env          []string
	Cmd          []string
	Healthcheck  *dockerspec.HealthcheckConfig `json:",omitempty"`
	Image        string
	Volumes      map[string]struct{}
	WorkingDir   string
	Entrypoint   []string
	OnBuild      []string
	Labels       map[string]string
	StopSignal   string   `json:",omitempty"`
	Shell        []string `json:",omitempty"`
}

type networkSettings struct {
	Ports       map[string][]struct{}
	Gateway     string
	IPAddress   string
	IPPrefixLen int
	MacAddress  string
	Networks    map[string]networkEndpoint
}

type networkEndpoint struct {
	NetworkID, EndpointID, Gateway, IPAddress string
	IPPrefixLen                               int
	MacAddress                                string
}

// errEmptyName is what docker's client says of "" where a container is wanted,
// which a script's unset variable was.
var errEmptyName = errors.New("invalid container name or ID: value is empty")

func (a *App) containerInspectCommand() *cobra.Command {
	o := inspectOptions{kind: "container"}
	cmd := &cobra.Command{
		Use:     "inspect [OPTIONS] CONTAINER [CONTAINER...]",
		Short:   "Show all that is known of one or more containers",
		Example: "  strake container inspect -f '{{.State.ExitCode}}' box",
		Args:    minArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.inspect(cmd.Context(), args, &o) },
	}
	cmd.Flags().StringVarP(&o.format, "format", "f", "", `Print as "json" or with a Go TEMPLATE`)
	cmd.Flags().BoolVarP(&o.size, "size", "s", false, "Show also how much it has written")
	return cmd
}

// inspectContainer looks a container up; oci.ErrNotFound if there is none.
func inspectContainer(ctx context.Context, s *store.Store, name string, size bool) (any, error) {
	c, err := container.In(s).Find(ctx, name)
	if err != nil {
		return nil, daemon(err)
	}
	// Its image may be damaged, and a container of an older store's kind may
	// have lost it: what is known is shown all the same.
	conf := &oci.Image{}
	img, err := s.Find(ctx, string(c.ImageID))
	if err == nil {
		if found, err := imageConfig(ctx, s, img.Manifest); err == nil {
			conf = found
		}
	} else if !isNotFound(err) && !errors.Is(err, oci.ErrCorrupt) {
		return nil, daemon(err)
	}
	o := &containerObject{
		ID: c.ID, Created: c.Created.UTC(), Args: []string{}, Image: c.ImageID, Name: "/" + c.Name, Driver: "overlayfs", Platform: "linux",
		State: containerState{
			Status: string(c.State), Running: c.State == container.Running, OOMKilled: c.OOM,
			Pid: c.Pid, ExitCode: c.ExitCode, StartedAt: c.Started.UTC(), FinishedAt: c.Finished.UTC(),
		},
		GraphDriver: graphDriver{Name: "overlayfs"},
		HostConfig:  hostConfigOf(c),
		Config:      containerConfigOf(c, conf),
		Mounts:      []mountPoint{},
		NetworkSettings: networkSettings{Ports: map[string][]struct{}{},
			Networks: map[string]networkEndpoint{c.Network: {}}},
	}
	if len(c.Command) > 0 {
		o.Path, o.Args = c.Command[0], c.Command[1:]
	}
	for _, m := range c.Mounts {
		p := mountPoint{Type: m.Type, Source: m.Source, Destination: m.Destination, RW: !m.ReadOnly}
		if m.Type == "bind" {
			p.Propagation = "rprivate"
		}
		o.Mounts = append(o.Mounts, p)
	}
	if size {
		written := container.In(s).Written(c)
		whole := written
		if img != nil {
			whole += img.Size
		}
		o.SizeRw, o.SizeRootFs = &written, &whole
	}
	return o, nil
}

func hostConfigOf(c *container.Container) hostConfig {
	h, l := &c.Host, &c.Host.Limits
	o := hostConfig{
		LogConfig: logConfig{Type: "none", Config: map[string]string{}}, NetworkMode: c.Network,
		PortBindings: map[string][]struct{}{}, RestartPolicy: restartPolicy{Name: "no"}, AutoRemove: c.Remove,
		CapAdd: h.CapAdd, CapDrop: h.CapDrop, CgroupnsMode: "host", GroupAdd: h.Groups, IpcMode: "private",
		hostNames:  hostNames{Dns: []string{}, DnsOptions: []string{}, DnsSearch: []string{}, ExtraHosts: h.ExtraHosts},
		Privileged: h.Privileged, ReadonlyRootfs: h.ReadOnly, SecurityOpt: h.SecurityOpt, ShmSize: cmp.Or(h.ShmSize, 64<<20), Runtime: "strake",
		hostLimits: hostLimits{
			CpuShares: l.CPUShares, Memory: l.Memory, MemorySwap: l.MemorySwap, CgroupParent: l.CgroupParent,
			CpuPeriod: l.CPUPeriod, CpuQuota: l.CPUQuota, CpusetCpus: l.CPUSetCPUs, CpusetMems: l.CPUSetMems,
			BlkioWeightDevice: []struct{}{}, BlkioDeviceReadBps: []struct{}{}, BlkioDeviceWriteBps: []struct{}{},
			BlkioDeviceReadIOps: []struct{}{}, BlkioDeviceWriteIOps: []struct{}{}, Devices: []struct{}{},
			Ulimits: append([]sandbox.Rlimit{}, h.Ulimits...),
		},
	}
	if l.Pids != 0 {
		o.PidsLimit = &l.Pids
	}
	for _, m := range c.Mounts {
		if m.Type == "bind" {
			bind := m.Source + ":" + m.Destination
			if m.ReadOnly {
				bind += ":ro"
			}
			o.Binds = append(o.Binds, bind)
		}
	}
	return o
}

func containerConfigOf(c *container.Container, image *oci.Image) containerConfig {
	conf := &c.Configured(image).Config
	o := containerConfig{
		Hostname: c.Host.Hostname, User: conf.User, WorkingDir: conf.WorkingDir,
		AttachStdin: c.Host.OpenStdin, AttachStdout: true, AttachStderr: true,
		Tty: c.Host.Tty, OpenStdin: c.Host.OpenStdin, StdinOnce: c.Host.OpenStdin,
		ExposedPorts: conf.ExposedPorts, Env: conf.Env, Cmd: conf.Cmd, Healthcheck: conf.Healthcheck, Image: c.Image, Volumes: conf.Volumes,
		Entrypoint: conf.Entrypoint, OnBuild: conf.OnBuild, Labels: conf.Labels, StopSignal: conf.StopSignal, Shell: conf.Shell,
	}
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	return o
}
