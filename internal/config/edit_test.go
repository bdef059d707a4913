package config

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

func TestEditingAFileKeepsWhatItSaysElsewhere(t *testing.T) {
	for _, c := range []struct {
		name, text string
		given      []Given
		want       string
	}{
		{"new file", "", []Given{{"underlay", "eth0"}, {"vxlan-port", "4790"}}, "underlay: eth0\nvxlan-port: \"4790\"\n"},
		{"nothing given", "# mine\nnode:   n1\n", nil, "# mine\nnode:   n1\n"},
		{"the same again", "vxlan-port:   4790 # ours\n", []Given{{"vxlan-port", "4790"}}, "vxlan-port:   4790 # ours\n"},
		{
			"changed", "# who we are\nnode: n1 # a name\nstore:\n- http://192.0.2.1:2379\nlog-level: debug\n",
			[]Given{{"node", "n2"}, {"store", "http://192.0.2.2:2379"}, {"run-dir", "/run/x"}},
			"# who we are\nnode: n2 # a name\nstore: http://192.0.2.2:2379\nlog-level: debug\nrun-dir: /run/x\n",
		},
		{"comments only", "# nothing yet\n", []Given{{"docker-host", ""}}, "# nothing yet\ndocker-host: \"\"\n"},
	} {
		got, err := Edit([]byte(c.text), c.given)
		if diff := cmp.Diff(c.want, string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", c.name, err, diff)
		}
		again, err := Edit(got, c.given)
		if diff := cmp.Diff(string(got), string(again)); err != nil || diff != "" {
			t.Errorf("%s, a second time: %v (-want +got):\n%s", c.name, err, diff)
		}
		read, err := parse(got)
		for _, g := range c.given {
			if err != nil || read[g.Name] != g.Value {
				t.Errorf("%s: %s is read as %q, %v", c.name, g.Name, read[g.Name], err)
			}
		}
	}
	if _, err := Edit([]byte("node: [n1"), []Given{{"node", "n2"}}); err == nil {
		t.Error("a broken file is overwritten")
	}
}

func TestWhatAnInstallationIsGivenIsWhatFlagsAndEnvironmentSay(t *testing.T) {
	f := pflag.NewFlagSet("install", pflag.ContinueOnError)
	AddFlags(f)
	if err := f.Parse([]string{"--node=n1", "--underlay=eth0", "--store-ca=ca.pem", "--store-key="}); err != nil {
		t.Fatal(err)
	}
	ca, err := filepath.Abs("ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Gather(f, []string{"NETDRIVER_NODE=n2", "NETDRIVER_LOG_LEVEL=debug", "HOME=/"})
	want := []Given{{"underlay", "eth0"}, {"node", "n1"}, {"store-ca", ca}, {"store-key", ""}, {"log-level", "debug"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestAFileAloneIsReadAsTheServiceWillReadIt(t *testing.T) {
	c, err := Read("c.yaml", []byte("node: n1\nrun-dir: /run/x\n"))
	if err != nil || c.Node != "n1" || c.RunDir != "/run/x" || c.DataDir != "/var/lib/netdriver" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := Read("c.yaml", []byte("vxlan-port: 0\n")); err == nil {
		t.Error("a bad value is accepted")
	}
}
