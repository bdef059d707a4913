//go:build linux

package xfrm

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
	"github.com/netdriver/netdriver/ipsec"
)

// batch is how many operations go into one send: a socket's buffer takes twice as many.
const batch = 500

// Run implements ipsec.Kernel.
func (l *Linux) Run(ctx context.Context, ops []ipsec.Op, done func(ipsec.Op)) error {
	var errs []error
	var failed ipsec.FailedSAs
	fail := func(op ipsec.Op, err error) {
		failed.Note(op)
		errs = append(errs, &ipsec.OpError{Op: op, Err: err})
	}
	for len(ops) > 0 {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, fmt.Errorf("change IPsec: %d operations left: %w", len(ops), err))...)
		}
		n := stretch(ops)
		var now []ipsec.Op
		for _, op := range ops[:n] {
			switch err := op.Check(); {
			case failed.Needed(op):
				fail(op, errors.New("its SA could not be added"))
			case err != nil:
				fail(op, err)
			default:
				now = append(now, op)
			}
		}
		ops = ops[n:]
		failures, err := l.send(now)
		if err != nil {
			return errors.Join(append(errs, fmt.Errorf("change IPsec: %w", err))...)
		}
		for i, op := range now {
			if err := failures[i]; err != nil && !(removes(op) && gone(err)) {
				fail(op, err)
			} else if done != nil {
				done(op)
			}
		}
	}
	return errors.Join(errs...)
}

// stretch returns how many operations can be sent before their answers must be known: whether an SA is there for a policy.
func stretch(ops []ipsec.Op) int {
	adds := false
	for i, op := range ops[:min(len(ops), batch)] {
		if adds && op.Verb == ipsec.SetPolicy {
			return i
		}
		adds = adds || op.Verb == ipsec.AddSA
	}
	return min(len(ops), batch)
}

func removes(op ipsec.Op) bool {
	return op.Verb == ipsec.DelSA || op.Verb == ipsec.DelPolicy || op.Verb == ipsec.DelBlock
}

// gone is what the kernel says of an SA (ESRCH) and of a policy (ENOENT) that is not there.
func gone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) }

// send sends operations at once and returns the failures by their index. The keys do not stay in memory.
func (l *Linux) send(ops []ipsec.Op) (map[int]error, error) {
	failures := map[int]error{}
	if len(ops) == 0 {
		return failures, nil
	}
	var out []byte
	var first uint32
	err := l.nl.Exchange(func(seq uint32) ([]byte, uint32) {
		first = seq
		out = make([]byte, 0, 768*len(ops)) // so that no copy with keys in it is left behind by growing
		for i, op := range ops {
			flags := uint16(0)
			if i == len(ops)-1 {
				flags = unix.NLM_F_ACK
			}
			out = put(out, op, flags, seq+uint32(i))
		}
		return out, seq + uint32(len(ops)) - 1
	}, func(r netlink.Reply) {
		if i := int(r.Seq - first); r.Kind == unix.NLMSG_ERROR && i >= 0 && i < len(ops) && r.Err() != nil {
			failures[i] = r.Err()
		}
	})
	clear(out[:cap(out)])
	return failures, err
}

// put appends the message of one operation.
func put(out []byte, op ipsec.Op, flags uint16, seq uint32) []byte {
	kind := map[ipsec.Verb]uint16{
		ipsec.AddSA: nl.XFRM_MSG_NEWSA, ipsec.DelSA: nl.XFRM_MSG_DELSA,
		ipsec.SetBlock: nl.XFRM_MSG_UPDPOLICY, ipsec.SetPolicy: nl.XFRM_MSG_UPDPOLICY,
		ipsec.DelBlock: nl.XFRM_MSG_DELPOLICY, ipsec.DelPolicy: nl.XFRM_MSG_DELPOLICY,
	}[op.Verb]
	if op.Verb == ipsec.AddSA {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	start := len(out)
	m := netlink.AppendMessage(out, kind, flags, seq)
	switch op.Verb {
	case ipsec.AddSA:
		putSA(m, op.SA)
	case ipsec.DelSA:
		putSAID(m, op.SA.ID())
	case ipsec.SetBlock, ipsec.SetPolicy:
		putPolicy(m, op.Policy)
	default:
		putPolicyID(m, op.Policy)
	}
	return m.Finish(start)
}
