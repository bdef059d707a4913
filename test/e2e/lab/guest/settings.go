// Package guest is what runs inside a virtual node of the lab: its first process, which makes an ordinary host of a
// bare kernel, and the server through which the lab runs commands there. [Run] and [Dial] are the other ends of
// that.
package guest

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
)

// SettingsVariable names the file of a node's Settings in the environment of the kernel's first process. The kernel
// puts there what it does not understand of its command line (Documentation/admin-guide/kernel-parameters.rst).
const SettingsVariable = "LAB_SETTINGS"

// Settings is all that a virtual node is told when it boots.
type Settings struct {
	// Name is the host name.
	Name string `json:"name"`
	// Address is that of eth0, on the lab's underlay, and Gateway the default route's.
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway"`
	// MTU is the underlay's, in bytes.
	MTU int `json:"mtu"`
	// Manage is the address of the interface mgmt0, where the node takes commands on CommandPort.
	Manage netip.Prefix `json:"manage"`
	// Path is where programs are looked for.
	Path string `json:"path"`
	// Shared is a directory of the machine that is writable in the node, too, at the same place.
	Shared string `json:"shared"`
	// Kept are directories below Shared whose content is on the node's own disk.
	Kept []string `json:"kept"`
	// Modules are loaded at the start, as far as the kernel has them.
	Modules []string `json:"modules"`
	// Ready is a file that is made once the node takes commands.
	Ready string `json:"ready"`
	// Without are modules that the node cannot load.
	Without []string `json:"without"`
}

// CommandPort is the TCP port of the command server. EnginePort is dockerd's, which has been Docker's since its
// beginning.
const (
	CommandPort = 7000
	EnginePort  = 2375
)

// Write stores the settings in a file.
func (s Settings) Write(name string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o644)
}

// ReadSettings reads what Write wrote.
func ReadSettings(name string) (Settings, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return Settings{}, err
	}
	var s Settings
	if err := json.Unmarshal(text, &s); err != nil {
		return Settings{}, fmt.Errorf("read %s: %w", name, err)
	}
	return s, nil
}
