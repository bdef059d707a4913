package nettest

import "testing"

func TestPingsLeavesTheLastOnesOut(t *testing.T) {
	const printed = `PING 127.0.0.1 (127.0.0.1): 56 data bytes
64 bytes from 127.0.0.1: seq=0 ttl=64 time=0.042 ms
64 bytes from 127.0.0.1: seq=2 ttl=64 time=0.060 ms
64 bytes from 127.0.0.1: seq=2 ttl=64 time=0.060 ms (DUP!)

--- 127.0.0.1 ping statistics ---
5 packets transmitted, 2 packets received, 60% packet loss
`
	for last, want := range map[int][2]int{0: {5, 2}, 2: {3, 2}, 3: {2, 1}, 9: {0, 0}} {
		sent, answered, err := Pings(printed, last)
		if err != nil || [2]int{sent, answered} != want {
			t.Errorf("without the last %d: %d sent, %d answered, error %v, want %v", last, sent, answered, err, want)
		}
	}
	if _, _, err := Pings("ping: bad address", 0); err == nil {
		t.Error("an error of ping is none")
	}
}
