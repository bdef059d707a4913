//go:build linux

package firewall

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// Left tells what of netdriver's is in the packet filters of a network namespace, given as to Open: nothing, if nothing is.
func Left(ctx context.Context, ns string) ([]string, error) {
	var left []string
	err := each(ns, func(k Kernel) error {
		have, err := k.Read(ctx)
		if err == nil && len(have.Chains)+len(have.Sets)+len(have.Counters) > 0 {
			left = append(left, fmt.Sprintf("%d chains of %s", len(have.Chains), k.Name()))
		}
		return err
	})
	return left, err
}

// Purge removes all of it. No daemon may run.
func Purge(ctx context.Context, ns string) error {
	return each(ns, func(k Kernel) error {
		have, err := k.Read(ctx)
		if err != nil {
			return err
		}
		if err := k.Run(ctx, Plan(have, Compiled{})); err != nil {
			return err
		}
		if n, ok := k.(*NFTables); ok {
			return n.deleteTable()
		}
		return nil
	})
}

// each calls f for the kernels that a host has: nftables, the old iptables, and whatever else is called iptables there.
// Reading one that the kernel lacks finds nothing; a host without the programs has nothing there.
func each(ns string, f func(Kernel) error) error {
	nft, err := OpenNFTables(ns)
	if err != nil {
		return err
	}
	errs := []error{f(nft), nft.Close()}
	var last *IPTables
	for _, legacy := range []bool{true, false} {
		t, err := OpenIPTables(ns, legacy)
		if err != nil || last != nil && maps.Equal(last.programs, t.programs) {
			continue
		}
		last = t
		errs = append(errs, f(t), t.Close())
	}
	return errors.Join(errs...)
}

// deleteTable removes the table, which is empty.
func (n *NFTables) deleteTable() error {
	first, answered := uint32(0), error(nil)
	err := n.nl.Exchange(func(seq uint32) ([]byte, uint32) {
		first = seq
		b := batch{next: seq}
		b.message(unix.NFNL_MSG_BATCH_BEGIN, unix.AF_UNSPEC, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
		b.next = seq // see transact
		b.message(nfMessage(unix.NFT_MSG_DELTABLE), unix.NFPROTO_INET, unix.NLM_F_ACK, 0,
			func(m *netlink.Message) { m.Text(unix.NFTA_TABLE_NAME, Table) })
		b.message(unix.NFNL_MSG_BATCH_END, unix.AF_UNSPEC, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
		return b.out, seq
	}, func(r netlink.Reply) {
		if r.Kind == unix.NLMSG_ERROR && r.Seq == first {
			answered = r.Err()
		}
	})
	if errors.Is(answered, unix.ENOENT) || errors.Is(answered, unix.EOPNOTSUPP) {
		answered = nil // there is none
	}
	return errors.Join(err, answered)
}
