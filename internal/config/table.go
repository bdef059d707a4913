package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// setting is one row of the table.
type setting struct {
	// name is the flag's name and the file's key.
	name string
	// fallback is the default as a flag would say it; shown is how the documents say it if that is not the same.
	fallback, shown string
	// help says what it is for; allowed what it may be.
	help, allowed string
	// file says that the value is the name of a file.
	file bool
	// set checks a value and keeps it.
	set func(c *Config, value string) error
}

// env is the setting's environment variable.
func (s setting) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

// table returns all settings, in the order in which the documents have them.
func table() []setting {
	return slices.Concat(siteSettings(), lanSettings(), storeSettings(), localSettings(), pageSettings(), logSettings())
}

// siteSettings say who this node is.
func siteSettings() []setting {
	return []setting{
		{
			name: "underlay", shown: "the default route's interface",
			help:    "address or interface that VXLAN packets use; also the node's address for its peers",
			allowed: "an address of this host or the name of an interface",
			set:     func(c *Config, v string) error { c.Underlay = v; return checkUnderlay(v) },
		},
		{
			name: "node", shown: "the host name",
			help:    "this node's name in the cluster",
			allowed: "1 to 63 letters, digits, '_', '.' or '-', beginning with a letter or digit; unique in the cluster",
			set:     setNode,
		},
		{
			name: "cluster", fallback: "default",
			help:    "name of the cluster, so that several can share one store",
			allowed: "1 to 63 letters, digits, '_', '.' or '-', beginning with a letter or digit",
			set:     func(c *Config, v string) error { c.Cluster = v; return store.CheckName("cluster", v) },
		},
		{
			name: "vxlan-port", fallback: strconv.Itoa(int(vxlan.DefaultPort)),
			help:    "UDP port of networks created on this node without --opt port",
			allowed: "1..65535",
			set:     func(c *Config, v string) (err error) { c.VXLANPort, err = port(v); return err },
		},
		{
			name: "encrypted-port", fallback: strconv.Itoa(int(vxlan.EncryptedPort)),
			help:    "UDP port of encrypted networks created on this node; the same for all of a cluster, and no other network's",
			allowed: "1..65535, but not 4789",
			set:     func(c *Config, v string) (err error) { c.EncryptedPort, err = port(v); return err },
		},
		{
			name: "esp-in-udp", fallback: "0",
			help:    "UDP port for ESP-in-UDP, where a firewall between nodes lets no ESP pass; 0 means plain ESP",
			allowed: "0..65535, none of the ports above",
			set: func(c *Config, v string) (err error) {
				if c.ESPInUDP = 0; v != "0" {
					c.ESPInUDP, err = port(v)
				}
				return err
			},
		},
	}
}

// lanSettings say what this node calls the LANs that it is in.
func lanSettings() []setting {
	return []setting{
		{
			name:    "parents",
			shown:   "none",
			help:    "this node's interfaces by the names that --opt parent uses, since hosts call them differently",
			allowed: "NAME=INTERFACE or NAME=SUBNET, several separated by commas",
			set:     setParents,
		},
	}
}

func setParents(c *Config, v string) error {
	c.Parents = nil
	for _, pair := range strings.FieldsFunc(v, func(r rune) bool { return r == ',' }) {
		name, to, found := strings.Cut(pair, "=")
		if !found || name == "" || to == "" || strings.ContainsAny(name, " ./") || c.Parents[name] != "" {
			return fmt.Errorf("%q: want NAME=INTERFACE, each name once and without dot or slash", pair)
		}
		if _, err := netip.ParsePrefix(to); err != nil && !interfaceName.MatchString(to) {
			return fmt.Errorf("%q is neither an interface's name nor a subnet", to)
		}
		if c.Parents == nil {
			c.Parents = map[string]string{}
		}
		c.Parents[name] = to
	}
	return nil
}

