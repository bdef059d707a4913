package main

import "testing"

func TestCPUTimesCountIdleAndNoGuestTwice(t *testing.T) {
	got, err := parseCPUTimes("cpu  10 1 20 300 40 5 6 7 1000 1000\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if want := (cpuTimes{total: 389, idle: 340}); got != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, broken := range []string{"", "intr 1 2 3 4 5 6", "cpu 1 2", "cpu 1 2 x 4 5 6"} {
		if got, err := parseCPUTimes(broken); err == nil {
			t.Errorf("%q: got %+v, want an error", broken, got)
		}
	}
}

func TestMemoryIsReadInMegabytes(t *testing.T) {
	const status = "Name:\tnetdriver\nVmHWM:\t  200000 kB\nVmRSS:\t  100000 kB\nThreads:\t9\n"
	if got, err := megabytes(status, "VmRSS"); got != 102.4 || err != nil {
		t.Errorf("VmRSS = %g MB, %v, want 102.4", got, err)
	}
	for _, name := range []string{"VmSwap", "Threads", "Vm"} {
		if got, err := megabytes(status, name); err == nil {
			t.Errorf("%s: got %g, want an error", name, got)
		}
	}
}
