package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/strake-project/strake/internal/sandbox"
)

func (f *runFlags) parseMounts(spec *sandbox.Spec) error {
	for _, parse := range []struct {
		list []string
		one  func(string) (sandbox.Mount, error)
	}{{f.volumes, parseVolume}, {f.mounts, parseMount}, {f.tmpfs, parseTmpfs}} {
		for _, text := range parse.list {
			m, err := parse.one(text)
			if err != nil {
				return err
			}
			for _, other := range spec.Mounts {
				if filepath.Clean(other.Destination) == filepath.Clean(m.Destination) {
					return refused(fmt.Errorf("Duplicate mount point: %s", m.Destination))
				}
			}
			spec.Mounts = append(spec.Mounts, m)
		}
	}
	return nil
}

// parseVolume reads -v SOURCE:DESTINATION[:OPTIONS].
func parseVolume(text string) (sandbox.Mount, error) {
	m := sandbox.Mount{Type: "bind", Recursive: true}
	parts := strings.Split(text, ":")
	if len(parts) == 3 {
		for o := range strings.SplitSeq(parts[2], ",") {
			switch o {
			case "ro":
				m.ReadOnly = true
			case "rw", "z", "Z", "rprivate", "private", "consistent", "cached", "delegated", "nocopy":
				// What we do anyway; z and Z are for SELinux, which we do not use.
			case "shared", "rshared", "slave", "rslave":
				return m, refused(fmt.Errorf("mount propagation %s is not supported", o))
			default:
				return m, refused(fmt.Errorf("invalid mode: %s", parts[2]))
			}
		}
	}
	switch {
	case len(parts) > 3:
		return m, refused(fmt.Errorf("invalid volume specification: '%s'", text))
	case len(parts) == 1:
		return m, refused(fmt.Errorf("anonymous volume %s is not supported yet: name a directory of the machine, or use --tmpfs", text))
	}
	m.Source, m.Destination = parts[0], parts[1]
	if m.Source == "." || m.Source == ".." || strings.HasPrefix(m.Source, "./") || strings.HasPrefix(m.Source, "../") {
		abs, err := filepath.Abs(m.Source)
		if err != nil {
			return m, err
		}
		m.Source = abs
	}
	if !filepath.IsAbs(m.Source) {
		return m, refused(fmt.Errorf("named volume %q is not supported yet: begin a directory's path with / or ./", m.Source))
	}
	if !filepath.IsAbs(m.Destination) {
		return m, refused(fmt.Errorf("invalid volume specification: '%s': invalid mount config for type \"bind\": invalid mount path: '%s' mount path must be absolute", text, m.Destination))
	}
	return m, nil
}

// makeSources makes the directories of -v that are not there, as docker does,
// once there is an image to run.
func makeSources(mounts []sandbox.Mount) error {
	for _, m := range mounts {
		if m.Type != "bind" {
			continue
		}
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			if _, statErr := os.Stat(m.Source); statErr != nil {
				return refused(fmt.Errorf("error while creating mount source path '%s': %w", m.Source, err))
			}
		}
	}
	return nil
}

// parseMount reads --mount type=…,src=…,dst=….
func parseMount(text string) (sandbox.Mount, error) {
	m := sandbox.Mount{Type: "volume", Recursive: true}
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("invalid argument %q for \"--mount\" flag: %w", text, fmt.Errorf(format, args...))
	}
	options := map[string]bool{} // the kinds of mount that have options of their own here
	for field := range strings.SplitSeq(text, ",") {
		key, value, set := strings.Cut(field, "=")
		var err error
		key = strings.ToLower(key)
		if kind, _, own := strings.Cut(key, "-"); own {
			options[kind] = true
		}
		switch key {
		case "type":
			m.Type = strings.ToLower(value)
		case "source", "src":
			m.Source = value
		case "target", "destination", "dst":
			m.Destination = value
		case "readonly", "ro":
			m.ReadOnly = true
			if set {
				m.ReadOnly, err = strconv.ParseBool(value)
			}
		case "tmpfs-size":
			m.Size, err = units.RAMInBytes(value)
		case "tmpfs-mode":
			var mode uint64
			mode, err = strconv.ParseUint(value, 8, 32)
			m.Mode = uint32(mode)
		case "bind-propagation":
			if value != "rprivate" && value != "private" {
				return m, refused(fmt.Errorf("mount propagation %s is not supported", value))
			}
		case "bind-recursive":
			switch value {
			case "enabled":
			case "disabled":
				m.Recursive = false
			default:
				return m, refused(fmt.Errorf("bind-recursive=%s is not supported", value))
			}
		default:
			return m, invalid("unknown option '%s' in '%s'", key, field)
		}
		if err != nil {
			return m, invalid("invalid value for %s: %s", key, value)
		}
	}
	for _, kind := range []string{"bind", "tmpfs"} {
		if options[kind] && m.Type != kind {
			return m, invalid("cannot mix '%s-*' options with mount type '%s'", kind, m.Type)
		}
	}
	switch {
	case m.Destination == "":
		return m, invalid("target is required")
	case !filepath.IsAbs(m.Destination):
		return m, refused(fmt.Errorf("invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", m.Type, m.Destination))
	case m.Type == "tmpfs":
		if m.Source != "" {
			return m, refused(errors.New(`invalid mount config for type "tmpfs": field Source must not be specified`))
		}
		return m, nil
	case m.Type != "bind":
		return m, refused(fmt.Errorf("mount type %s is not supported yet: use bind or tmpfs", m.Type))
	}
	if strings.HasPrefix(m.Source, ".") {
		m.Source, _ = filepath.Abs(m.Source)
	}
	if !filepath.IsAbs(m.Source) {
		return m, refused(fmt.Errorf("invalid mount config for type \"bind\": invalid mount path: '%s' mount path must be absolute", m.Source))
	}
	if _, err := os.Stat(m.Source); err != nil {
		return m, refused(fmt.Errorf("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source))
	}
	return m, nil
}

// parseTmpfs reads --tmpfs PATH[:OPTIONS].
func parseTmpfs(text string) (sandbox.Mount, error) {
	at, options, _ := strings.Cut(text, ":")
	m := sandbox.Mount{Type: "tmpfs", Destination: at}
	if !filepath.IsAbs(at) {
		return m, refused(fmt.Errorf("invalid mount path: '%s' mount path must be absolute", at))
	}
	if options == "" {
		return m, nil
	}
	for o := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(o, "=")
		var err error
		switch key {
		case "rw", "noexec", "nosuid", "nodev":
		case "ro":
			m.ReadOnly = true
		case "size":
			m.Size, err = units.RAMInBytes(value)
		case "mode":
			var mode uint64
			mode, err = strconv.ParseUint(value, 8, 32)
			m.Mode = uint32(mode)
		default:
			err = errors.New("not supported")
		}
		if err != nil {
			return m, refused(fmt.Errorf("invalid tmpfs option %q", o))
		}
	}
	return m, nil
}
