package guest

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// uncatchable is added to the number of a signal that no program can catch, SIGKILL or SIGSTOP, to send it through a
// Run: that gives a real-time signal (signal(7)), which nobody uses.
const uncatchable = 32

// Serve runs commands for whoever connects, and makes the file ready once it can; it returns only with an error.
func Serve(at netip.AddrPort, ready string) error {
	listener, err := net.Listen("tcp", at.String())
	if err != nil {
		return err
	}
	return accept(listener, ready)
}

func accept(listener net.Listener, ready string) error {
	if err := os.WriteFile(ready, nil, 0o644); err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go answer(connection.(*net.TCPConn))
	}
}

func answer(connection *net.TCPConn) {
	defer connection.Close()
	from := bufio.NewReader(connection)
	line, err := from.ReadBytes('\n')
	if err != nil {
		return
	}
	var r request
	failed := frameWriter{frameFailed, connection, new(sync.Mutex)}
	switch err := json.Unmarshal(line, &r); {
	case err != nil:
		failed.Write([]byte(err.Error()))
	case r.Socket != "":
		forward(connection, from, r.Socket)
	case len(r.Args) == 0:
		failed.Write([]byte("no command"))
	default:
		run(connection, from, r)
	}
}

// forward connects the caller to a unix socket. A connection that cannot be made is closed.
func forward(connection *net.TCPConn, from io.Reader, path string) {
	socket, err := net.Dial("unix", path)
	if err != nil {
		return
	}
	defer socket.Close()
	// The zero byte tells the caller that there is a connection.
	if _, err := connection.Write([]byte{0}); err != nil {
		return
	}
	go func() {
		io.Copy(socket, from)
		socket.(*net.UnixConn).CloseWrite()
	}()
	io.Copy(connection, socket)
}

// run runs a command until it ends, or until the caller is gone, when it is killed.
func run(connection *net.TCPConn, from io.Reader, r request) {
	lock := new(sync.Mutex)
	cmd := exec.Command(r.Args[0], r.Args[1:]...)
	cmd.Env = r.Env
	cmd.Stdout = frameWriter{frameOutput, connection, lock}
	cmd.Stderr = frameWriter{frameErrors, connection, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second // what the command leaves running does not hold the caller
	input, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		frameWriter{frameFailed, connection, lock}.Write([]byte(err.Error()))
		return
	}
	go obey(cmd.Process, input, from)
	cmd.Wait()
	frameWriter{frameExit, connection, lock}.Write([]byte{status(cmd.ProcessState)})
}

// obey passes input and signals on until the connection ends, which ends the command as well.
func obey(process *os.Process, input io.WriteCloser, from io.Reader) {
	defer process.Kill()
	defer input.Close()
	for {
		kind, content, err := readFrame(from)
		if err != nil {
			return
		}
		switch {
		case kind == frameSignal && len(content) == 1:
			process.Signal(syscall.Signal(content[0]))
		case kind == frameInput && len(content) == 0:
			input.Close()
		case kind == frameInput:
			input.Write(content) // a command that does not read its input loses it
		}
	}
}

// status is an exit status as a shell has it, where a signal counts from 128.
func status(state *os.ProcessState) byte {
	wait, ok := state.Sys().(syscall.WaitStatus)
	if ok && wait.Signaled() {
		return byte(128 + wait.Signal())
	}
	return byte(state.ExitCode())
}
