//go:build linux

package firewall

import (
	"context"
	"errors"
	"fmt"

	"github.com/netdriver/netdriver/vxlan"
)

// Open returns the packet filter of a network namespace, given by its file; empty is the process's own. It is nftables where
// the kernel has that for the family inet, else the old iptables. Each is tried with rules about everything that netdriver's
// own need; nothing of them stays. The error wraps ErrUnsupported and says what both lack.
func Open(ctx context.Context, ns string) (Kernel, error) {
	nft, err := OpenNFTables(ns)
	if err != nil {
		return nil, err
	}
	noNFT := try(ctx, nft)
	if noNFT == nil {
		return nft, nil
	}
	if err := nft.Close(); err != nil {
		return nil, err
	}
	old, noOld := OpenIPTables(ns, true)
	if noOld == nil {
		if noOld = try(ctx, old); noOld == nil {
			return old, nil
		}
		noOld = errors.Join(noOld, old.Close())
	}
	return nil, fmt.Errorf("%w: nftables: %w; iptables: %w: load the modules nf_tables, nft_xfrm and nft_counter, or "+
		"ip_tables, ip6_tables, iptable_mangle, ip6table_mangle, xt_policy, xt_u32 and xt_comment", ErrUnsupported, noNFT, noOld)
}

// try puts rules into the kernel and takes them out again..
func try(ctx context.Context, k Kernel) error {
	rule := Rule{Name: "try", In: "none", Protocol: UDP, Port: 1, IPsec: Plain, Verdict: Drop}
	vni := Rule{Name: "try", In: "none", Protocol: UDP, Port: 1, VNIs: "vnis", FromSet: "from", NotFromSet: true, Verdict: Drop}
	out := rule
	out.In, out.Out = "", "none" // no such interface: it matches nothing
	want := k.Compile(Ruleset{
		Owner: "try", Sets: []Set{{Name: "vnis", VNIs: []vxlan.VNI{1}}, {Name: "from"}},
		Chains: []Chain{{Hook: Input, Rules: []Rule{rule, vni}}, {Hook: Output, Rules: []Rule{out}}},
	})
	have, err := k.Read(ctx) // what a daemon has left that was killed here
	if err != nil {
		return err
	}
	if err := k.Run(ctx, Plan(have.of("try"), want)); err != nil {
		return errors.Join(err, k.Run(ctx, Plan(want, Compiled{})))
	}
	return k.Run(ctx, Plan(want, Compiled{}))
}
