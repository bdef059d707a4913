//go:build linux

package balance

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Supported tries on the device with that index whether this kernel can balance services, and says what is missing: the
// program is loaded, put on the device and taken off it. The calling thread must be in the device's network namespace.
func Supported(index int) error {
	s, err := New()
	if err != nil {
		var refused *ebpf.VerifierError
		if errors.As(err, &refused) {
			return fmt.Errorf("%w: it refuses the program: %w; Linux 5.10 or later is needed", ErrUnsupported, err)
		}
		return fmt.Errorf("%w: %w; it must be built with CONFIG_BPF_SYSCALL, and netdriver needs CAP_BPF or CAP_SYS_ADMIN",
			ErrUnsupported, err)
	}
	defer s.Close()
	if err := s.Attach(index); err != nil {
		return fmt.Errorf("%w: %w; it needs TCX (Linux 6.6), or CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF "+
			"(modules sch_ingress and cls_bpf)", ErrUnsupported, err)
	}
	return s.Detach(index)
}
