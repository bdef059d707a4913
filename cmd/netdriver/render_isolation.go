package main

import (
	"fmt"
	"strings"

	"github.com/netdriver/netdriver/diag"
)

// isolation says in a line who is kept from whom.
func isolation(i diag.Isolation) string {
	var parts []string
	if i.Isolate {
		parts = append(parts, "endpoints reach only the gateway and services")
	}
	if len(i.Allow) > 0 {
		parts = append(parts, strings.Join(i.Allow, ", ")+"; all else is denied")
	}
	if i.Rate > 0 {
		parts = append(parts, "each endpoint "+bitRate(i.Rate))
	}
	return strings.Join(parts, " · ")
}

// bitRate writes bits per second with the largest unit that needs no fraction.
func bitRate(n uint64) string {
	for _, u := range []struct {
		size uint64
		name string
	}{{1e9, "Gbit/s"}, {1e6, "Mbit/s"}, {1e3, "kbit/s"}} {
		if n >= u.size && n%u.size == 0 {
			return fmt.Sprintf("%d %s", n/u.size, u.name)
		}
	}
	return fmt.Sprintf("%d bit/s", n)
}

// drops says what was dropped at an endpoint's port.
func drops(e diag.Endpoint) string {
	if e.Drops == nil {
		return none
	}
	var parts []string
	for _, c := range []struct {
		n    uint64
		what string
	}{{e.Drops.Spoofed, "spoofed"}, {e.Drops.Denied, "denied"}, {e.Drops.TooFast, "too fast"}} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return strings.Join(parts, ", ")
}
