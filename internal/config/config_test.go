package config

import (
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

// load reads settings from a command line, an environment and a file's text.
func load(t *testing.T, args, environ []string, file string) (Config, error) {
	t.Helper()
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	AddFlags(f)
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Parse(append([]string{"--config", path}, args...)); err != nil {
		t.Fatal(err)
	}
	return Load(f, environ)
}

func TestOneHostNeedsNoSetting(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	got, err := load(t, nil, []string{"PATH=/bin"}, "")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Node: host, Cluster: "default", DataDir: "/var/lib/netdriver", SocketDir: "/run/docker/plugins",
		RunDir:   "/run/netdriver",
		LogLevel: slog.LevelInfo, LogFormat: "text", VXLANPort: 4789, EncryptedPort: 4790, PeerPort: 4792, AnswerCaptures: true, DockerHost: "unix:///var/run/docker.sock",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

func TestAFlagWinsOverTheEnvironmentAndThatOverTheFile(t *testing.T) {
	const file, env, arg = "cluster: file", "NETDRIVER_CLUSTER=env", "--cluster=flag"
	for _, c := range []struct {
		args, environ []string
		file, want    string
	}{
		{nil, nil, "", "default"},
		{nil, nil, file, "file"},
		{nil, []string{env}, "", "env"},
		{[]string{arg}, nil, "", "flag"},
		{nil, []string{env}, file, "env"},
		{[]string{arg}, nil, file, "flag"},
		{[]string{arg}, []string{env}, file, "flag"},
	} {
		got, err := load(t, c.args, c.environ, c.file)
		if err != nil || got.Cluster != c.want {
			t.Errorf(
				"flag %v, environment %v, file %q: cluster %q, error %v; want %q",
				c.args,
				c.environ,
				c.file,
				got.Cluster,
				err,
				c.want,
			)
		}
	}
}

// An empty value set on purpose is a value: docker-host has a default that can only be switched off so.
func TestAnEmptyValueOverridesTheDefault(t *testing.T) {
	for what, c := range map[string]struct {
		args, environ []string
		file          string
	}{
		"flag": {args: []string{"--docker-host="}}, "environment": {environ: []string{"NETDRIVER_DOCKER_HOST="}},
		"file": {file: "docker-host:"},
	} {
		if got, err := load(t, c.args, c.environ, c.file); err != nil || got.DockerHost != "" {
			t.Errorf("%s: docker-host %q, error %v", what, got.DockerHost, err)
		}
	}
}

func TestEverySettingHasAFlagAVariableAndAKey(t *testing.T) {
	pem := filepath.Join(t.TempDir(), "x.pem")
	if err := os.WriteFile(pem, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	values := map[string]string{
		"underlay": "eth0", "node": "n1", "cluster": "lab", "vxlan-port": "4790", "encrypted-port": "4795", "esp-in-udp": "4500", "parents": "lan=eth1,dmz=192.0.2.0/24",
		"peer-port": "4798", "answer-captures": "false",
		"store":      "https://192.0.2.1:2379",
		"store-ca":   pem,
		"store-cert": pem, "store-key": pem, "data-dir": "/d", "socket-dir": "/s", "run-dir": "/r",
		"docker-host": "tcp://h:1",
		"metrics":     ":9100", "ui": "0.0.0.0:9473", "ui-cert": pem, "ui-key": pem, "ui-ca": pem, "log-level": "debug", "log-format": "json",
	}
	want := Config{
		Parents:  map[string]string{"lan": "eth1", "dmz": "192.0.2.0/24"},
		Underlay: "eth0", Node: "n1", Cluster: "lab", Store: []string{"https://192.0.2.1:2379"}, StoreCA: pem, StoreCert: pem,
		StoreKey: pem, DataDir: "/d", SocketDir: "/s", RunDir: "/r", Metrics: ":9100", UI: "0.0.0.0:9473", UICert: pem, UIKey: pem, UICA: pem, LogLevel: slog.LevelDebug,
		LogFormat: "json",
		VXLANPort: 4790, EncryptedPort: 4795, ESPInUDP: 4500, PeerPort: 4798, DockerHost: "tcp://h:1",
	}
	var args, environ, lines []string
	for _, s := range table() {
		v, ok := values[s.name]
		if !ok && s.name != "store-listen" { // it excludes store
			t.Fatalf("the test has no value for %s", s.name)
		}
		if ok {
			args = append(args, "--"+s.name+"="+v)
			environ = append(environ, s.env()+"="+v)
			lines = append(lines, s.name+": "+v)
		}
	}
	for what, read := range map[string]func() (Config, error){
		"flags":       func() (Config, error) { return load(t, args, nil, "") },
		"environment": func() (Config, error) { return load(t, nil, environ, "") },
		"file":        func() (Config, error) { return load(t, nil, nil, strings.Join(lines, "\n")) },
	} {
		got, err := read()
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: error %v (-want +got):\n%s", what, err, diff)
		}
	}
}

func TestABadValueIsRefusedWithItsNameItsOriginAndWhatIsAllowed(t *testing.T) {
	for _, c := range []struct{ name, value, allowed string }{
		{"underlay", "a/b", "interface"},
		{"underlay", "0.0.0.0", "address"},
		{"node", "a b", "letters"},
		{"cluster", "-x", "letters"},
		{"vxlan-port", "0", "1..65535"},
		{"vxlan-port", "65536", "1..65535"},
		{"encrypted-port", "0", "1..65535"},
		{"esp-in-udp", "65536", "0..65535"},
		{"store", "192.0.2.1:2379", "http://"},
		{"store", "http://192.0.2.1", "PORT"},
		{"store-listen", "http://192.0.2.1:1", "https://"}, // anyone who reaches it could change the cluster
		{"store-ca", "/nowhere/ca.pem", "readable"},
		{"data-dir", "data", "absolute"},
		{"metrics", "9100", "PORT"},
		{"ui", "9473", "ADDRESS:PORT"},
		{"ui", ":9473", "ADDRESS:PORT"},
		{"ui", "example.com:9473", "ADDRESS:PORT"},
		{"ui", "127.0.0.1:0", "ADDRESS:PORT"},
		{"ui-cert", "/nowhere/cert.pem", "readable"},
		{"docker-host", "/var/run/docker.sock", "unix://"},
		{"answer-captures", "perhaps", "true or false"},
		{"log-level", "loud", "debug, info, warn or error"},
		{"log-format", "xml", "text or json"},
	} {
		env := setting{name: c.name}.env()
		for origin, read := range map[string]func() (Config, error){
			"--" + c.name: func() (Config, error) { return load(t, []string{"--" + c.name + "=" + c.value}, nil, "") },
			env:           func() (Config, error) { return load(t, nil, []string{env + "=" + c.value}, "") },
			"config.yaml": func() (Config, error) { return load(t, nil, nil, c.name+`: "`+c.value+`"`) },
		} {
			_, err := read()
			if err == nil {
				t.Errorf("%s=%s from %s is accepted", c.name, c.value, origin)
				continue
			}
			for _, w := range []string{c.name + " ", `"` + c.value + `"`, origin, c.allowed} {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		}
	}
}

func TestEveryBadSettingIsToldAtOnce(t *testing.T) {
	_, err := load(t, []string{"--vxlan-port=0", "--log-level=loud"}, nil, "")
	if err == nil || !strings.Contains(err.Error(), "vxlan-port") || !strings.Contains(err.Error(), "log-level") {
		t.Errorf("error %v, want both", err)
	}
}

func TestSettingsThatContradictEachOtherAreRefused(t *testing.T) {
	for want, args := range map[string][]string{
		"belong together": {"--store-cert=/dev/null"},
		"one of the two":  {"--store=http://h:1", "--store-listen=https://h:2"},
		"mutual TLS":      {"--store=https://h:1"},
		"ui-cert and":     {"--ui-cert=/dev/null"},
		"needs TLS":       {"--ui-ca=/dev/null"},
	} {
		if _, err := load(t, args, nil, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want %q", args, err, want)
		}
	}
}

func TestThePageIsForThisHostOnlyUnlessItHasTLS(t *testing.T) {
	for address, only := range map[string]bool{
		"127.0.0.1:9473": true, "[::1]:9473": true, "localhost:9473": true,
		"0.0.0.0:9473": false, "[::]:9473": false, "192.0.2.1:9473": false, "[::ffff:192.0.2.1]:9473": false,
	} {
		_, err := load(t, []string{"--ui=" + address}, nil, "")
		if only != (err == nil) {
			t.Errorf("ui %s: error %v", address, err)
		}
		if err != nil && (!strings.Contains(err.Error(), "127.0.0.1:9473") || !strings.Contains(err.Error(), "ui-cert")) {
			t.Errorf("ui %s: %q has no remedy", address, err)
		}
		if _, err := load(t, []string{"--ui=" + address, "--ui-cert=/dev/null", "--ui-key=/dev/null"}, nil, ""); err != nil {
			t.Errorf("ui %s with TLS: %v", address, err)
		}
	}
}

func TestAnUnknownNameIsRefusedWithTheAllowedOnes(t *testing.T) {
	for what, read := range map[string]func() (Config, error){
		"NETDRIVER_UNDERLAI": func() (Config, error) { return load(t, nil, []string{"NETDRIVER_UNDERLAI=eth0"}, "") },
		`"underlai"`:         func() (Config, error) { return load(t, nil, nil, "underlai: eth0") },
	} {
		_, err := read()
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(strings.ToLower(err.Error()), "underlay") {
			t.Errorf("error %v, want %s and the allowed names", err, what)
		}
	}
}

func TestAFileThatIsNoListOfSettingsIsRefused(t *testing.T) {
	for _, text := range []string{"- a\n- b", "store:\n  a: b", "underlay: [1]", "{", "node: a\nnode: b"} {
		if _, err := load(t, nil, nil, text); err == nil || !strings.Contains(err.Error(), "config.yaml") {
			t.Errorf("%q: error %v, want one that names the file", text, err)
		}
	}
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	AddFlags(f)
	if _, err := Load(f, []string{"NETDRIVER_CONFIG=/nowhere/c.yaml"}); err == nil ||
		!strings.Contains(err.Error(), "/nowhere/c.yaml") {
		t.Errorf("a named file that is missing: error %v", err)
	}
}

// inspect must work while somebody edits the daemon's other settings.
func TestAVerbThatNeedsOneSettingIgnoresMistakesInOthers(t *testing.T) {
	f := pflag.NewFlagSet("inspect", pflag.ContinueOnError)
	AddFlags(f, "run-dir")
	got, err := Load(f, []string{"NETDRIVER_LOG_LEVEL=loud", "NETDRIVER_RUN_DIR=/x"}, "run-dir")
	if err != nil || got.RunDir != "/x" {
		t.Errorf("run-dir %q, error %v", got.RunDir, err)
	}
	if f.Lookup("store") != nil {
		t.Error("it has a flag that it does not use")
	}
}

func TestTheDocumentIsTheTable(t *testing.T) {
	const path = "../../docs/configuration.md"
	if *update {
		if err := os.WriteFile(path, []byte(Markdown()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Markdown(), string(got)); diff != "" {
		t.Errorf("%s is not made from the table; go test ./internal/config -update (-want +got):\n%s", path, diff)
	}
	if _, err := load(t, nil, nil, example); err != nil {
		t.Errorf("the example is refused: %v", err)
	}
}
