package ipsec

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// pairState is what a node has that sends to and receives from one peer.
func pairState(t *testing.T) State {
	t.Helper()
	own, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	e := Epoch{Number: 1, ID: "e1", Public: own.Public(), Ciphers: Ciphers()}
	pair := Pair{Sender: testNode(0), Receiver: testNode(1), SenderEpoch: e, ReceiverEpoch: e}
	sa, err := newSA(pair, pair.SPI(nil), own)
	if err != nil {
		t.Fatal(err)
	}
	s := Blocked(4790)
	s.SAs = append(s.SAs, sa)
	s.Policies = append(s.Policies, pairPolicy(Out, sa.Src, sa.Dst, 4790, sa.SPI))
	return s.Sorted()
}

func TestTheFakeHoldsWhatWasPlanned(t *testing.T) {
	f, ctx, want := NewFake(), context.Background(), pairState(t)
	done := 0
	if err := f.Run(ctx, Plan(State{}, want), func(Op) { done++ }); err != nil {
		t.Fatal(err)
	}
	have, _ := f.Read(ctx)
	if ops := Plan(have, want); len(ops) > 0 || done != 6 {
		t.Errorf("after %d operations: still %v", done, ops)
	}
	if have.SAs[0].Key.Bytes() != nil {
		t.Error("a key was read back")
	}
	err := f.Run(ctx, []Op{{Verb: AddSA, SA: want.SAs[0]}}, nil)
	var which *OpError
	if !errors.Is(err, unix.EEXIST) || !errors.As(err, &which) {
		t.Errorf("an SA was added twice: %v", err)
	}
}

func TestAPolicyWhoseSAFailedIsLeftAsItWas(t *testing.T) {
	f, ctx := NewFake(), context.Background()
	f.FailOn = func(o Op) error {
		if o.Verb == AddSA {
			return unix.ENOMEM
		}
		return nil
	}
	if err := f.Run(ctx, Plan(State{}, pairState(t)), nil); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("error %v", err)
	}
	if have, _ := f.Read(ctx); slices.ContainsFunc(have.Policies, func(p Policy) bool { return !p.Block }) {
		t.Errorf("policies without an SA: %v", have.Policies)
	}
}

func TestImpossibleOperationsAreRefused(t *testing.T) {
	sa := pairState(t).SAs[0]
	for name, op := range map[string]Op{
		"no key":         {Verb: AddSA, SA: func() SA { s := sa; s.Key = Key{}; return s }()},
		"reserved SPI":   {Verb: AddSA, SA: func() SA { s := sa; s.SPI = 255; return s }()},
		"mixed families": {Verb: AddSA, SA: func() SA { s := sa; s.Src = netip.IPv6Loopback(); return s }()},
		"ESN, no window": {Verb: AddSA, SA: func() SA { s := sa; s.Window = 0; return s }()},
		"one port":       {Verb: AddSA, SA: func() SA { s := sa; s.Encap.Src = 4500; return s }()},
		"not ours":       {Verb: SetPolicy, Policy: func() Policy { p := pairPolicy(Out, sa.Src, sa.Dst, 1, 1); p.Priority = 1; return p }()},
		"nothing":        {},
	} {
		if err := NewFake().Run(context.Background(), []Op{op}, nil); err == nil {
			t.Errorf("%s: done", name)
		}
	}
}
