package backend

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// nfsProgram is NFS's ONC RPC program number (RFC 7530 §1.4).
const nfsProgram = 100003

// errNoNFS says that what answered has no NFS program, or does not speak ONC RPC.
var errNoNFS = errors.New("no NFS service there")

// Field values of ONC RPC messages (RFC 5531 §9).
const (
	rpcCall, rpcReply        = 0, 1
	rpcVersion               = 2
	rpcAccepted              = 0
	rpcSuccess               = 0
	rpcProgMismatch          = 2
	lastFragment             = 1 << 31 // RFC 5531 §11
	maxReply                 = 4096
	xid                      = 0x6e646e66
	replyHeader              = 24 // xid, type, status, verifier of 8 bytes, accept status
	mismatchReply            = replyHeader + 8
	unknownHigh       uint32 = 1<<32 - 1
)

// nullCall asks a server for the null procedure of a program's version, which does nothing, and returns the lowest and the
// highest version that the server speaks as far as it told: a server that has the version tells nothing of others.
func nullCall(ctx context.Context, conn net.Conn, program, version uint32) (low, high uint32, err error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return 0, 0, err
		}
	}
	call := make([]byte, 0, 44)
	// Fragment header, xid, call, RPC version, program, version, procedure 0, empty credential and verifier.
	for _, word := range []uint32{lastFragment | 40, xid, rpcCall, rpcVersion, program, version, 0, 0, 0, 0, 0} {
		call = binary.BigEndian.AppendUint32(call, word)
	}
	if _, err := conn.Write(call); err != nil {
		return 0, 0, err
	}
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return 0, 0, silence(ctx, err)
	}
	size := binary.BigEndian.Uint32(head[:]) &^ lastFragment
	if size < replyHeader || size > maxReply {
		return 0, 0, fmt.Errorf("%w: an answer of %d bytes", errNoNFS, size)
	}
	reply := make([]byte, size)
	if _, err := io.ReadFull(conn, reply); err != nil {
		return 0, 0, silence(ctx, err)
	}
	return versions(reply)
}

// silence tells a server that does not answer from one that hangs up.
func silence(ctx context.Context, err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// versions reads the reply to a null call.
func versions(reply []byte) (low, high uint32, err error) {
	word := func(i int) uint32 { return binary.BigEndian.Uint32(reply[4*i:]) }
	if word(0) != xid || word(1) != rpcReply || word(2) != rpcAccepted || word(4) != 0 {
		return 0, 0, fmt.Errorf("%w: not an answer to the question", errNoNFS)
	}
	switch word(5) {
	case rpcSuccess:
		return 0, unknownHigh, nil
	case rpcProgMismatch:
		if len(reply) < mismatchReply {
			return 0, 0, fmt.Errorf("%w: a short answer", errNoNFS)
		}
		return word(6), word(7), nil
	}
	return 0, 0, fmt.Errorf("%w: accept status %d", errNoNFS, word(5))
}
