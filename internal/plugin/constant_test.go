package plugin

import (
	"testing"

	"github.com/docker/go-plugins-helpers/network"
)

// Docker decides by these answers what it asks at all; each was seen to work with engines of 20.10 and 26.1.
func TestWhatADriverCanDoIsAnsweredWithoutAnythingElse(t *testing.T) {
	s := New(Config{Methods: Constants(network.GlobalScope), Log: quiet()})
	for call, want := range map[string]string{
		"Plugin.Activate":                    `{"Implements":["NetworkDriver","IpamDriver"]}`,
		"NetworkDriver.GetCapabilities":      `{"Scope":"global","ConnectivityScope":"global","GwAllocChecker":true}`,
		"IpamDriver.GetCapabilities":         `{"RequiresMACAddress":true,"RequiresRequestReplay":true}`,
		"IpamDriver.GetDefaultAddressSpaces": `{"LocalDefaultAddressSpace":"netdriver-local","GlobalDefaultAddressSpace":"netdriver-global"}`,
	} {
		if status, body := post(s, "POST", "/"+call, ""); status != 200 || body != want {
			t.Errorf("%s: status %d, answer %s, want %s", call, status, body, want)
		}
	}
}
