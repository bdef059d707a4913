package guest

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// A request opens a connection to the server: either a command or a socket of the node to be connected to. It is
// sent as one line of JSON; frames follow in both directions, or the bytes of the socket.
type request struct {
	Args []string `json:"args,omitzero"`
	Env  []string `json:"env,omitzero"`
	// Socket is the path of a unix socket.
	Socket string `json:"socket,omitzero"`
}

// The kinds of frames. The first two go to the node, the others come from it.
const (
	frameInput  = 'i' // for the command's standard input; an empty one ends it
	frameSignal = 's' // one byte, the signal's number
	frameOutput = 'o'
	frameErrors = 'e'
	frameFailed = 'f' // the command could not be started; the text says why
	frameExit   = 'x' // one byte, the exit status as a shell would have it
)

// maxFrame is the most that one frame may carry, in bytes: what io.Copy reads at once, and ample.
const maxFrame = 1 << 16

// A frameWriter sends what is written to it as frames of one kind. Those of one connection share the lock.
type frameWriter struct {
	kind byte
	to   io.Writer
	lock *sync.Mutex
}

func (w frameWriter) Write(content []byte) (int, error) {
	w.lock.Lock()
	defer w.lock.Unlock()
	sent := 0
	for {
		part := content[sent:min(len(content), sent+maxFrame)]
		head := binary.BigEndian.AppendUint32([]byte{w.kind}, uint32(len(part)))
		if _, err := w.to.Write(append(head, part...)); err != nil {
			return sent, err
		}
		if sent += len(part); sent == len(content) {
			return sent, nil
		}
	}
}

// readFrame reads the next frame; io.EOF means an end between two frames.
func readFrame(from io.Reader) (kind byte, content []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes, at most %d are allowed", size, maxFrame)
	}
	content = make([]byte, size)
	if _, err := io.ReadFull(from, content); err != nil {
		return 0, nil, fmt.Errorf("read a frame: %w", err)
	}
	return head[0], content, nil
}
