package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/ipsec/xfrm"
	"github.com/netdriver/netdriver/vxlan"
)

const (
	// encryptedPort is the UDP port of our encrypted networks by default.
	encryptedPort = 4790
	// dockerESPMark is by which Docker's overlay driver knows its packets, SAs and policies; dockerESPBytes is what it
	// subtracts from the MTU (moby daemon/libnetwork/drivers/overlay, encryption.go and ov_utils.go).
	dockerESPMark  = 0xD0C4E3
	dockerESPBytes = 26
	// encryptedTransfer and encryptedTransactions are less than in clear: where there is ESP it may be emulated.
	encryptedTransfer     = 4 << 20
	encryptedTransactions = 500
)

// encryptedPath compares our encrypted network with Docker's on a kernel that has ESP; on others it gives nothing. The cipher is
// the one that pairs of this machine take by themselves, and Docker's own, AES-128-GCM.
func encryptedPath(ctx context.Context, b *bench) ([]Result, error) {
	preferred := ipsec.Preferred()
	var results []Result
	for _, c := range slices.Compact([]ipsec.Cipher{preferred[0], ipsec.AES128GCM}) {
		r, err := b.compareCipher(ctx, c)
		if errors.Is(err, ipsec.ErrUnsupported) {
			return nil, nil
		}
		if results = append(results, r...); err != nil {
			return results, err
		}
	}
	return results, nil
}

// compareCipher measures our encrypted network with a cipher against Docker's.
func (b *bench) compareCipher(ctx context.Context, c ipsec.Cipher) ([]Result, error) {
	bed, err := encryptedTestbed(ctx, b.dir, c)
	if err != nil {
		return nil, err
	}
	defer bed.remove()
	from, to := bed.nodes[0].container, bed.nodes[1]
	// Without instructions for AES another cipher has to be worth its choice.
	throughput := 1.0
	if c == ipsec.ChaCha20Poly1305 {
		throughput = 1 / 1.5
	}
	var results []Result
	for _, m := range []struct {
		what    string
		measure func(netip.Addr) (float64, error)
		unit    string
		target  float64
	}{
		{"time to transfer 4 MiB", func(a netip.Addr) (float64, error) {
			return transferTime(from, to.container, a, encryptedTransfer)
		}, "ms", throughput},
		{"request and response of 1 byte, p5 of the latency", func(a netip.Addr) (float64, error) {
			times, err := requestResponse(from, to.container, a, a, encryptedTransactions, 0)
			return times.percentile(5), err
		}, "µs", 1},
	} {
		before, err := bed.counted()
		if err != nil {
			return results, err
		}
		ours, theirs, err := inTurns(ctx, b.rounds,
			func() (float64, error) { return m.measure(to.ours) }, func() (float64, error) { return m.measure(to.docker) })
		if err != nil {
			return results, fmt.Errorf("%s: %w", m.what, err)
		}
		if err := bed.encrypts(before); err != nil {
			return results, err
		}
		r, err := ratioResult(fmt.Sprintf("encrypted with %s: TCP, %s ÷ that in Docker's encrypted overlay", c, m.what), ours, theirs, m.unit, m.target)
		if err != nil {
			return results, err
		}
		results = append(results, r)
	}
	return results, nil
}