// storeSettings say where the cluster's records are.
func storeSettings() []setting {
	return []setting{
		{
			name: "store", shown: "the embedded etcd",
			help:    "URLs of an etcd elsewhere: another node's store-listen, or one of your own",
			allowed: "http://HOST:PORT or https://HOST:PORT, several separated by commas",
			set:     func(c *Config, v string) (err error) { c.Store, err = urls(v, "http", "https"); return err },
		},
		{
			name: "store-listen", shown: "only this node",
			help:    "URLs at which the embedded etcd serves other nodes",
			allowed: "https://ADDRESS:PORT, several separated by commas; needs the three files below",
			set:     func(c *Config, v string) (err error) { c.StoreListen, err = urls(v, "https"); return err },
		},
		{
			name: "store-ca", help: "PEM file with the CA that signed the store's and the nodes' certificates",
			allowed: "a readable file",
			file:    true,
			set:     func(c *Config, v string) error { c.StoreCA = v; return readable(v) },
		},
		{
			name: "store-cert", help: "PEM file with this node's certificate for the store",
			allowed: "a readable file",
			file:    true,
			set:     func(c *Config, v string) error { c.StoreCert = v; return readable(v) },
		},
		{
			name: "store-key", help: "PEM file with the key of store-cert",
			allowed: "a readable file",
			file:    true,
			set:     func(c *Config, v string) error { c.StoreKey = v; return readable(v) },
		},
	}
}

// localSettings say what the daemon uses on its host.
func localSettings() []setting {
	return []setting{
		{
			name: "data-dir", fallback: "/var/lib/netdriver",
			help:    "the node's identity and the embedded etcd's data; must outlive a reboot",
			allowed: "an absolute path",
			set:     func(c *Config, v string) error { c.DataDir = v; return absolute(v) },
		},
		{
			name: "socket-dir", fallback: "/run/docker/plugins",
			help:    "where Docker looks for plugin sockets",
			allowed: "an absolute path",
			set:     func(c *Config, v string) error { c.SocketDir = v; return absolute(v) },
		},
		{
			name: "run-dir", fallback: "/run/netdriver",
			help:    "the local socket of inspect, the lock and the network namespace",
			allowed: "an absolute path",
			set:     func(c *Config, v string) error { c.RunDir = v; return absolute(v) },
		},
		{
			name: "peer-port", fallback: "4792",
			help:    "TCP port at which nodes of a cluster ask each other for traces and captures, with mutual TLS; the same on all of them, 0 means never",
			allowed: "0..65535",
			set: func(c *Config, v string) (err error) {
				if c.PeerPort = 0; v != "0" {
					c.PeerPort, err = port(v)
				}
				return err
			},
		},
		{
			name: "answer-captures", fallback: "true",
			help:    "whether `netdriver capture` on other nodes gets the frames of this node's containers, at the port above",
			allowed: "true or false",
			set: func(c *Config, v string) error {
				if c.AnswerCaptures = v == "true"; v != "true" && v != "false" {
					return errNot
				}
				return nil
			},
		},
		{
			name: "docker-host", fallback: "unix:///var/run/docker.sock",
			help:    "the Docker engine, asked which networks and containers still exist; empty means it is not asked",
			allowed: "unix:///PATH, tcp://HOST:PORT or nothing",
			set:     setDockerHost,
		},
		{
			name: "metrics", shown: "off",
			help:    "address that serves Prometheus metrics at /metrics",
			allowed: "ADDRESS:PORT or :PORT",
			set:     setMetrics,
		},
	}
}

