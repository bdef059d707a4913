// Package control is the daemon's local socket: reports of package diag as JSON over HTTP, for root on this host.
//
//	GET /v1/networks         diag.NetworksReport
//	GET /v1/networks/NAME    diag.NetworkReport; 404 for an unknown one
//	GET /v1/nodes            diag.NodesReport
//	GET /v1/health           diag.Health
//	GET /v1/check            diag.CheckReport; peer=NODE probes only that one
//	GET /v1/trace            diag.Trace; from=, to= and network= say of what
//	GET /v1/diff             diag.DiffReport; network=NAME for one
//	GET /v1/traffic          diag.Traffic; node=NODE asks that one
//	POST /v1/repair/NAME     makes a network as wanted
//	POST /v1/ipam/check      lists, and may free, leaked addresses
//	POST /v1/cluster/VERB    what package cluster does
//
// An error is {"error": "text"} with a status of 4xx or 5xx.
package control

import "path/filepath"

// SocketPath is the socket of the daemon that uses a run directory.
func SocketPath(runDir string) string { return filepath.Join(runDir, "netdriver.sock") }

// failure is the body of an error.
type failure struct {
	Error string `json:"error"`
}
