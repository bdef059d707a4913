package guest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// clientOf is the environment variable that makes a second copy of this test program the client of the server whose
// address it has. With it go the command, or the path of a socket.
const clientOf = "LAB_GUEST_SERVER"

func TestMain(m *testing.M) {
	server := os.Getenv(clientOf)
	if server == "" {
		os.Exit(m.Run())
	}
	at, args := netip.MustParseAddrPort(server), os.Args[1:]
	status, err := 0, error(nil)
	if args[0] == "dial" {
		err = Dial(at, args[1])
	} else {
		status, err = Run(at, args)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 125
	}
	os.Exit(status)
}

// server starts a server and returns what makes clients of it.
func server(t *testing.T) (client func(args ...string) *exec.Cmd) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	ready := filepath.Join(t.TempDir(), "ready")
	go accept(listener, ready)
	return func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
		cmd.Env = append(os.Environ(), clientOf+"="+listener.Addr().String())
		return cmd
	}
}

func TestCommandsInANodeBehaveAsIfTheyRanHere(t *testing.T) {
	client := server(t)
	large := strings.Repeat("0123456789", 100_000)
	type result struct {
		Out, Errors string
		Status      int
	}
	for name, test := range map[string]struct {
		input string
		args  []string
		want  result
	}{
		"output, errors and status": {"", []string{"sh", "-c", "echo out; echo err >&2; exit 3"},
			result{"out\n", "err\n", 3}},
		"input to its end":        {large, []string{"cat"}, result{Out: large}},
		"environment":             {"", []string{"sh", "-c", `echo "$LAB_TEST"`}, result{Out: "as here\n"}},
		"killed by a signal":      {"", []string{"sh", "-c", "kill -KILL $$"}, result{Status: 128 + 9}},
		"input that nobody reads": {large, []string{"true"}, result{}},
		"no such program": {"", []string{"no-such-program"},
			result{"", "exec: \"no-such-program\": executable file not found in $PATH\n", 125}},
		"something left running": {"", []string{"sh", "-c", "sleep 4 & echo left"}, result{Out: "left\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := client(test.args...)
			cmd.Env = append(cmd.Env, "LAB_TEST=as here")
			cmd.Stdin = strings.NewReader(test.input)
			var out, errors bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errors
			cmd.Run()
			got := result{out.String(), errors.String(), cmd.ProcessState.ExitCode()}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// begun starts a client whose command prints its process id first.
func begun(t *testing.T, cmd *exec.Cmd) (pid int) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(out, &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestSignalsReachTheCommandEvenThoseThatNobodyCatches(t *testing.T) {
	client := server(t)
	for sent, script := range map[syscall.Signal]string{
		syscall.SIGTERM: `trap "exit 42" TERM; echo $$; while :; do sleep 0.01; done`,
		syscall.SIGKILL: `trap "" TERM; echo $$; while :; do sleep 0.01; done`,
	} {
		cmd := client("sh", "-c", script)
		begun(t, cmd)
		if err := cmd.Process.Signal(Signal(sent)); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		want := map[syscall.Signal]int{syscall.SIGTERM: 42, syscall.SIGKILL: 128 + 9}[sent]
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("after %s the status is %d, want %d", sent, got, want)
		}
	}
}

// Whatever ends the lab's end of a command, the command does not go on.
func TestACommandEndsWithItsClient(t *testing.T) {
	cmd := server(t)("sh", "-c", "echo $$; exec sleep 100")
	pid := begun(t, cmd)
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the command is not there: %v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	for end := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("10 s after its client was killed, the command still runs")
		}
	}
}

func TestASocketOfTheNodeIsReached(t *testing.T) {
	client := server(t)
	path := filepath.Join(t.TempDir(), "echo.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if connection, err := listener.Accept(); err == nil {
			io.Copy(connection, connection)
			connection.Close()
		}
	}()
	dial := client("dial", path)
	dial.Stdin = strings.NewReader("there and back")
	if got, err := dial.Output(); err != nil || string(got) != "\x00there and back" {
		t.Errorf("got %q (%v), want a zero byte and what was sent", got, err)
	}
	if got, err := client("dial", path+".none").Output(); len(got) > 0 {
		t.Errorf("a socket that is not there answered %q (%v)", got, err)
	}
}
