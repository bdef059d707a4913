//go:build linux

package xfrm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"

	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/ipsec"
)

// Counters implements ipsec.Kernel.
func (l *Linux) Counters(context.Context) (ipsec.Counters, error) {
	var c ipsec.Counters
	err := l.dump(nl.XFRM_MSG_GETSA, "SAs", func() { c.SAs = nil }, func(body []byte) {
		if s, ours := parseSA(body); ours {
			c.SAs = append(c.SAs, s)
		}
	})
	if err != nil {
		return c, err
	}
	slices.SortFunc(c.SAs, func(a, b ipsec.SACount) int { return ipsec.CompareSAs(a.SA, b.SA) })
	c.Drops, err = l.drops()
	return c, err
}

// drops reads what the whole namespace's XFRM has refused (CONFIG_XFRM_STATISTICS; all zero without).
func (l *Linux) drops() (d ipsec.Drops, err error) {
	var text []byte
	err = netlink.In(l.ns, func() (err error) { text, err = os.ReadFile("/proc/thread-self/net/xfrm_stat"); return err })
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return d, fmt.Errorf("read IPsec statistics: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) != 2 {
			continue
		}
		n, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return d, fmt.Errorf("read IPsec statistics: %s: %w", words[0], err)
		}
		*counter(&d, words[0]) += n
	}
	return d, nil
}

// counter returns where a line of xfrm_stat belongs (Linux's Documentation/networking/xfrm_proc.rst).
func counter(d *ipsec.Drops, name string) *uint64 {
	switch name {
	case "XfrmInNoStates":
		return &d.NoSA
	case "XfrmInStateProtoError": // ESP's own check failed
		return &d.Integrity
	case "XfrmInStateSeqError":
		return &d.Replay
	case "XfrmInNoPols", "XfrmInPolBlock", "XfrmInTmplMismatch":
		return &d.PlainIn
	case "XfrmOutPolBlock":
		return &d.PlainOut
	case "XfrmOutNoStates", "XfrmAcquireError":
		return &d.OutNoSA
	case "XfrmInStateMismatch", "XfrmInStateModeError":
		return &d.Mismatch
	}
	return &d.Other
}
