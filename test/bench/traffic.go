package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// packetSize is the payload of a UDP packet in bytes: small, so that the way counts and not the copying.
	packetSize = 64
	burstSize  = 32
	// window is how many packets may be under way. It stays below net.core.netdev_max_backlog (1,000) so that none is
	// dropped; a packet that is lost anywhere breaks the measurement.
	window = 512
	// receiveEvery is how long the receiver sleeps between two looks. It never waits in the kernel for a packet, so that
	// the packets' cost has no wake-ups in it, whose number depends on the machine's other load.
	receiveEvery = 200 * time.Microsecond
)

// udpCost sends packets from one host to another and returns the CPU time in microseconds that one took: of the sending
// thread, which in its own time carries the packet through both nodes, of the receiving thread, and of the kernel's
// ksoftirqd threads.
func udpCost(from, to *host, addr netip.Addr, packets int) (float64, error) {
	in, at, err := listener(to, unix.SOCK_DGRAM, addr)
	if err != nil {
		return 0, err
	}
	defer unix.Close(in)
	out, err := socketIn(from, unix.SOCK_DGRAM)
	if err != nil {
		return 0, err
	}
	defer unix.Close(out)
	err = errors.Join(unix.Connect(out, at), unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20))
	if err != nil {
		return 0, fmt.Errorf("set up UDP sockets: %w", err)
	}
	kernelBefore, err := softirqTime()
	if err != nil {
		return 0, err
	}
	var received atomic.Int64
	receiver := onCPU(1, func() error { return drain(in, packets, &received) })
	sender := onCPU(0, func() error { return flood(out, packets, &received) })
	s, r := <-sender, <-receiver
	if err := errors.Join(s.err, r.err); err != nil {
		return 0, fmt.Errorf("%d of %d packets arrived: %w", received.Load(), packets, err)
	}
	kernelAfter, err := softirqTime()
	cost := s.cpu + r.cpu + kernelAfter - kernelBefore
	return float64(cost.Nanoseconds()) / 1e3 / float64(packets), err
}

// flood sends packets as long as no more than window are under way.
func flood(fd, packets int, received *atomic.Int64) error {
	b := newBurst(burstSize, packetSize)
	heard := time.Now()
	for sent, seen := 0, int64(0); sent < packets; {
		if now := received.Load(); now != seen {
			seen, heard = now, time.Now()
		}
		if sent-int(seen) > window-burstSize {
			if time.Since(heard) > silence {
				return errors.New("nothing arrives any more")
			}
			time.Sleep(receiveEvery)
			continue
		}
		n, err := b.send(fd, min(burstSize, packets-sent))
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		sent += n
	}
	return nil
}

// drain receives that many packets.
func drain(fd, packets int, received *atomic.Int64) error {
	b := newBurst(2*burstSize, packetSize)
	pause := unix.NsecToTimespec(int64(receiveEvery))
	for heard := time.Now(); received.Load() < int64(packets); {
		n, err := b.receive(fd)
		switch {
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		case n > 0:
			received.Add(int64(n))
			heard = time.Now()
		case time.Since(heard) > silence:
			return errors.New("packets were lost")
		default:
			_ = unix.Nanosleep(&pause, nil) // a shorter sleep does no harm
		}
	}
	return nil
}

// outcome is what a thread's work took.
type outcome struct {
	cpu time.Duration
	err error
}

// onCPU runs f on a thread of its own that stays on one CPU, for machines that have several.
func onCPU(cpu int, f func() error) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and nothing else comes to be pinned
		var set unix.CPUSet
		set.Set(cpu % runtime.NumCPU())
		err := unix.SchedSetaffinity(0, &set)
		before := threadTime()
		if err == nil {
			err = f()
		}
		done <- outcome{threadTime() - before, err}
	}()
	return done
}

// threadTime is the CPU time that the calling thread has used, in the kernel too.
func threadTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		panic(err) // only for a bad argument: man 2 getrusage
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// softirqTime is the CPU time of all ksoftirqd threads, which take packets over when there are many: the first
// number of /proc/PID/schedstat, in nanoseconds (Documentation/scheduler/sched-stats.rst).
func softirqTime() (total time.Duration, err error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(comm), "ksoftirqd/") {
			continue // or it has ended meanwhile
		}
		text, err := os.ReadFile(filepath.Join(filepath.Dir(name), "schedstat"))
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the CPU time of %s: %w", strings.TrimSpace(string(comm)), err)
		}
		total += time.Duration(ns)
	}
	return total, nil
}

// requestResponse sends one byte over TCP and waits for one back, count times, and returns how long each took, in
// microseconds. The client is on CPU 0, the server on CPU serverCPU: on the same one the time is that of the
// packets' way and of switching between two threads, on another one half of it is waking that CPU up, which has
// nothing to do with the network.
func requestResponse(from, to *host, addr, via netip.Addr, count, serverCPU int) (sample, error) {
	client, server, err := connected(from, to, addr, via)
	if err != nil {
		return nil, err
	}
	defer unix.Close(client)
	defer unix.Close(server)
	times := make(sample, count)
	answers := onCPU(serverCPU, func() error {
		b := make([]byte, 1)
		for range count {
			if err := errors.Join(exactly(again(unix.Read, server, b)), exactly(again(unix.Write, server, b))); err != nil {
				return fmt.Errorf("answer: %w", err)
			}
		}
		return nil
	})
	asks := onCPU(0, func() error {
		b := make([]byte, 1)
		for i := range times {
			start := time.Now()
			if err := errors.Join(exactly(again(unix.Write, client, b)), exactly(again(unix.Read, client, b))); err != nil {
				return fmt.Errorf("ask: %w", err)
			}
			times[i] = float64(time.Since(start).Nanoseconds()) / 1e3
		}
		return nil
	})
	a, b := <-asks, <-answers
	return times, errors.Join(a.err, b.err)
}

// again repeats a call that a signal has interrupted: the runtime sends its threads some, and a socket with a time
// limit does not go on by itself then (man 7 signal).
func again(call func(fd int, b []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// exactly turns a call that did not move one byte into an error.
func exactly(n int, err error) error {
	if err == nil && n != 1 {
		err = errors.New("the connection ended")
	}
	return err
}

// transferTime sends bytes over one TCP connection and returns how long that took, in milliseconds.
func transferTime(from, to *host, addr netip.Addr, bytes int) (float64, error) {
	client, server, err := connected(from, to, addr, addr)
	if err != nil {
		return 0, err
	}
	defer unix.Close(client)
	defer unix.Close(server)
	start := time.Now()
	takes := onCPU(1, func() error {
		b := make([]byte, 256<<10)
		for got := 0; got < bytes; {
			n, err := again(unix.Read, server, b)
			if err != nil || n == 0 {
				return fmt.Errorf("receive byte %d: %w", got, errors.Join(err, exactly(min(n, 1), nil)))
			}
			got += n
		}
		return nil
	})
	gives := onCPU(0, func() error {
		b := make([]byte, 64<<10)
		for sent := 0; sent < bytes; {
			n, err := again(unix.Write, client, b[:min(len(b), bytes-sent)])
			if err != nil {
				return fmt.Errorf("send byte %d: %w", sent, err)
			}
			sent += n
		}
		return nil
	})
	g, t := <-gives, <-takes
	return float64(time.Since(start).Nanoseconds()) / 1e6, errors.Join(g.err, t.err)
}
