package store

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/netdriver/netdriver/vxlan"
)

// The key schema, relative to the cluster's prefix. DESIGN.md has the table of who writes and who removes each.
const (
	NodePrefix      = "nodes/"       // nodes/NODE → Node
	AlivePrefix     = "alive/"       // alive/NODE → Node.ID, gone aliveTTL after the daemon was last heard of
	StatusPrefix    = "status/"      // status/NODE → Status
	EnginePrefix    = "engines/"     // engines/NODE → Engine
	NetworkPrefix   = "networks/"    // networks/NETWORK → Network
	VNIPrefix       = "vnis/"        // vnis/VNI → name of the network that has it
	PoolPrefix      = "pools/"       // pools/SUBNET → Pool
	CursorPrefix    = "cursors/"     // cursors/SUBNET → address that was allocated last
	LeasePrefix     = "leases/"      // leases/SUBNET/ADDRESS → Lease
	EndpointPrefix  = "endpoints/"   // endpoints/NETWORK/ENDPOINT → Endpoint
	NamePrefix      = "names/"       // names/NETWORK/ENDPOINT → Name
	MACPrefix       = "macs/"        // macs/SCOPE/MAC → id of the endpoint that has it; see Network.MACScope
	ConflictPrefix  = "conflicts/"   // conflicts/NETWORK/ADDRESS → Conflict
	ServicePrefix   = "services/"    // services/NETWORK/SERVICE → Service
	VolumePrefix    = "volumes/"     // volumes/VOLUME → Volume
	VolumeUsePrefix = "volume-uses/" // volume-uses/NODE → VolumeUses
	// BackupPrefix: volume-backups/VOLUME → VolumeBackup.
	BackupPrefix = "volume-backups/"
	// What a cluster has that one can join: cluster/size → how many members its store is to have, cluster/growing → the
	// node that becomes a member now; tokens/ID → Token; certificates/NODE/SERIAL → certificate in PEM;
	// revoked/SERIAL → node whose certificate is refused.
	ClusterSize       = "cluster/size"
	ClusterGrowing    = "cluster/growing"
	TokenPrefix       = "tokens/"
	CertificatePrefix = "certificates/"
	RevokedPrefix     = "revoked/"
	// What encryption has, as package ipsec writes it: encryption/offers/NODE, encryption/links/TO/FROM; and for inspect
	// encryption/status/NODE → Protection.
	EncryptionPrefix       = "encryption/"
	EncryptionStatusPrefix = "encryption/status/"
	// EncryptionGuard is written with every network that is made encrypted, so that two cannot contradict each other: a
	// transaction that makes one requires it unchanged since all networks were read.
	EncryptionGuard = "guards/encryption"
	// PoolGuard is written with every new pool, so that two overlapping pools cannot be made at once: a transaction
	// that makes one requires it unchanged since all pools were read.
	PoolGuard = "guards/pools"
)

// NodeKey, NetworkKey and the others name the key of one record.
func NodeKey(node string) string       { return NodePrefix + node }
func AliveKey(node string) string      { return AlivePrefix + node }
func StatusKey(node string) string     { return StatusPrefix + node }
func EngineKey(node string) string     { return EnginePrefix + node }
func NetworkKey(network string) string { return NetworkPrefix + network }

// ProtectionKey names what a node says of its encryption.
func ProtectionKey(node string) string { return EncryptionStatusPrefix + node }

func TokenKey(id string) string { return TokenPrefix + id }

// NodeCertificates is the prefix of all certificates of one node.
func NodeCertificates(node string) string { return CertificatePrefix + node + "/" }

// CertificateKey and RevokedKey name a certificate by its serial number in hexadecimal digits.
func CertificateKey(node, serial string) string { return NodeCertificates(node) + serial }
func RevokedKey(serial string) string           { return RevokedPrefix + serial }

func VNIKey(v vxlan.VNI) string { return VNIPrefix + strconv.FormatUint(uint64(v), 10) }

func PoolKey(subnet netip.Prefix) string   { return PoolPrefix + subnetKey(subnet) }
func CursorKey(subnet netip.Prefix) string { return CursorPrefix + subnetKey(subnet) }

// PoolLeases is the prefix of all leases of one pool.
func PoolLeases(subnet netip.Prefix) string { return LeasePrefix + subnetKey(subnet) + "/" }

func LeaseKey(subnet netip.Prefix, a netip.Addr) string { return PoolLeases(subnet) + a.String() }

// NetworkEndpoints is the prefix of all endpoints of one network.
func NetworkEndpoints(network string) string { return EndpointPrefix + network + "/" }

func EndpointKey(network, endpoint string) string { return NetworkEndpoints(network) + endpoint }

// NetworkNames is the prefix of the names of all endpoints of one network.
func NetworkNames(network string) string { return NamePrefix + network + "/" }

func NameKey(network, endpoint string) string { return NetworkNames(network) + endpoint }

// NetworkMACs is the prefix of all MAC claims of one scope.
func NetworkMACs(scope string) string { return MACPrefix + scope + "/" }

func MACKey(scope string, m vxlan.MAC) string { return NetworkMACs(scope) + m.String() }

// NetworkConflicts is the prefix of all conflicts in one network.
func NetworkConflicts(network string) string { return ConflictPrefix + network + "/" }

func ConflictKey(network string, a netip.Addr) string { return NetworkConflicts(network) + a.String() }

// NetworkServices is the prefix of all services that have a place in one network.
func NetworkServices(network string) string { return ServicePrefix + network + "/" }

func ServiceKey(network, service string) string { return NetworkServices(network) + service }

func VolumeKey(volume string) string  { return VolumePrefix + volume }
func VolumeUseKey(node string) string { return VolumeUsePrefix + node }
func BackupKey(volume string) string  { return BackupPrefix + volume }

// subnetKey spells a subnet without the slash that separates the parts of a key.
func subnetKey(p netip.Prefix) string { return strings.Replace(p.String(), "/", "_", 1) }
