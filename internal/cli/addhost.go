package cli

import (
	"fmt"
	"net"
	"strings"

	"github.com/strake-project/strake/internal/sandbox"
)

const hostGateway = "host-gateway"

// splitHost reads HOST:IP or HOST=IP of --add-host; brackets around the address
// are left out.
func splitHost(text string) (host, ip string, ok bool) {
	host, ip, ok = strings.Cut(text, "=")
	if !ok {
		host, ip, ok = strings.Cut(text, ":")
	}
	if inner, open := strings.CutPrefix(ip, "["); open && strings.HasSuffix(inner, "]") {
		ip = strings.TrimSuffix(inner, "]")
	}
	return host, ip, ok && host != "" && !strings.Contains(host, ":") && ip != ""
}

// gateway is the machine's address for a container in that network.
func gateway(text string, network sandbox.Network) (string, error) {
	if network == sandbox.User {
		return "", fmt.Errorf("host-gateway in %q: a network of its own does not lead to the machine; use --network host", text)
	}
	return "127.0.0.1", nil // on the machine's own network
}

func isIP(s string) bool { return net.ParseIP(s) != nil }

// buildHosts is --add-host as docker's Dockerfile frontend takes it.
func buildHosts(list []string, network sandbox.Network) (string, error) {
	hosts := make([]string, len(list))
	for i, text := range list {
		host, ip, ok := splitHost(text)
		if ip == hostGateway {
			var err error
			if ip, err = gateway(text, network); err != nil {
				return "", err
			}
		}
		if !ok || !isIP(ip) {
			return "", fmt.Errorf("invalid host %s", text)
		}
		hosts[i] = host + "=" + ip
	}
	return strings.Join(hosts, ","), nil
}
