//go:build linux

package xfrm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/ipsec"
)

// Supports implements ipsec.Kernel. It adds SAs in a network namespace that lives as long as the attempt: only the kernel
// itself knows what it, its modules and its crypto policy have.
func (l *Linux) Supports(ctx context.Context) ([]ipsec.Cipher, error) {
	var usable []ipsec.Cipher
	var missing []string
	err := netlink.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace to try IPsec in: %w", err)
		}
		probe, err := Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		for _, c := range ipsec.Ciphers() {
			if why := probe.lacks(ctx, c); why != "" {
				missing = append(missing, why)
			} else {
				usable = append(usable, c)
			}
		}
		return probe.Close()
	})
	if err == nil && len(usable) == 0 {
		err = fmt.Errorf("%w: %s: load the kernel's modules esp4 and esp6, and gcm and aes, or chacha20poly1305",
			ipsec.ErrUnsupported, strings.Join(missing, "; "))
	}
	return usable, err
}

// lacks says what the kernel lacks for a cipher, in either address family; empty if nothing.
func (l *Linux) lacks(ctx context.Context, c ipsec.Cipher) string {
	for _, pair := range [][2]string{{"192.0.2.1", "192.0.2.2"}, {"2001:db8::1", "2001:db8::2"}} { // RFC 5737, RFC 3849
		sa := ipsec.SA{
			Src: netip.MustParseAddr(pair[0]), Dst: netip.MustParseAddr(pair[1]), SPI: 0x1000, Cipher: c,
			Window: ipsec.ReplayWindow, ESN: true,
		}
		key, err := ipsec.RandomKey(c)
		if err != nil {
			return err.Error()
		}
		sa.Key = key
		err = l.Run(ctx, []ipsec.Op{{Verb: ipsec.AddSA, SA: sa}, {Verb: ipsec.DelSA, SA: sa}}, nil)
		module := map[bool]string{true: "esp4", false: "esp6"}[sa.Dst.Is4()]
		switch {
		case err == nil:
		case errors.Is(err, unix.EPROTONOSUPPORT):
			return fmt.Sprintf("%s needs ESP, the module %s", c, module)
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOENT):
			return fmt.Sprintf("%s needs the algorithm %s", c, c.KernelName())
		default:
			return fmt.Sprintf("%s: %v", c, err)
		}
	}
	return ""
}
