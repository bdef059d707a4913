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

// encryptionBenchmarks are those of `make bench-encryption`.
func encryptionBenchmarks() []benchmark {
	return []benchmark{{"esp", encryptedPath}, {"no-aes", encrypting}, {"aes", encryptingWithAES}, {"attach", attachingEncrypted}}
}

// espKernel is that of a virtual node which encrypts.
func espKernel(cpu string) lab.Kernel {
	return lab.Kernel{CPU: cpu, Modules: []string{"esp4", "esp6", "xt_policy", "xt_bpf", "xt_mark"}}
}

// encrypting is encryptedPath in a virtual node, since only few kernels that tests run on have ESP. Its CPU has no instructions for
// AES, nor for its integrity check.
func encrypting(ctx context.Context, b *bench) ([]Result, error) {
	return encryptingOn(ctx, b, lab.DefaultCPU+",aes=off,pclmulqdq=off", "no AES instructions")
}

// encryptingWithAES is the same on a CPU that has them. The emulator makes them slow, so its figures have no targets.
func encryptingWithAES(ctx context.Context, b *bench) ([]Result, error) {
	results, err := encryptingOn(ctx, b, lab.DefaultCPU, "AES instructions, emulated; for information")
	for i := range results {
		results[i].Target = 0
	}
	return results, err
}

func encryptingOn(ctx context.Context, b *bench, cpu, what string) ([]Result, error) {
	results, err := virtually(ctx, b, espKernel(cpu), "encryption", "^esp$")
	if err == nil && len(results) == 0 {
		err = errors.New("the virtual node's kernel has no ESP")
	}
	for i := range results {
		results[i].What += " (" + what + ")"
	}
	return results, err
}

// attachingEncrypted makes endpoints in turns on an encrypted network and on one in clear, of one daemon in a virtual node.
func attachingEncrypted(ctx context.Context, b *bench) ([]Result, error) {
	config := lab.Config{Nodes: 1, Virtual: true, Kernel: espKernel(lab.DefaultCPU)}
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
