package driver

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/store"
)

// The options of networks that use the host's own.
const (
	optionParent     = "parent"
	optionSubmode    = "macvlan_mode"
	optionHostAccess = "host_access"
)

// allModes are what --opt mode can be.
func allModes() []string {
	return []string{store.ModeOverlay, store.ModeMacvlan, store.ModeIPvlan, store.ModeBridge}
}

// medium is what a request says of the medium that carries the network. Zero fields were not given.
type medium struct {
	mode            string
	parent, submode string
	hostAccess      bool
	// accessGiven: host_access was, with whatever value.
	accessGiven bool
}

// setMode takes --opt mode.
func (m *medium) setMode(value string) error {
	m.mode = value
	if !slices.Contains(allModes(), value) {
		return errors.New("it is none of these")
	}
	return nil
}

// setSubmode takes --opt macvlan_mode.
func (m *medium) setSubmode(value string) error {
	m.submode = value
	if !slices.Contains(lan.Submodes(), value) {
		return errors.New("it is none of these")
	}
	return nil
}

// setHostAccess takes --opt host_access.
func (m *medium) setHostAccess(value string) (err error) {
	m.accessGiven = true
	m.hostAccess, err = strconv.ParseBool(value)
	return err
}

// checkMode finds options that the mode has no use for, and says which mode has.
func (s spec) checkMode() error {
	var errs []error
	refuse := func(given bool, option string, modes ...string) {
		mode := s.mode
		if mode == "" {
			mode = store.ModeOverlay
		}
		if given && !slices.Contains(modes, mode) {
			errs = append(errs, fmt.Errorf("--opt %s has no meaning with mode=%s: omit it, or set --opt mode=%s",
				option, mode, strings.Join(modes, " or ")))
		}
	}
	refuse(s.vni != 0, optionVNI, store.ModeOverlay)
	refuse(s.port != 0, optionPort, store.ModeOverlay)
	refuse(s.encryption.given, optionEncrypted, store.ModeOverlay)
	refuse(s.encryption.rekey != 0, optionRekey, store.ModeOverlay)
	refuse(s.isolate, optionIsolate, store.ModeOverlay)
	refuse(len(s.allow) > 0, optionAllow, store.ModeOverlay)
	refuse(s.Rate != 0, optionRate, store.ModeOverlay)
	refuse(s.parent != "", optionParent, store.ModeMacvlan, store.ModeIPvlan)
	refuse(s.submode != "", optionSubmode, store.ModeMacvlan)
	onLAN := s.mode == store.ModeMacvlan || s.mode == store.ModeIPvlan
	if onLAN && s.parent == "" {
		errs = append(errs, fmt.Errorf("mode=%s needs --opt parent: the interface that is in the LAN, such as eth1 or, with a "+
			"VLAN, eth1.10; or the LAN's subnet, by which each node finds its own", s.mode))
	}
	if s.mode == store.ModeBridge && s.accessGiven {
		errs = append(errs, fmt.Errorf("--opt %s has no meaning with mode=bridge: the host is the network's gateway and has "+
			"access; omit it", optionHostAccess))
	}
	return errors.Join(append(errs, s.checkAccess())...)
}

// checkAccess: the host reaches containers through a device like theirs, which only some modes let talk to each other.
func (s spec) checkAccess() error {
	switch {
	case !s.hostAccess:
		return nil
	case s.mode == store.ModeIPvlan:
		return fmt.Errorf("--opt %s is not possible with mode=ipvlan; use mode=macvlan", optionHostAccess)
	case s.submode != "" && s.submode != lan.BridgeMode:
		return fmt.Errorf("--opt %s is not possible with macvlan_mode=%s, which keeps containers of one host apart; use "+
			"macvlan_mode=%s", optionHostAccess, s.submode, lan.BridgeMode)
	}
	return nil
}

// contradictions tells what of a network that exists is not as asked.
func (m medium) contradictions(nw store.Network, differ func(what string, have, asked any)) {
	if m.mode != "" && m.mode != nw.Mode {
		differ(optionMode, nw.Mode, m.mode)
	}
	if m.parent != "" && m.parent != nw.LAN.Parent {
		differ(optionParent, nw.LAN.Parent, m.parent)
	}
	if m.submode != "" && m.submode != nw.LAN.Submode {
		differ(optionSubmode, nw.LAN.Submode, m.submode)
	}
	if m.accessGiven && m.hostAccess != nw.HostAccess {
		differ(optionHostAccess, nw.HostAccess, m.hostAccess)
	}
}

// settledMedium adds how a network is carried to the options that a swarm is answered.
func settledMedium(options map[string]string, nw store.Network) {
	if nw.Mode != store.ModeOverlay {
		options[optionMode] = nw.Mode
	}
	if nw.LAN.Parent != "" {
		options[optionParent] = nw.LAN.Parent
	}
	if nw.LAN.Submode != "" {
		options[optionSubmode] = nw.LAN.Submode
	}
	if nw.HostAccess {
		options[optionHostAccess] = "true"
	}
}
