package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// busy returns which part of all CPUs' time was in use over a while. What else runs on the machine does little to a
// ratio, but makes latencies longer, so it is shown beside them.
func busy(while time.Duration) (float64, error) {
	before, err := readCPUTimes()
	if err != nil {
		return 0, err
	}
	time.Sleep(while)
	after, err := readCPUTimes()
	total := after.total - before.total
	if err != nil || total == 0 {
		return 0, err
	}
	return 1 - float64(after.idle-before.idle)/float64(total), nil
}

// cpuTimes are sums over all CPUs since boot, in clock ticks.
type cpuTimes struct{ total, idle uint64 }

func readCPUTimes() (cpuTimes, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTimes{}, err
	}
	return parseCPUTimes(string(text))
}

// parseCPUTimes reads the first line of /proc/stat (man 5 proc): user, nice, system, idle, iowait, and the rest. The
// time of guests, from the ninth number on, is part of user time already.
func parseCPUTimes(stat string) (cpuTimes, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 6 || fields[0] != "cpu" {
		return cpuTimes{}, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var t cpuTimes
	for i, f := range fields[1:min(len(fields), 9)] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return cpuTimes{}, fmt.Errorf("/proc/stat begins with %q: %w", line, err)
		}
		t.total += n
		if i == 3 || i == 4 { // idle, iowait
			t.idle += n
		}
	}
	return t, nil
}