// pageSettings say where the page is served, and to whom.
func pageSettings() []setting {
	return []setting{
		{
			name: "ui", shown: "off",
			help:    "address that serves the page about the cluster",
			allowed: "127.0.0.1:PORT; with ui-cert and ui-key any ADDRESS:PORT of this host",
			set:     setUI,
		},
		{
			name: "ui-cert", help: "PEM file with the page's certificate: with it, the page is served by TLS",
			allowed: "a readable file",
			file:    true,
			set:     func(c *Config, v string) error { c.UICert = v; return readable(v) },
		},
		{
			name: "ui-key", help: "PEM file with the key of ui-cert",
			allowed: "a readable file",
			file:    true,
			set:     func(c *Config, v string) error { c.UIKey = v; return readable(v) },
		},
		{
			name: "ui-ca", shown: "everybody", help: "PEM file with the CA whose certificates a browser must show to see the page",
			allowed: "a readable file",
			file:    true,
			set:     func(c *Config, v string) error { c.UICA = v; return readable(v) },
		},
	}
}

// logSettings say what is logged.
func logSettings() []setting {
	return []setting{
		{
			name: "log-level", fallback: "info",
			help:    "how much is logged",
			allowed: "debug, info, warn or error",
			set:     setLogLevel,
		},
		{
			name: "log-format", fallback: "text",
			help:    "how it is logged",
			allowed: "text or json",
			set:     setLogFormat,
		},
	}
}

// errNot is the reason where "want …" already says everything.
var errNot = errors.New("it is none of these")

var interfaceName = regexp.MustCompile(`^[^\s/]{1,15}$`)

// checkUnderlay says whether v can be an address or an interface (the kernel's dev_valid_name: 1 to 15 bytes without
// spaces and slashes); whether this host has it is found out later.
func checkUnderlay(v string) error {
	if a, err := netip.ParseAddr(v); err == nil && (a.IsUnspecified() || a.IsMulticast() || a.Zone() != "") {
		return errors.New("not an address that a host can have here")
	} else if err != nil && v != "" && !interfaceName.MatchString(v) {
		return errNot
	}
	return nil
}

func setNode(c *Config, v string) error {
	if v == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("no name given and no host name: %w", err)
		}
		v = host
	}
	c.Node = v
	return store.CheckName("node", v)
}

func port(v string) (uint16, error) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err == nil && n == 0 {
		err = errNot
	}
	return uint16(n), err
}

func setDockerHost(c *Config, v string) error {
	c.DockerHost = v
	if u, err := url.Parse(v); v != "" && (err != nil || u.Scheme != "unix" && u.Scheme != "tcp") {
		return errNot
	}
	return nil
}

func setMetrics(c *Config, v string) error {
	c.Metrics = v
	if v == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(v)
	if err != nil {
		return err
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err
}

func setUI(c *Config, v string) error {
	c.UI = v
	if v == "" {
		return nil
	}
	host, p, err := net.SplitHostPort(v)
	if err != nil {
		return err
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
		return fmt.Errorf("%q is not an address", host)
	}
	_, err = port(p)
	return err
}

func setLogLevel(c *Config, v string) error {
	switch v {
	case "debug", "info", "warn", "error":
		return c.LogLevel.UnmarshalText([]byte(v))
	}
	c.LogLevel = slog.LevelInfo
	return errNot
}

func setLogFormat(c *Config, v string) error {
	if c.LogFormat = v; v != "text" && v != "json" {
		return errNot
	}
	return nil
}

// urls reads a list of URLs of a host and port with one of the schemes; "" is none.
func urls(v string, schemes ...string) ([]string, error) {
	if v == "" {
		return nil, nil
	}
	var out []string
	for part := range strings.SplitSeq(v, ",") {
		part = strings.TrimRight(strings.TrimSpace(part), "/")
		u, err := url.Parse(part)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(schemes, u.Scheme) || u.Hostname() == "" || u.Port() == "" || u.Path != "" || u.User != nil {
			return nil, fmt.Errorf("%q is none", part)
		}
		out = append(out, part)
	}
	return out, nil
}

// readable says whether v names a file that can be opened; "" is no file.
func readable(v string) error {
	if v == "" {
		return nil
	}
	f, err := os.Open(v)
	if err != nil {
		return err
	}
	return f.Close()
}

func absolute(v string) error {
	if !filepath.IsAbs(v) {
		return errors.New("it is not absolute")
	}
	return nil
}
