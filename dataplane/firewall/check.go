package firewall

import (
	"errors"
	"fmt"
	"regexp"
)

// ErrRuleset is wrapped by every error about a ruleset that makes no sense.
var ErrRuleset = errors.New("bad ruleset")

// Check says what is wrong with a ruleset. The error wraps ErrRuleset.
func (s Ruleset) Check() error {
	if !matches(`^[a-z]{1,9}$`, s.Owner) {
		return fmt.Errorf("%w: owner %q: want 1 to 9 lower-case letters", ErrRuleset, s.Owner)
	}
	var errs []error
	sets := map[string]Set{}
	for _, x := range s.Sets {
		if _, twice := sets[x.Name]; twice || !matches(`^[a-z][a-z0-9-]{0,14}$`, x.Name) || len(x.Addrs) > 0 && len(x.VNIs) > 0 {
			errs = append(errs, fmt.Errorf("set %q: want a name of its own, and addresses or VNIs, not both", x.Name))
		}
		sets[x.Name] = x
	}
	hooks := map[Hook]bool{}
	for _, c := range s.Chains {
		if hooks[c.Hook] || c.Hook < Input || c.Hook > Allow {
			errs = append(errs, fmt.Errorf("hook %d is none or there twice", c.Hook))
			continue
		}
		hooks[c.Hook] = true
		for i, r := range c.Rules {
			if err := r.check(c.Hook, sets); err != nil {
				errs = append(errs, fmt.Errorf("chain %s, rule %d %q: %w", c.Hook, i+1, r.Name, err))
			}
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w of %s: %w", ErrRuleset, s.Owner, errors.Join(errs...))
	}
	return nil
}

func matches(pattern, s string) bool { return regexp.MustCompile(pattern).MatchString(s) }

// interfaces' names have at most 15 bytes (IFNAMSIZ of linux/if.h); a few characters mean something to one of the kernels' tools.
const interfaceName = `^[^\s/:+*"!]{1,15}\*?$`

func (r Rule) check(h Hook, sets map[string]Set) error {
	_, hasSet := sets[r.FromSet]
	_, hasVNIs := sets[r.VNIs]
	switch {
	case r.Name != "" && !matches(`^[a-z][a-z0-9-]{0,14}$`, r.Name):
		return errors.New("name: want up to 15 lower-case letters, digits and hyphens")
	case r.In != "" && !matches(interfaceName, r.In), r.Out != "" && !matches(interfaceName, r.Out):
		return fmt.Errorf("interfaces %q, %q: want up to 15 characters, with * at the end for any rest", r.In, r.Out)
	case r.In != "" && h >= Output && h != DNAT && h != Allow, r.Out != "" && (h == Input || h == DNAT):
		return fmt.Errorf("an interface that is not known at %s", h)
	case r.NotIn && r.In == "", r.NotOut && r.Out == "", r.NotFrom && !r.From.IsValid(), r.NotTo && !r.To.IsValid(),
		r.NotFromSet && r.FromSet == "":
		return errors.New("not what?")
	case r.Protocol != 0 && r.Protocol != UDP && r.Protocol != TCP, r.Port != 0 && r.Protocol == 0:
		return fmt.Errorf("protocol %d, port %d: want UDP or TCP", r.Protocol, r.Port)
	case r.From.IsValid() && r.To.IsValid() && r.From.Addr().Is4() != r.To.Addr().Is4():
		return errors.New("from and to are of different families")
	case r.From != r.From.Masked() || r.To != r.To.Masked():
		return errors.New("a prefix has bits beyond its length")
	case r.FromSet != "" && !hasSet, r.VNIs != "" && (!hasVNIs || r.Protocol != UDP || r.Port == 0):
		return errors.New("a set that is not there, or VNIs without a UDP port")
	case r.Extended && (r.Protocol != UDP || r.VNIs != ""):
		return errors.New("extended: want UDP, and no VNIs")
	case r.IPsec != 0 && h != Input && h != Output:
		return fmt.Errorf("what IPsec does is not known at %s", h)
	case r.Mark&^r.Mask != 0:
		return errors.New("the mark has bits outside of its mask")
	}
	return r.checkVerdict(h)
}

func (r Rule) checkVerdict(h Hook) error {
	nat := h == DNAT || h == LocalDNAT || h == SNAT
	ok := false
	switch r.Verdict {
	case Drop:
		ok = !nat && h != Allow
	case Pass:
		ok = true
	case Accept:
		ok = h == Allow
	case Masquerade:
		ok = h == SNAT
	case Redirect:
		ok = (h == DNAT || h == LocalDNAT) && r.Protocol != 0 && r.Target.IsValid() && r.Target.Port() != 0
		ok = ok && !r.Target.Addr().Is4In6()
	}
	if !ok || r.Target.IsValid() != (r.Verdict == Redirect) {
		return fmt.Errorf("verdict %d does not go with %s and target %v", r.Verdict, h, r.Target)
	}
	if r.Name != "" && nat {
		// Only a connection's first packet comes by, so the number would mislead.
		return errors.New("rules of NAT count nothing")
	}
	return nil
}
