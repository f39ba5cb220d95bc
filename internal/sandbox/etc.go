package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// generate writes /etc/hosts, /etc/hostname and /etc/resolv.conf into the
// workshop and clones each for mounting. They are never part of a layer.
func (b *box) generate() ([]*pending, error) {
	hostname := b.spec.Hostname
	if hostname == "" {
		hostname, _ = os.Hostname() // "" is a name too
	}
	hosts := b.spec.Hosts
	if hosts == nil && b.spec.Step {
		hosts = []byte("127.0.0.1\tlocalhost " + hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	} else if hosts == nil {
		hosts = b.hosts(hostname)
	}
	for _, extra := range b.spec.ExtraHosts {
		name, ip, ok := strings.Cut(extra, ":")
		if !ok || name == "" {
			return nil, fmt.Errorf("bad format for add-host: %q", extra)
		}
		hosts = append(bytes.Clone(hosts), (strings.Trim(ip, "[]") + "\t" + name + "\n")...)
	}
	resolv := b.spec.ResolvConf
	if resolv == nil && b.spec.Network == User {
		resolv = b.spec.UserNet.ResolvConf
	}
	if resolv == nil {
		resolv, _ = os.ReadFile("/etc/resolv.conf") // none is as good as an empty one
	}
	var made []*pending
	for _, f := range []struct {
		name    string
		content []byte
	}{{"hosts", hosts}, {"hostname", []byte(hostname + "\n")}, {"resolv.conf", resolv}} {
		if b.spec.Step && f.name == "hostname" {
			continue
		}
		if err := os.WriteFile(f.name, f.content, 0o644); err != nil {
			return nil, fmt.Errorf("write /etc/%s: %w", f.name, unwrapPath(err))
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, f.name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("clone /etc/%s: %w", f.name, err)
		}
		made = append(made, b.hold(fd, "/etc/"+f.name, false))
		if b.spec.Step {
			attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
				return nil, fmt.Errorf("make /etc/%s read-only: %w", f.name, err)
			}
		}
	}
	return made, nil
}

// hosts is the machine's own file on the machine's network, else docker's.
func (b *box) hosts(hostname string) []byte {
	if b.spec.Network != None && b.spec.Network != User {
		if data, err := os.ReadFile("/etc/hosts"); err == nil {
			return data
		}
	}
	return []byte("127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n" +
		"127.0.0.1\t" + hostname + "\n")
}
