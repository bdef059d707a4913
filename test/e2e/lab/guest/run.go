package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// dialLimit is how long a node may take to answer; it may have one slow CPU for all.
const dialLimit = 10 * time.Second

// Run runs a command in the node at an address as if it ran here: with this process's environment, standard input,
// output and error; signals are passed on, and the command is killed when this process ends. It returns the exit
// status.
func Run(at netip.AddrPort, args []string) (int, error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals) // before the command can run, so that none is lost
	connection, err := open(at, request{Args: args, Env: os.Environ()})
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	lock := new(sync.Mutex)
	go passSignals(signals, frameWriter{frameSignal, connection, lock})
	go func() {
		input := frameWriter{frameInput, connection, lock}
		io.Copy(input, os.Stdin)
		input.Write(nil) // io.Copy itself never writes nothing
	}()
	return receive(bufio.NewReader(connection))
}

// receive prints what the command prints until it ends.
func receive(from io.Reader) (int, error) {
	for {
		kind, content, err := readFrame(from)
		if err != nil {
			return 0, fmt.Errorf("the node is gone: %w", err)
		}
		switch kind {
		case frameOutput:
			os.Stdout.Write(content)
		case frameErrors:
			os.Stderr.Write(content)
		case frameFailed:
			return 0, errors.New(string(content))
		case frameExit:
			return int(content[0]), nil
		}
	}
}

// passSignals sends on what arrives here, but for the two that are about this process's own affairs: the Go runtime's
// preemption of goroutines and a child's end.
func passSignals(signals <-chan os.Signal, to io.Writer) {
	for s := range signals {
		switch number, _ := s.(syscall.Signal); number {
		case syscall.SIGURG, syscall.SIGCHLD, syscall.SIGPIPE:
		case uncatchable + syscall.SIGKILL, uncatchable + syscall.SIGSTOP:
			to.Write([]byte{byte(number - uncatchable)})
		default:
			to.Write([]byte{byte(number)})
		}
	}
}

// Signal is what to send to a process that is in Run so that the command gets a signal.
func Signal(s syscall.Signal) syscall.Signal {
	if s == syscall.SIGKILL || s == syscall.SIGSTOP {
		return s + uncatchable
	}
	return s
}

// Dial connects standard input and output to a unix socket of the node at an address, until either ends. The first byte
// that it prints is a zero, once there is a connection.
func Dial(at netip.AddrPort, socket string) error {
	connection, err := open(at, request{Socket: socket})
	if err != nil {
		return err
	}
	defer connection.Close()
	go func() {
		io.Copy(connection, os.Stdin)
		connection.CloseWrite()
	}()
	_, err = io.Copy(os.Stdout, connection)
	return err
}

// open connects to a node and sends a request.
func open(at netip.AddrPort, r request) (*net.TCPConn, error) {
	connection, err := net.DialTimeout("tcp", at.String(), dialLimit)
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(connection).Encode(r); err != nil {
		connection.Close()
		return nil, err
	}
	return connection.(*net.TCPConn), nil
}
