package door

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types"
	"github.com/google/go-cmp/cmp"
)

// A plugin whose mount has no source cannot be enabled, and Docker starts plugins at boot, before the daemon.
func TestThePluginBindsWhatIsThereAtBoot(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/run", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for runDir, want := range map[string]struct{ source, socket string }{
		"/run/netdriver":         {"/run", "/host/netdriver/swarm.sock"},
		"/run/a/b/c":             {"/run", "/host/a/b/c/swarm.sock"},
		dir + "/link/nowhere/nd": {"/run", "/host/nowhere/nd/swarm.sock"},
		"/nd":                    {"/nd", "/host/swarm.sock"},
	} {
		c, err := Config(runDir)
		if err != nil {
			t.Fatal(err)
		}
		if got := *c.Mounts[0].Source; got != want.source {
			t.Errorf("%s: source %s, want %s", runDir, got, want.source)
		}
		if diff := cmp.Diff([]string{"--daemon", want.socket}, c.Args.Value); diff != "" {
			t.Errorf("%s (-want +got):\n%s", runDir, diff)
		}
	}
	if _, err := Config("/"); err == nil {
		t.Error("the host's root is accepted as run directory")
	}
}

func TestThePluginNeedsNoRightsOfItsOwn(t *testing.T) {
	c, err := Config("/run/netdriver")
	if err != nil {
		t.Fatal(err)
	}
	if c.Network.Type != "none" || len(c.Linux.Capabilities) > 0 || len(c.Linux.Devices) > 0 || c.Linux.AllowAllDevices ||
		c.PidHost || c.IpcHost {
		t.Errorf("%+v", c)
	}
	if got := strings.Join(c.Mounts[0].Options, " "); got != "rbind ro rslave" {
		t.Errorf("mounted %s", got)
	}
}

func TestTheArchiveIsWhatDockerPluginCreateSends(t *testing.T) {
	config, err := Config("/run/netdriver")
	if err != nil {
		t.Fatal(err)
	}
	const binary = "\x7fELF and more"
	var first, second bytes.Buffer
	for _, w := range []*bytes.Buffer{&first, &second} {
		if err := WriteArchive(w, config, strings.NewReader(binary), int64(len(binary))); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("equal input gives different archives")
	}
	got := map[string]string{}
	for r := tar.NewReader(&first); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(b)
		if h.Name == "rootfs/netdriver" && h.Mode != 0o755 {
			t.Errorf("the program has mode %o", h.Mode)
		}
	}
	var read types.PluginConfig
	if err := json.Unmarshal([]byte(got["config.json"]), &read); err != nil || !Fits(read, config) {
		t.Errorf("config %+v, %v", read, err)
	}
	if got["rootfs/netdriver"] != binary || len(got) != 2 {
		t.Errorf("archive %q", got)
	}
}

func TestAShortBinaryIsAnError(t *testing.T) {
	if err := WriteArchive(io.Discard, types.PluginConfig{}, strings.NewReader("x"), 2); err == nil {
		t.Error("an archive with a part of the program is accepted")
	}
}

// A plugin in use cannot be replaced, so an upgrade must not want to without need.
func TestAPluginIsReplacedForAnotherProtocolOrWayOnly(t *testing.T) {
	want, err := Config("/run/netdriver")
	if err != nil {
		t.Fatal(err)
	}
	other, err := Config("/run/other")
	if err != nil {
		t.Fatal(err)
	}
	if Fits(other, want) {
		t.Error("a plugin that looks elsewhere is kept")
	}
	newer := want
	protocol := "2"
	newer.Env = []types.PluginEnv{{Name: want.Env[0].Name, Value: &protocol}}
	if Fits(newer, want) {
		t.Error("a plugin of another protocol is kept")
	}
	described := want
	described.Description, described.Documentation = "of another version", "elsewhere"
	if !Fits(described, want) {
		t.Error("a plugin that does the same is replaced")
	}
}
