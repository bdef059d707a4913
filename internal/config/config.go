// Package config reads the daemon's settings from flags, environment variables and a file. One table (table.go) is the
// source of all three and of docs/configuration.md.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/netdriver/netdriver/vxlan"
)

const (
	// DefaultFile is read if it exists and no other file is named.
	DefaultFile = "/etc/netdriver/config.yaml"

	envPrefix  = "NETDRIVER_"
	configFlag = "config"
)

// ErrSetting is wrapped by every error about a setting.
var ErrSetting = errors.New("bad setting")

// Config holds the settings, checked.
type Config struct {
	// Underlay is an address or interface name; empty means that it is chosen (package underlay).
	Underlay string
	Node     string
	Cluster  string
	// Store are the URLs of a store elsewhere; empty means the embedded one.
	Store []string
	// StoreListen are the URLs at which the embedded store serves other nodes.
	StoreListen                  []string
	StoreCA, StoreCert, StoreKey string
	DataDir, SocketDir, RunDir   string
	// Metrics is the address that serves /metrics; empty means nobody does.
	Metrics string
	// UI is the address that serves the page; empty means nobody does. UICert and UIKey are needed for one that others
	// reach; UICA signs those who may.
	UI                  string
	UICert, UIKey, UICA string
	LogLevel            slog.Level
	LogFormat           string
	// VXLANPort is the UDP port of networks that this node creates without choosing one.
	VXLANPort uint16
	// EncryptedPort is that of encrypted ones, ESPInUDP the port for ESP over UDP or 0.
	EncryptedPort, ESPInUDP uint16
	// Parents are this node's names for its interfaces: what --opt parent says → interface or subnet.
	Parents map[string]string
	// PeerPort is where nodes ask each other for traces; 0 means that they do not.
	PeerPort uint16
	// AnswerCaptures: other nodes may ask for the frames of this node's containers.
	AnswerCaptures bool
	// DockerHost is the URL of the Docker engine; empty means that it is not asked.
	DockerHost string
}

// AddFlags adds --config and the flags of the named settings, or of all if none is named.
func AddFlags(f *pflag.FlagSet, names ...string) {
	f.String(configFlag, "", "configuration `file` (YAML; "+DefaultFile+" if that exists)")
	for _, s := range table() {
		if wanted(s.name, names) {
			f.String(s.name, s.fallback, s.help)
		}
	}
}

func wanted(name string, names []string) bool { return len(names) == 0 || slices.Contains(names, name) }

// Load reads the named settings, or all if none is named: from flags that were set, else from environ (lines
// KEY=VALUE), else from the file, else their defaults. The error wraps ErrSetting and tells each setting that is wrong,
// where it came from and what is allowed.
func Load(flags *pflag.FlagSet, environ []string, names ...string) (Config, error) {
	env, err := environment(environ)
	if err != nil {
		return Config{}, err
	}
	path, _ := flags.GetString(configFlag) // empty when the flag set has no such flag
	if path == "" {
		path = env[configFlag]
	}
	file, err := readFile(path)
	if err != nil {
		return Config{}, err
	}
	return read(flags, env, file, names)
}

// Read reads a file's text alone, path being its name in errors: what a daemon without flags and environment will do.
func Read(path string, text []byte) (Config, error) {
	values, err := parse(text)
	if err != nil {
		return Config{}, fmt.Errorf("%w: %s: %w", ErrSetting, path, err)
	}
	return read(pflag.NewFlagSet(path, pflag.ContinueOnError), nil, content{path, values}, nil)
}

func read(flags *pflag.FlagSet, env map[string]string, file content, names []string) (Config, error) {
	var c Config
	var errs []error
	for _, s := range table() {
		if !wanted(s.name, names) {
			continue
		}
		value, origin := s.fallback, "the default"
		if v, ok := file.values[s.name]; ok {
			value, origin = v, file.path
		}
		if v, ok := env[s.name]; ok {
			value, origin = v, "the environment ("+s.env()+")"
		}
		if f := flags.Lookup(s.name); f != nil && f.Changed {
			value, origin = f.Value.String(), "the command line (--"+s.name+")"
		}
		if err := s.set(&c, value); err != nil {
			errs = append(errs, fmt.Errorf("%w: %s %q from %s: want %s (%v)", ErrSetting, s.name, value, origin, s.allowed, err))
		}
	}
	errs = append(errs, c.check(names))
	return c, errors.Join(errs...)
}

