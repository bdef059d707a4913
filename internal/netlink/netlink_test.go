//go:build linux

package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAMessageIsReadAsItWasWritten(t *testing.T) {
	b := AppendMessage(nil, 7, unix.NLM_F_ACK, 41).Finish(0)
	start := len(b)
	m := AppendMessage(b, 8, 0, 42)
	m.Bytes(1, 2, 3)
	m.Text(1, "eth0")
	m.Nest(2, func() { m.U32(3, 99) })
	b = m.Finish(start)
	var got []string
	Messages(b, func(r Reply) {
		got = append(got, fmt.Sprint(r.Kind, r.Seq, len(r.Body)))
		if r.Kind != 8 {
			return
		}
		Attrs(r.Body[4:], func(kind uint16, v []byte) {
			if kind == 1 {
				got = append(got, unix.ByteSliceToString(v))
			}
			if kind == 2 {
				Attrs(v, func(kind uint16, v []byte) { got = append(got, fmt.Sprint(kind, binary.NativeEndian.Uint32(v))) })
			}
		})
	})
	if want := []string{"7 41 0", "8 42 28", "eth0", "3 99"}; !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
}

func TestCutAndLyingMessagesAreNotReadBeyondTheirEnd(t *testing.T) {
	m := AppendMessage(nil, 8, 0, 1)
	m.Text(1, "eth0")
	whole := m.Finish(0)
	for n := range whole {
		Messages(whole[:n], func(r Reply) { t.Errorf("%d of %d bytes are a message: %v", n, len(whole), r) })
		Attrs(whole[unix.SizeofNlMsghdr:max(n, unix.SizeofNlMsghdr)], func(kind uint16, v []byte) {
			if n < len(whole)-3 { // the last three pad
				t.Errorf("%d bytes have attribute %d", n, kind)
			}
		})
	}
	lying := slices.Clone(whole)
	binary.NativeEndian.PutUint16(lying[unix.SizeofNlMsghdr:], 400)
	Attrs(lying[unix.SizeofNlMsghdr:], func(kind uint16, _ []byte) { t.Errorf("attribute %d goes beyond the end", kind) })
}

func TestTheKernelsErrorIsTold(t *testing.T) {
	s, err := Open(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.Query(unix.RTM_GETLINK, 0, func(m *Message) {
		m.Bytes(make([]byte, unix.SizeofIfInfomsg)...)
		m.Text(unix.IFLA_IFNAME, "no-such-device")
	}, nil)
	if !errors.Is(err, unix.ENODEV) {
		t.Errorf("error %v, want no such device", err)
	}
}
