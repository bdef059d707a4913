package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

const (
	// modulesLimit is how long an emulated kernel may take to load its modules for ESP; until then a node cannot encrypt.
	modulesLimit = 2 * time.Minute
	// attachedInTurns is how many endpoints are made on either of two networks.
	attachedInTurns = 60
)

// encrypting is encryptedPath in virtual nodes, since only few kernels that tests run on have ESP: on a CPU without instructions for
// AES, and on one with them, where the emulator makes these slow; and what encryption adds to an attach.
func encrypting(ctx context.Context, b *bench) ([]Result, error) {
	kernel := lab.Kernel{Modules: []string{"esp4", "esp6", "xt_policy", "xt_bpf", "xt_mark"}}
	var results []Result
	for _, c := range []struct {
		cpu, what string
		// judged: the figures have their targets.
		judged bool
	}{
		{lab.DefaultCPU + ",aes=off,pclmulqdq=off", "no AES instructions", true},
		{lab.DefaultCPU, "emulated AES instructions, for information", false},
	} {
		kernel.CPU = c.cpu
		more, err := virtually(ctx, b, kernel, "^esp$")
		if err == nil && len(more) == 0 {
			err = errors.New("the virtual node's kernel has no ESP")
		}
		for i := range more {
			more[i].What += " (" + c.what + ")"
			if !c.judged {
				more[i].Target = 0
			}
		}
		if results = append(results, more...); err != nil {
			return results, err
		}
	}
	more, err := attachingEncrypted(ctx, b, kernel)
	return append(results, more...), err
}

// attachingEncrypted makes endpoints in turns on an encrypted network and on one in clear, of one daemon in a virtual node.
func attachingEncrypted(ctx context.Context, b *bench, kernel lab.Kernel) ([]Result, error) {
	config := lab.Config{Nodes: 1, Virtual: true, Kernel: kernel}
	return withDaemons(ctx, b, config, []string{"--docker-host", ""}, func(l *lab.Lab) ([]Result, error) {
		e := engineOf(l.Nodes[0])
		defer e.close()
		clear, err := e.createNetwork(ctx, "clear", "10.8.0.0/16")
		if err != nil {
			return nil, err
		}
		var secret *dockerNetwork
		for end := time.Now().Add(modulesLimit); secret == nil; {
			if secret, err = e.createNetwork(ctx, "secret", "10.9.0.0/16", "encrypted", "true"); err != nil {
				if secret = nil; time.Now().After(end) {
					return nil, err
				}
				time.Sleep(time.Second)
			}
		}
		join := func(n *dockerNetwork) func() (float64, error) {
			return func() (float64, error) { _, took, err := n.attach(ctx); return took, err }
		}
		ours, theirs, err := inTurns(ctx, attachedInTurns, join(secret), join(clear))
		if err != nil {
			return nil, fmt.Errorf("attach: %w", err)
		}
		r, err := ratioResult("CreateEndpoint and Join on an encrypted network ÷ that on one in clear", ours, theirs, "ms", 1.1)
		return []Result{r}, err
	})
}
