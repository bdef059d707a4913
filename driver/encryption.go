package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// The options of an encrypted network.
const (
	optionEncrypted = "encrypted"
	optionRekey     = "rekey"
)

// The bounds of --opt rekey. Each new key of a node costs one write to the store by each of its peers; a day is as long as
// a key that was stolen from a node's memory should be worth anything.
const (
	MinRekey = time.Second
	MaxRekey = 24 * time.Hour
)

// Encryption keeps the packets of encrypted networks from leaving or entering this node in clear.
type Encryption interface {
	// Supports says why this node cannot be in an encrypted network, with that cipher if one is named.
	Supports(ctx context.Context, c ipsec.Cipher) error
	// Guard returns once the kernel drops whatever goes to that UDP port in clear.
	Guard(ctx context.Context, port uint16) error
}

// encryption is what a request says of it. Zero fields were not given.
type encryption struct {
	given  bool
	option ipsec.Option
	rekey  time.Duration
}

// setEncrypted takes --opt encrypted.
func (e *encryption) setEncrypted(value string) (err error) {
	e.given = true
	e.option, err = ipsec.ParseOption(value)
	return err
}

// setRekey takes --opt rekey.
func (e *encryption) setRekey(value string) error {
	d, err := time.ParseDuration(value)
	if err == nil && (d < MinRekey || d > MaxRekey) {
		err = fmt.Errorf("%s is not within %s..%s", d, MinRekey, MaxRekey)
	}
	e.rekey = d
	return err
}

// check finds what makes no sense together.
func (e encryption) check() error {
	if e.rekey != 0 && e.given && !e.option.Encrypted {
		return fmt.Errorf("--opt %s is for encrypted networks: omit it, or set --opt %s", optionRekey, optionEncrypted)
	}
	return nil
}

// contradictions tells what of a network that exists is not as asked.
func (e encryption) contradictions(nw store.Network, differ func(what string, have, asked any)) {
	if e.given && e.option.Encrypted != nw.Encrypted {
		differ(optionEncrypted, nw.Encrypted, e.option.Encrypted)
	}
	if c := string(e.option.Cipher); c != "" && nw.Encrypted && c != nw.Cipher {
		differ("the cipher", cipherName(nw.Cipher), c)
	}
	if e.rekey != 0 && e.rekey != nw.Rekey {
		differ(optionRekey, nw.Rekey, e.rekey)
	}
}

// cipherName writes what a network demands.
func cipherName(c string) string {
	if c == "" {
		return "left to the nodes"
	}
	return c
}

// settle puts what was asked, and what was left open, into a new network.
func (e encryption) settle(nw *store.Network) error {
	if e.rekey != 0 && !e.option.Encrypted {
		return fmt.Errorf("--opt %s is for encrypted networks: omit it, or set --opt %s", optionRekey, optionEncrypted)
	}
	if !e.option.Encrypted {
		return nil
	}
	nw.Encrypted, nw.Cipher, nw.Rekey = true, string(e.option.Cipher), e.rekey
	if nw.Rekey == 0 {
		nw.Rekey = ipsec.DefaultRekey
	}
	return nil
}

// settledEncryption adds a network's encryption to the options that a swarm is answered.
func settledEncryption(options map[string]string, nw store.Network) {
	if !nw.Encrypted {
		return
	}
	options[optionEncrypted], options[optionRekey] = "true", nw.Rekey.String()
	if nw.Cipher != "" {
		options[optionEncrypted] = nw.Cipher
	}
}

// defaultPort is the UDP port of a network whose creator does not choose one.
func (d *Driver) defaultPort(nw store.Network) uint16 {
	if nw.Encrypted {
		return d.cfg.EncryptedPort
	}
	return d.cfg.Port
}

// largestMTU is what this node's underlay allows in a network, checkMTU says whether its MTU is within that.
func (d *Driver) largestMTU(nw store.Network) (int, error) {
	if nw.Encrypted {
		return vxlan.EncryptedMTU(d.cfg.Node.UnderlayMTU, d.site.vtep, d.cfg.Node.Encap != 0)
	}
	return vxlan.MTU(d.cfg.Node.UnderlayMTU, d.site.vtep)
}