// encryptedTestbed is two nodes that encrypt what they send to each other in both layouts.
func encryptedTestbed(ctx context.Context, dir string, c ipsec.Cipher) (*testbed, error) {
	o := overlay{dockerMTU: (overlayMTU - dockerESPBytes) &^ 3, ourPort: encryptedPort}
	var err error
	if o.ourMTU, err = vxlan.EncryptedMTU(underlayMTU, netip.IPv4Unspecified(), false); err != nil {
		return nil, err
	}
	bed, err := newTestbed(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	if err := bed.encrypt(ctx, c); err != nil {
		bed.remove()
		return nil, err
	}
	return bed, nil
}

func (b *testbed) encrypt(ctx context.Context, c ipsec.Cipher) error {
	var keys [2]espKeys // by their sender
	for i := range keys {
		var err error
		if keys[i], err = newESPKeys(uint32(0x1000+i), c); err != nil {
			return err
		}
	}
	for i, n := range b.nodes {
		if err := encryptOurs(ctx, n, b.nodes[1-i], keys[i], keys[1-i]); err != nil {
			return fmt.Errorf("netdriver's encryption: %w", err)
		}
		if err := n.encryptDocker(b.nodes[1-i], keys[i].docker, keys[1-i].docker); err != nil {
			return fmt.Errorf("encryption of Docker: %w", err)
		}
	}
	return nil
}

// espKeys are what one direction between the nodes has.
type espKeys struct {
	spi    uint32
	cipher ipsec.Cipher
	ours   ipsec.Key
	docker []byte
}

func newESPKeys(spi uint32, c ipsec.Cipher) (k espKeys, err error) {
	k = espKeys{spi: spi, cipher: c}
	if k.ours, err = ipsec.RandomKey(c); err != nil {
		return k, err
	}
	docker, err := ipsec.RandomKey(ipsec.AES128GCM)
	k.docker = docker.Bytes()
	return k, err
}

// encryptOurs makes what a daemon makes for one peer: two SAs, the pair's policies above those that block, and the packet
// filter's rules, both the lock and those that only let nodes send.
func encryptOurs(ctx context.Context, n, peer *node, out, in espKeys) error {
	kernel, err := xfrm.Open(n.path())
	if err != nil {
		return err
	}
	defer kernel.Close()
	if _, err := kernel.Supports(ctx); err != nil {
		return err
	}
	want := ipsec.Blocked(encryptedPort)
	for _, d := range []struct {
		dir      ipsec.Direction
		src, dst netip.Addr
		keys     espKeys
		spi      uint32 // of the policy
	}{{ipsec.Out, n.vtep, peer.vtep, out, out.spi}, {ipsec.In, peer.vtep, n.vtep, in, 0}} {
		want.SAs = append(want.SAs, ipsec.SA{
			Src: d.src, Dst: d.dst, SPI: d.keys.spi, Cipher: d.keys.cipher, Key: d.keys.ours, Window: ipsec.ReplayWindow, ESN: true,
		})
		want.Policies = append(want.Policies, ipsec.Policy{
			Dir: d.dir, Src: netip.PrefixFrom(d.src, 32), Dst: netip.PrefixFrom(d.dst, 32), Port: encryptedPort,
			Priority: ipsec.PairPriority, SPI: d.spi,
		})
	}
	if err := kernel.Run(ctx, ipsec.Plan(ipsec.State{}, want.Sorted()), nil); err != nil {
		return err
	}
	rules, err := firewall.Open(ctx, n.path())
	if err != nil {
		return err
	}
	defer rules.Close()
	filter := firewall.New(rules, slog.New(slog.DiscardHandler))
	for _, s := range []firewall.Ruleset{firewall.Lock(encryptedPort), firewall.Underlay{
		Device: "ul", Nodes: []netip.Addr{n.vtep, peer.vtep}, VNIs: map[uint16][]vxlan.VNI{encryptedPort: {ourVNI}},
	}.Ruleset()} {
		if _, err := filter.Apply(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// dockerVNIBytecode is Docker's match of a VXLAN network for iptables -m bpf (moby daemon/libnetwork/drivers/overlay, bpf.go).
const dockerVNIBytecode = "7,32 0 0 4294963252,7 0 0 0,64 0 0 4,116 0 0 8,21 1 0 %d,6 0 0 0,6 0 0 4294967295"

// encryptDocker makes what Docker's overlay driver makes for one peer (moby daemon/libnetwork/drivers/overlay, encryption.go):
// AES-128-GCM with an ICV of 8 bytes; what leaves is marked by a rule, and the policy is for that mark; another rule drops what
// comes in clear.
func (n *node) encryptDocker(peer *node, out, in []byte) error {
	mark := &netlink.XfrmMark{Value: dockerESPMark, Mask: 0xffffffff}
	state := func(from, to *node, spi int, key []byte) *netlink.XfrmState {
		return &netlink.XfrmState{
			Src: from.vtep.AsSlice(), Dst: to.vtep.AsSlice(), Proto: netlink.XFRM_PROTO_ESP, Spi: spi,
			Mode: netlink.XFRM_MODE_TRANSPORT, Reqid: dockerESPMark,
			Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: key, ICVLen: 64},
		}
	}
	spi := func(from *node) int { return 0x2000 + int(from.vtep.As4()[3]) }
	exact := func(a netip.Addr) *net.IPNet { return netlink.NewIPNet(a.AsSlice()) }
	err := errors.Join(
		n.links.XfrmStateAdd(state(peer, n, spi(peer), in)), n.links.XfrmStateAdd(state(n, peer, spi(n), out)),
		n.links.XfrmPolicyAdd(&netlink.XfrmPolicy{
			Src: exact(n.vtep), Dst: exact(peer.vtep), Dir: netlink.XFRM_DIR_OUT, Proto: unix.IPPROTO_UDP, DstPort: int(vxlan.DefaultPort), Mark: mark,
			Tmpls: []netlink.XfrmPolicyTmpl{{
				Src: n.vtep.AsSlice(), Dst: peer.vtep.AsSlice(), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT,
				Spi: spi(n), Reqid: dockerESPMark,
			}},
		}))
	if err != nil {
		return err
	}
	match := []string{"-p", "udp", "--dport", fmt.Sprint(vxlan.DefaultPort), "-m", "bpf", "--bytecode", fmt.Sprintf(dockerVNIBytecode, dockerVNI)}
	return inside(n.ns, func() error {
		for _, rule := range [][]string{
			slices.Concat([]string{"-t", "mangle", "-A", "OUTPUT"}, match, []string{"-j", "MARK", "--set-mark", fmt.Sprint(dockerESPMark)}),
			slices.Concat([]string{"-I", "INPUT", "-m", "policy", "--dir", "in", "--pol", "none"}, match, []string{"-j", "DROP"}),
		} {
			if out, err := exec.Command("iptables", rule...).CombinedOutput(); err != nil {
				return fmt.Errorf("iptables %v: %w: %s", rule, err, out)
			}
		}
		return nil
	})
}

// counted is how many packets went through the SAs of both layouts on the first node.
func (b *testbed) counted() (packets [2]uint64, err error) {
	states, err := b.nodes[0].links.XfrmStateList(netlink.FAMILY_V4)
	for _, s := range states {
		layout := 0
		if s.Reqid == dockerESPMark {
			layout = 1
		}
		packets[layout] += s.Statistics.Packets
	}
	return packets, err
}

// encrypts says whether packets of both layouts have gone through SAs since they were counted.
func (b *testbed) encrypts(before [2]uint64) error {
	now, err := b.counted()
	if err != nil {
		return err
	}
	for i, layout := range []string{"netdriver's", "Docker's"} {
		if now[i] < before[i]+encryptedTransactions {
			return fmt.Errorf("in %s layout only %d packets were encrypted", layout, now[i]-before[i])
		}
	}
	return nil
}
