package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// process is what /proc/PID/stat says of one process: its parent, and the CPU time, in clock ticks, that it has used itself
// and that its children had when they ended, theirs included (man 5 proc, fields 4 and 14 to 17).
type process struct {
	parent     int
	own, ended uint64
}

// familyTime returns the CPU time, in clock ticks of 10 ms, of all processes that this one has started, directly or not, without
// those excepted. Other programs on the machine are not in it, however busy they are.
func familyTime(except ...int) (uint64, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	all := map[int]process{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		pid, p, err := parseProcess(string(text))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		all[pid] = p
	}
	return family(all, os.Getpid(), except), nil
}

// parseProcess reads a /proc/PID/stat. A program's name may have spaces and brackets.
func parseProcess(stat string) (pid int, p process, err error) {
	before, _, _ := strings.Cut(stat, " ")
	f := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	if pid, err = strconv.Atoi(before); err != nil || len(f) < 15 {
		return 0, p, fmt.Errorf("it says %q", stat)
	}
	if p.parent, err = strconv.Atoi(f[1]); err != nil {
		return 0, p, err
	}
	var ticks [4]uint64
	for i := range ticks {
		if ticks[i], err = strconv.ParseUint(f[11+i], 10, 64); err != nil {
			return 0, p, err
		}
	}
	p.own, p.ended = ticks[0]+ticks[1], ticks[2]+ticks[3]
	return pid, p, nil
}

// family sums over the descendants of root, the ended ones included, without root itself and those excepted.
func family(all map[int]process, root int, except []int) uint64 {
	sum := all[root].ended
	for pid, p := range all {
		if pid != root && !slices.Contains(except, pid) && descends(all, pid, root) {
			sum += p.own + p.ended
		}
	}
	return sum
}

func descends(all map[int]process, pid, root int) bool {
	for range len(all) { // two processes read at different moments could name each other
		p, there := all[pid]
		switch {
		case !there:
			return false
		case p.parent == root:
			return true
		}
		pid = p.parent
	}
	return false
}