// check finds settings that contradict each other.
func (c Config) check(names []string) error {
	if len(names) > 0 {
		return nil
	}
	if c.EncryptedPort == vxlan.DefaultPort {
		return fmt.Errorf("%w: encrypted-port %d is that of networks in clear: choose another one", ErrSetting, c.EncryptedPort)
	}
	if p := c.ESPInUDP; p != 0 && (p == c.EncryptedPort || p == c.VXLANPort || p == vxlan.DefaultPort) {
		return fmt.Errorf("%w: esp-in-udp %d is the port of networks: choose another one, such as 4500", ErrSetting, p)
	}
	if (c.StoreCert == "") != (c.StoreKey == "") {
		return fmt.Errorf("%w: store-cert and store-key belong together: set both or none", ErrSetting)
	}
	if err := c.checkUI(); err != nil {
		return err
	}
	if len(c.Store) > 0 && len(c.StoreListen) > 0 {
		return fmt.Errorf(
			"%w: store-listen %s is for the embedded store, and store %s names one elsewhere: set one of the two",
			ErrSetting,
			strings.Join(c.StoreListen, ","),
			strings.Join(c.Store, ","),
		)
	}
	for _, u := range slices.Concat(c.Store, c.StoreListen) {
		if strings.HasPrefix(u, "https:") && (c.StoreCA == "" || c.StoreCert == "") {
			return fmt.Errorf("%w: %s needs mutual TLS: set store-ca, store-cert and store-key", ErrSetting, u)
		}
	}
	return nil
}

// checkUI wants TLS where others than this host's users reach the page.
func (c Config) checkUI() error {
	switch host, port, _ := net.SplitHostPort(c.UI); {
	case (c.UICert == "") != (c.UIKey == ""):
		return fmt.Errorf("%w: ui-cert and ui-key belong together: set both or none", ErrSetting)
	case c.UICert == "" && c.UICA != "":
		return fmt.Errorf("%w: ui-ca %s asks for certificates, which needs TLS: set ui-cert and ui-key, too", ErrSetting, c.UICA)
	case c.UI != "" && c.UICert == "" && !loopback(host):
		return fmt.Errorf("%w: ui %s can be reached from elsewhere, and would tell everybody about the cluster: use ui 127.0.0.1:%s "+
			"(and ssh -L from elsewhere), or set ui-cert and ui-key, and ui-ca to say who may look", ErrSetting, c.UI, port)
	}
	return nil
}

// loopback says whether only this host reaches an address.
func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// environment returns the settings among environ by name. A NETDRIVER_ variable that is none is an error: most likely
// it is misspelt.
func environment(environ []string) (map[string]string, error) {
	known := map[string]string{envPrefix + "CONFIG": configFlag}
	var allowed []string
	for _, s := range table() {
		known[s.env()] = s.name
		allowed = append(allowed, s.env())
	}
	values := map[string]string{}
	for _, line := range environ {
		key, value, _ := strings.Cut(line, "=")
		if !strings.HasPrefix(key, envPrefix) {
			continue
		}
		name, ok := known[key]
		if !ok {
			return nil, fmt.Errorf("%w: environment variable %s is not one: the variables are %s",
				ErrSetting, key, strings.Join(append(allowed, envPrefix+"CONFIG"), ", "))
		}
		values[name] = value
	}
	return values, nil
}

// content is what a file says.
type content struct {
	path   string
	values map[string]string
}

// readFile reads a YAML file: path, or DefaultFile if path is empty and that exists.
func readFile(path string) (content, error) {
	named := path != ""
	if !named {
		path = DefaultFile
	}
	text, err := os.ReadFile(path)
	if !named && errors.Is(err, fs.ErrNotExist) {
		return content{}, nil
	}
	if err != nil {
		return content{}, fmt.Errorf("%w: config: %w", ErrSetting, err)
	}
	values, err := parse(text)
	if err != nil {
		return content{}, fmt.Errorf("%w: %s: %w", ErrSetting, path, err)
	}
	return content{path, values}, nil
}

// parse reads a YAML mapping of settings to scalars or lists of strings.
func parse(text []byte) (map[string]string, error) {
	var raw map[string]any
	if err := yaml.UnmarshalStrict(text, &raw); err != nil {
		return nil, fmt.Errorf("want lines such as \"underlay: eth0\": %w", err)
	}
	var allowed []string
	for _, s := range table() {
		allowed = append(allowed, s.name)
	}
	values := map[string]string{}
	for key, v := range raw {
		if !slices.Contains(allowed, key) {
			return nil, fmt.Errorf("unknown setting %q: the settings are %s", key, strings.Join(allowed, ", "))
		}
		s, err := scalar(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		values[key] = s
	}
	return values, nil
}

// scalar writes a YAML value as a flag would have it; lists are separated by commas.
func scalar(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string, bool, float64:
		return fmt.Sprint(v), nil
	case []any:
		var parts []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return "", fmt.Errorf("%v in the list is not a string", e)
			}
			parts = append(parts, s)
		}
		return strings.Join(parts, ","), nil
	}
	return "", errors.New("want a value or a list of strings, not a mapping")
}
