package driver

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/ipam"
	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// The labels under which libnetwork passes a network's options (moby daemon/libnetwork/netlabel/labels.go).
const (
	labelGeneric  = "com.docker.network.generic"
	labelInternal = "com.docker.network.internal"
	// labelMTU is how users of Docker's own drivers spell the MTU; it means the same as optionMTU.
	labelMTU = "com.docker.network.driver.mtu"
	// labelPrefix begins every option that Docker adds by itself.
	labelPrefix = "com.docker."
)

// The options of `docker network create --opt`.
const (
	optionNetwork = "network"
	optionMode    = "mode"
	optionVNI     = "vni"
	optionPort    = "port"
	optionMTU     = "mtu"
)

// optionHelp says what each option takes; it is shown when an option is wrong.
func optionHelp() map[string]string {
	return map[string]string{
		optionNetwork: "name of the cluster network, the same on every host",
		optionMode:    strings.Join(allModes(), ", "),
		optionVNI:     fmt.Sprintf("1..%d, chosen if omitted", vxlan.MaxVNI),
		optionPort:    fmt.Sprintf("UDP port 1..65535, %d if omitted", vxlan.DefaultPort),
		optionMTU:     "bytes, derived from the underlay if omitted",

		optionEncrypted: "true, false, aes-256-gcm, aes-128-gcm or chacha20-poly1305",
		optionIsolate:   "true or false",
		optionAllow:     "rules such as web>db:5432/tcp, separated by commas",
		optionRate:      rateHelp(),
		optionBurst:     burstHelp,

		optionParent:     "an interface such as eth1, with a VLAN eth1.10, or the LAN's subnet",
		optionSubmode:    strings.Join(lan.Submodes(), ", "),
		optionHostAccess: "true or false",

		optionRekey: fmt.Sprintf("how long a key is used, %s..%s, %s if omitted", MinRekey, MaxRekey, ipsec.DefaultRekey),
	}
}

// spec is what `docker network create` asks for. Zero fields were not given.
type spec struct {
	name string
	medium
	vni      vxlan.VNI
	port     uint16
	mtu      int
	internal bool
	subnets  []netip.Prefix
	encryption
	isolation
	// allocation: a swarm's leader asks, for all nodes. foreignIPAM: the addresses come from another IPAM driver.
	allocation, foreignIPAM bool
}

// parseNetwork validates a CreateNetwork request; its error names every wrong option at once.
func parseNetwork(req *network.CreateNetworkRequest) (spec, error) {
	var s spec
	generic, err := genericOptions(req.Options)
	errs := []error{err}
	for _, k := range slices.Sorted(maps.Keys(generic)) {
		errs = append(errs, s.set(k, generic[k]))
	}
	if v, ok := req.Options[labelInternal]; ok {
		s.internal, ok = v.(bool)
		if !ok {
			errs = append(errs, fmt.Errorf("%s is %v, want true or false", labelInternal, v))
		}
	}
	for _, d := range slices.Concat(req.IPv4Data, req.IPv6Data) {
		errs = append(errs, s.addPool(d))
		s.foreignIPAM = s.foreignIPAM || d != nil && d.AddressSpace != ipam.LocalSpace
	}
	return s, errors.Join(append(errs, s.check())...)
}

// parseAllocation validates an AllocateNetwork request, whose options are the user's alone; its subnets do not say
// which IPAM driver they come from.
func parseAllocation(req *network.AllocateNetworkRequest) (spec, error) {
	s := spec{allocation: true}
	var errs []error
	for _, k := range slices.Sorted(maps.Keys(req.Options)) {
		errs = append(errs, s.set(k, req.Options[k]))
	}
	for _, pools := range [][]network.IPAMData{req.IPv4Data, req.IPv6Data} {
		for _, d := range pools {
			errs = append(errs, s.addPool(&d))
		}
	}
	return s, errors.Join(append(errs, s.check())...)
}

// check puts the subnets in order and finds what makes no sense together.
func (s *spec) check() error {
	return errors.Join(s.checkSubnets(), s.encryption.check(), s.isolation.check(), s.checkMode())
}

// addPool takes one subnet of a request.
func (s *spec) addPool(d *network.IPAMData) error {
	if d == nil {
		return errors.New("empty IPAM data")
	}
	p, err := netip.ParsePrefix(d.Pool)
	if err != nil {
		return fmt.Errorf("subnet %q: %w", d.Pool, err)
	}
	s.subnets = append(s.subnets, p.Masked())
	return nil
}

