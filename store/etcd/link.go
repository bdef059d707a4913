package etcd

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

const (
	// keepAliveTime is the time between gRPC's pings; grpc-go has no less (internal.KeepaliveMinPingTime).
	keepAliveTime = 10 * time.Second
	// keepAliveTimeout is how long gRPC waits for the answer. It is also the connection's TCP_USER_TIMEOUT (gRFC A18),
	// so that a peer whose packets are dropped is given up after it.
	keepAliveTimeout = 4 * time.Second
	// reconnectDelay is the longest pause between two attempts; gRPC's own is two minutes.
	reconnectDelay = time.Second
	connectTimeout = 3 * time.Second
)

// link is how the client's connection behaves when the store is away.
type link struct {
	last atomic.Pointer[error]
}

// options make calls wait for the connection until their context ends, instead of failing at once, and the connection
// notice a dead peer.
func (l *link) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithContextDialer(dial),
		grpc.WithChainUnaryInterceptor(l.wait),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay:  100 * time.Millisecond,
				Multiplier: 1.6,
				Jitter:     0.2,
				MaxDelay:   reconnectDelay,
			},
			MinConnectTimeout: connectTimeout,
		}),
	}
}

// wait makes one call. etcd's client asks for calls that fail at once; the last option wins.
func (l *link) wait(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(true))...)
	if err != nil {
		l.last.Store(&err)
	} else {
		l.last.Store(nil)
	}
	return err
}

// cause is gRPC's own error of the last failed call: it has the reason (connection refused, unknown authority) that
// etcd's client replaces by that of the context.
func (l *link) cause() error {
	if err := l.last.Load(); err != nil {
		return *err
	}
	return nil
}

// dial connects to host:port or unix:///path. Idle connections are probed by TCP from the second second on: gRPC's
// pings are too far apart.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable:   true,
		Idle:     2 * time.Second,
		Interval: time.Second,
		Count:    3,
	}}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return d.DialContext(ctx, "unix", "/"+strings.TrimLeft(path, "/"))
	}
	return d.DialContext(ctx, "tcp", addr)
}
