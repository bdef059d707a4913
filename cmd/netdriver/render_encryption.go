package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/store"
)

// crypto are the lines of inspect about an encrypted network: how, and what was dropped.
func (p painter) crypto(b *strings.Builder, r diag.NetworkReport) {
	e := r.Encryption
	if e == nil {
		return
	}
	text := fmt.Sprintf("ESP %s · new key every %s", cmp.Or(e.Cipher, "with the cipher that suits each pair"), seconds(e.Rekey))
	if e.Epoch > 0 {
		text += fmt.Sprintf(" · epoch %d, %s old", e.Epoch, p.age(e.Begun))
	}
	line(b, "crypto", text)
	d := e.Drops
	line(b, "", fmt.Sprintf("this node has dropped: in clear %d in, %d out (past the policies %d in, %d out) · replayed %d · forged %d · "+
		"of no key %d", d.PlainIn, d.PlainOut, d.FilterIn, d.FilterOut, d.Replayed, d.Forged, d.Unknown))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// pairs is the table of what this node shares with each other one. Each row adds up the pair's keys of one direction.
func (p painter) pairs(e *diag.Encryption) string {
	var rows []table.Row
	for _, pair := range e.Pairs {
		state := p.paint(green, "ok")
		switch {
		case pair.Blocked != "":
			state = p.paint(red, "blocked: "+pair.Blocked)
		case pair.Behind:
			state = p.paint(yellow, "ok, it sends with an older key")
		}
		var in, out store.SA
		for _, s := range pair.SAs {
			sum := &out
			if s.In {
				sum = &in
			}
			sum.Packets, sum.Bytes = sum.Packets+s.Packets, sum.Bytes+s.Bytes
			sum.Replayed, sum.Forged = sum.Replayed+s.Replayed+s.Late, sum.Forged+s.Forged
		}
		rows = append(rows, table.Row{
			pair.Peer, cmp.Or(pair.Cipher, none), fmt.Sprintf("%s/%s", known(pair.Epoch), known(pair.PeerEpoch)), p.age(pair.Since),
			fmt.Sprintf("%d/%s", out.Packets, bytesText(out.Bytes)), fmt.Sprintf("%d/%s", in.Packets, bytesText(in.Bytes)),
			in.Replayed, in.Forged, state,
		})
	}
	return columns(table.Row{"ESP WITH", "CIPHER", "EPOCHS", "SA AGE", "SENT", "RECEIVED", "REPLAYED", "FORGED", "STATE"}, rows)
}

// bytesText writes a number of bytes with one unit.
func bytesText(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	v, i := float64(n), 0
	for v >= 1000 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// proof is the text of `netdriver prove`: the verdict first.
func (p painter) proof(r proofReport) string {
	var b strings.Builder
	var sent, esp, clear int
	for _, s := range r.Peers {
		sent, esp, clear = sent+s.Sent, esp+s.ESP, clear+s.Clear
	}
	fmt.Fprintf(&b, "%s  %s  %d of %d left as ESP, %d in clear\n", r.Network, p.verdict(r.Verdict), esp, sent, clear)
	if r.Reason != "" {
		fmt.Fprintf(&b, "  %s\n", r.Reason)
	}
	var rows []table.Row
	for _, s := range r.Peers {
		rows = append(rows, table.Row{s.Node, s.Address, s.Sent, s.ESP, s.Clear, s.Sent - s.ESP - s.Clear,
			cmp.Or(strings.Join(s.Devices, " "), none), cmp.Or(r.blocked[s.Node], none)})
	}
	if len(rows) > 0 {
		b.WriteString("\n" + columns(table.Row{"TO", "ADDRESS", "PROBES", "AS ESP", "IN CLEAR", "DROPPED", "BY", "WHY DROPPED"}, rows))
	}
	return b.String()
}
