package plugin

import "github.com/docker/go-plugins-helpers/sdk"

// ContentType is that of all answers: "application/vnd.docker.plugins.v1.1+json".
const ContentType = sdk.DefaultContentTypeV1_1

// Empty is the request or the answer of a call that has nothing to say.
type Empty struct{}

// IpamCapabilities answers IpamDriver.GetCapabilities (moby daemon/libnetwork/ipams/remote/api).
type IpamCapabilities struct {
	// RequiresMACAddress makes Docker choose the MAC first and name it in RequestAddress.
	RequiresMACAddress bool
	// RequiresRequestReplay makes Docker ask for its pools and addresses again when its daemon starts.
	RequiresRequestReplay bool
}

// NetworkCapabilities answers NetworkDriver.GetCapabilities (moby daemon/libnetwork/drivers/remote/api).
type NetworkCapabilities struct {
	// Scope says who allocates a network, ConnectivityScope how far it reaches: "local" or "global".
	Scope, ConnectivityScope string
	// GwAllocChecker makes engines of v28 and later ask NetworkDriver.GwAllocCheck before they reserve a gateway.
	GwAllocChecker bool
}

// GwAllocCheckRequest has the options of the network that is about to be created.
type GwAllocCheckRequest struct {
	Options map[string]any
}

// GwAllocCheckResponse says for which family the network needs no gateway address.
type GwAllocCheckResponse struct {
	SkipIPv4, SkipIPv6 bool
}

// Failure is the body of every answer that is not 200; its text reaches Docker's user.
type Failure struct {
	Err string
}

// activation answers Plugin.Activate.
type activation struct {
	Implements []string
}