func (d *Driver) checkMTU(nw store.Network) error {
	underlay, v6 := d.cfg.Node.UnderlayMTU, hasIPv6(nw.Subnets)
	if nw.Encrypted {
		return vxlan.CheckEncryptedMTU(nw.MTU, underlay, d.site.vtep, d.cfg.Node.Encap != 0, v6)
	}
	return vxlan.CheckMTU(nw.MTU, underlay, d.site.vtep, v6)
}

// encrypts says why this node cannot be in a network, if that is encrypted.
func (d *Driver) encrypts(ctx context.Context, nw store.Network) error {
	if !nw.Encrypted {
		return nil
	}
	err := errors.New("encryption is not set up in this daemon")
	if d.cfg.Encryption != nil {
		err = d.cfg.Encryption.Supports(ctx, ipsec.Cipher(nw.Cipher))
	}
	if err != nil {
		return fmt.Errorf("network %s is encrypted, and node %s cannot encrypt: %w", nw.Name, d.site.node, err)
	}
	return nil
}

// guard makes sure that nothing of a network leaves or enters in clear, if it is encrypted. Unless it succeeds, the network
// has to be cut off.
func (d *Driver) guard(ctx context.Context, network string) error {
	var nw store.Network
	d.cfg.Mirror.Read(func(r *store.Records) { nw = r.Networks[network] })
	if !nw.Encrypted {
		return nil
	}
	if d.cfg.Encryption == nil {
		return d.encrypts(ctx, nw)
	}
	if err := d.cfg.Encryption.Guard(ctx, nw.Port); err != nil {
		return fmt.Errorf("network %s is encrypted and stays cut off from other nodes: %w", nw.Name, err)
	}
	return nil
}

// cutOff is a network without its VXLAN device: containers on one node reach each other, and nobody else.
func cutOff(n dataplane.Network) dataplane.Network {
	n.VXLAN = dataplane.VXLAN{}
	n.FDB = slices.DeleteFunc(slices.Clone(n.FDB), func(e dataplane.FDBEntry) bool { return e.Port == "" })
	return n
}

// compatible adds to the transaction of a new network that it goes together with the encrypted ones: they share keys,
// which are per pair of nodes, and a port, which nothing else uses.
func (d *Driver) compatible(ctx context.Context, nw store.Network, t *txn) error {
	switch {
	case nw.Encrypted && nw.Port == vxlan.DefaultPort:
		return fmt.Errorf("UDP port %d is for networks in clear: choose another --opt port, or omit it", nw.Port)
	case !nw.Encrypted && nw.Port == vxlan.DefaultPort:
		return nil
	}
	if err := d.guarded(ctx, store.EncryptionGuard, nw.Name, t); err != nil {
		return err
	}
	kvs, _, err := d.cfg.Store.List(ctx, store.NetworkPrefix)
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		other, err := store.Decode[store.Network](kv)
		if err == nil && other.Name != nw.Name {
			err = clash(nw, other)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clash says why two networks cannot be in one cluster.
func clash(nw, other store.Network) error {
	switch {
	case nw.Encrypted != other.Encrypted && nw.Port == other.Port:
		return fmt.Errorf("UDP port %d is used by network %s, which has encryption %t: an encrypted network and one in clear "+
			"cannot share a port; choose another --opt port", nw.Port, other.Name, other.Encrypted)
	case !nw.Encrypted || !other.Encrypted:
		return nil
	case nw.Port != other.Port:
		return fmt.Errorf("encrypted networks share one UDP port in a cluster: network %s has %d, asked for %d; omit --opt port, "+
			"or set encrypted-port %d on this node", other.Name, other.Port, nw.Port, other.Port)
	case nw.Cipher != "" && other.Cipher != "" && nw.Cipher != other.Cipher:
		return fmt.Errorf("keys belong to pairs of nodes, not to networks: network %s demands %s, asked for %s; use "+
			"--opt encrypted=%s, or omit the cipher to take whatever two nodes have in common", other.Name, other.Cipher, nw.Cipher,
			other.Cipher)
	}
	return nil
}

// guarded adds to a transaction that nobody has written a guard since now, and that this writes it.
func (d *Driver) guarded(ctx context.Context, key, value string, t *txn) error {
	kv, err := d.cfg.Store.Get(ctx, key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		t.require(store.Absent(key))
	case err != nil:
		return err
	default:
		t.require(store.Unchanged(kv))
	}
	t.write(store.Put(key, []byte(value)))
	return nil
}