// checkSubnets puts the subnets in order.
func (s *spec) checkSubnets() error {
	if len(s.subnets) == 0 {
		return errors.New("no subnet: create it with --ipam-driver custom-overlay and, if wanted, --subnet")
	}
	slices.SortFunc(s.subnets, netip.Prefix.Compare)
	return nil
}

// genericOptions returns the user's options. moby sends them as strings; older engines send null when there are none.
func genericOptions(options map[string]any) (map[string]string, error) {
	given, ok := options[labelGeneric].(map[string]any)
	if !ok && options[labelGeneric] != nil {
		return nil, fmt.Errorf("%s is %T, want an object of strings", labelGeneric, options[labelGeneric])
	}
	out := make(map[string]string, len(given))
	for k, v := range given {
		s, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("option %s is %T, want a string", k, v)
		}
		out[k] = s
	}
	return out, nil
}

// set takes one option of --opt.
func (s *spec) set(key, value string) (err error) {
	switch key {
	case optionNetwork:
		s.name, err = value, store.CheckName("network", value)
	case optionMode:
		err = s.setMode(value)
	case optionParent:
		s.parent, err = value, lan.CheckSpec(value)
	case optionSubmode:
		err = s.setSubmode(value)
	case optionHostAccess:
		err = s.setHostAccess(value)
	case optionVNI:
		var n uint64
		if n, err = strconv.ParseUint(value, 10, 32); err == nil {
			s.vni = vxlan.VNI(n)
			err = vxlan.CheckVNI(s.vni)
		}
	case optionPort:
		var n uint64
		if n, err = strconv.ParseUint(value, 10, 16); err == nil && n == 0 {
			err = errors.New("port 0 cannot be used")
		}
		s.port = uint16(n)
	case optionMTU, labelMTU:
		err = s.setMTU(value)
	case optionEncrypted:
		err = s.setEncrypted(value)
	case optionRekey:
		err = s.setRekey(value)
	case optionIsolate, optionAllow, optionRate, optionBurst:
		err = s.setIsolation(key, value)
	default:
		known := slices.Sorted(maps.Keys(optionHelp()))
		return fmt.Errorf("unknown option --opt %s=%s; the options are %s", key, value, strings.Join(known, ", "))
	}
	if err != nil {
		help := optionHelp()[strings.TrimPrefix(key, labelPrefix+"network.driver.")]
		return fmt.Errorf("bad option --opt %s=%s (%s): %w", key, value, help, err)
	}
	return nil
}

// setMTU takes the MTU under either of its two names; its upper bound needs the underlay and is checked later.
func (s *spec) setMTU(value string) error {
	n, err := strconv.Atoi(value)
	if err != nil {
		return err
	}
	if n < vxlan.MinMTU4 {
		return fmt.Errorf("%w: %d is below %d", vxlan.ErrMTU, n, vxlan.MinMTU4)
	}
	if s.mtu != 0 && s.mtu != n {
		return fmt.Errorf("%s and %s contradict each other: %d and %d", optionMTU, labelMTU, s.mtu, n)
	}
	s.mtu = n
	return nil
}

// contradictions compares what is asked with a network that exists; the error shows both values of each difference.
func (s spec) contradictions(nw store.Network) error {
	var errs []error
	differ := func(what string, have, asked any) {
		errs = append(errs, fmt.Errorf("%s is %v in the cluster (made by node %s), asked for %v",
			what, have, nw.Creator, asked))
	}
	s.medium.contradictions(nw, differ)
	if s.vni != 0 && s.vni != nw.VNI {
		differ(optionVNI, nw.VNI, s.vni)
	}
	if s.port != 0 && s.port != nw.Port {
		differ(optionPort, nw.Port, s.port)
	}
	if s.mtu != 0 && s.mtu != nw.MTU {
		differ(optionMTU, nw.MTU, s.mtu)
	}
	s.encryption.contradictions(nw, differ)
	s.isolation.contradictions(nw, differ)
	if s.internal != nw.Internal {
		differ("internal", nw.Internal, s.internal)
	}
	if !slices.Equal(s.subnets, nw.Subnets) {
		differ("subnets", nw.Subnets, s.subnets)
	}
	if len(errs) > 0 {
		errs = append(errs, fmt.Errorf("omit what differs, use the cluster's values, or choose another "+
			"--opt network=NAME than %s", nw.Name))
	}
	return errors.Join(errs...)
}

// hasIPv6 says whether a network with these subnets carries IPv6, which needs an MTU of at least 1280.
func hasIPv6(subnets []netip.Prefix) bool {
	return slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Addr().Is6() })
}
