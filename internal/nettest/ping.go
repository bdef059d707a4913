package nettest

import (
	"fmt"
	"regexp"
	"strconv"
)

// Pings reads what busybox's ping printed, not under -q: how many packets it sent, and how many of them were answered, the last ones
// left out: it waits for these a second at most (busybox networking/ping.c), which a busy emulated host may need.
func Pings(printed string, last int) (sent, answered int, err error) {
	m := regexp.MustCompile(`(\d+) packets transmitted`).FindStringSubmatch(printed)
	if m == nil {
		return 0, 0, fmt.Errorf("ping said %s", printed)
	}
	if sent, err = strconv.Atoi(m[1]); err != nil {
		return 0, 0, err
	}
	sent = max(sent-last, 0)
	seen := map[int]bool{}
	for _, m := range regexp.MustCompile(`: seq=(\d+) `).FindAllStringSubmatch(printed, -1) {
		if n, err := strconv.Atoi(m[1]); err == nil && n < sent {
			seen[n] = true
		}
	}
	return sent, len(seen), nil
}
