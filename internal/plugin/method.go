// Package plugin serves Docker's plugin protocol (https://docs.docker.com/engine/extend/plugin_api) on one unix socket,
// for any number of interfaces: go-plugins-helpers serves one interface per handler. Its request and response types are
// used where they have what engines send; types.go has the rest.
package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Method is one call of Docker's plugin protocol, such as NetworkDriver.CreateNetwork. Make it with Call.
type Method struct {
	name string
	// call answers one request, or returns an error that wraps errBody if the body is not a request of this method.
	call func(ctx context.Context, body []byte) (any, error)
}

// errEmpty says that a call with arguments came without any. moby repeats a call whose connection broke, but the first
// attempt has used the body up (pkg/plugins/client.go, callWithRetry: one reader for all attempts), so the second is empty.
var errEmpty = errors.New("the request is empty: Docker repeated the call without its content, " +
	"since a restart of netdriver cut the first one; run the command again")

// errBody is wrapped by the error about a body that is no request of the method called: the caller's mistake.
var errBody = errors.New("malformed request")

// Call makes a method of a function. The text of the function's error reaches Docker's user.
func Call[Req, Resp any](name string, f func(context.Context, *Req) (Resp, error)) Method {
	return Method{name: name, call: func(ctx context.Context, body []byte) (any, error) {
		req, err := decode[Req](body)
		if err != nil {
			return nil, fmt.Errorf("%w for %s: %w", errBody, name, err)
		}
		return f(ctx, req)
	}}
}

// Name returns the method's name.
func (m Method) Name() string { return m.name }

// service returns the part of the name that Plugin.Activate announces, such as NetworkDriver.
func (m Method) service() string {
	s, _, _ := strings.Cut(m.name, ".")
	return s
}

// decode reads one JSON value and nothing after it. An empty body is an empty request only of a call that has no
// arguments. Unknown fields are accepted, since engines add some.
func decode[Req any](body []byte) (*Req, error) {
	req := new(Req)
	if len(bytes.TrimSpace(body)) > 0 {
		return req, json.Unmarshal(body, req)
	}
	if _, none := any(req).(*Empty); !none {
		return nil, errEmpty
	}
	return req, nil
}
