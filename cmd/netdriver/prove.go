package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/control"
	"github.com/netdriver/netdriver/internal/proof"
	"github.com/netdriver/netdriver/store"
)

const proveLong = `Send marked frames through a network to every other node that has it, look at what leaves this host's devices meanwhile,
and say how many left as ESP and how many in clear. No container sees the frames, and nothing is left behind.

Exit status: 0 all left as ESP, 1 some were dropped, 2 some left in clear, 3 could not tell.`

// proofSchema names the version of the report's JSON.
const proofSchema = "netdriver.prove/v1"

// proofReport is what was seen of one network.
type proofReport struct {
	Schema    string       `json:"schema"`
	Network   string       `json:"network"`
	Node      string       `json:"node"`
	Encrypted bool         `json:"encrypted"`
	Verdict   diag.Verdict `json:"verdict"`
	Reason    string       `json:"reason,omitempty"`
	proof.Result

	blocked map[string]string
}

// prove is the verb that looks at the wire.
func (a app) prove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "prove NETWORK", Short: "Prove that a network's packets leave this host encrypted", Long: proveLong,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeNetworks,
	}
	probes := cmd.Flags().Int("probes", 20, fmt.Sprintf("`number` of frames to each node, 1..%d", proof.MaxProbes))
	cmd.RunE = a.ask(cmd, func(ctx context.Context, c *control.Client, args []string) (answer, error) {
		cfg, err := config.Load(cmd.Flags(), a.environ, "run-dir")
		if err != nil {
			return answer{}, err
		}
		r, err := c.Network(ctx, args[0])
		if err != nil {
			return answer{}, err
		}
		p, err := prove(ctx, r, dataplane.NamespaceIn(cfg.RunDir), *probes)
		return answer{p, func(pt painter) string { return pt.proof(p) }, exitOf(p.Verdict)}, err
	})
	return cmd
}

// prove looks at the packets of a network that this node has.
func prove(ctx context.Context, r diag.NetworkReport, namespace string, probes int) (proofReport, error) {
	out := proofReport{
		Schema: proofSchema, Network: r.Network, Node: r.Node, Encrypted: r.Encryption != nil, blocked: map[string]string{},
	}
	if r.Mode != store.ModeOverlay {
		return out, fmt.Errorf("network %s is of mode %s: it has no packets between nodes of its own", r.Network, r.Mode)
	}
	if !r.Member {
		return out, fmt.Errorf("this node has no part in network %s: ask on one that has", r.Network)
	}
	n := proof.Network{Namespace: namespace, Device: dataplane.VXLANName(r.VNI), VNI: r.VNI, MTU: r.MTU.MTU}
	for _, p := range r.Peers {
		if p.State != diag.StateLocal && p.Address.IsValid() {
			n.Peers = append(n.Peers, proof.Peer{Node: p.Node, Address: p.Address})
		}
	}
	if r.Encryption != nil {
		n.Encap = r.Encryption.Encap
		for _, p := range r.Encryption.Pairs {
			out.blocked[p.Peer] = p.Blocked
		}
	}
	if len(n.Peers) == 0 {
		return out, fmt.Errorf("no other node has network %s: there is nothing to send", r.Network)
	}
	var err error
	if out.Result, err = proof.Run(ctx, n, probes); err != nil {
		return out, err
	}
	out.Verdict, out.Reason = verdictOf(out)
	return out, nil
}

// verdictOf judges what was seen.
func verdictOf(r proofReport) (diag.Verdict, string) {
	var sent, esp, clear int
	for _, s := range r.Peers {
		sent, esp, clear = sent+s.Sent, esp+s.ESP, clear+s.Clear
	}
	switch {
	case clear > 0 && !r.Encrypted:
		return diag.Failed, "the network is not encrypted: create one with --opt encrypted"
	case clear > 0:
		return diag.Failed, "packets of an encrypted network leave in clear: take this host off the network, and see `netdriver inspect`"
	case r.Missed > 0:
		return diag.Unknown, fmt.Sprintf("%d packets of this host could not be looked at: try again when it is less busy", r.Missed)
	case esp < sent:
		return diag.Degraded, fmt.Sprintf("%d were dropped before they could leave: nothing of them is in clear", sent-esp)
	}
	return diag.Healthy, ""
}
