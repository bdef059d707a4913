// The maps: vips, backends and counts are written by netdriver (dataplane/balance/maps.go has the same layouts), the
// rest by the program alone. Each network has a set of its own, so that one network's scan cannot evict another's flows,
// and no key needs to say which network it is about. A new version of the program takes over the maps of a former one if
// all have the same names and sizes: a map whose meaning changes and whose sizes do not must get another name.
#pragma once
#include "kernel.h"

// SLOTS is the size of a service's Maglev table: a prime (Eisenbud et al., NSDI 2016, §3.4), with which an entry of the
// map stays within a page. With 30 backends the largest share is a thirty-third above the smallest, and up to 983
// backends have a share at all.
#define SLOTS 983
#define SERVICE 64 // bytes of a service's id, padded with zeroes

// An IPv4 address is kept as an IPv6 one, ::ffff:a.b.c.d (RFC 4291 §2.5.5.2), so that both take the same path.
struct addr { __be32 w[4]; };

// A virtual address: which backend a new flow gets by its hash. All zero if there is none.
struct vip { __u8 service[SERVICE]; __u32 slot[SLOTS]; };

// A backend's id is never used again, so a flow that names one which is not in the map has lost its backend, and one
// that came back with the same address is another one.
struct backend { struct addr addr; __u8 mac[6]; __u8 draining, pad; __u8 service[SERVICE]; };

// What clients here sent to a backend.
struct count { __u64 flows, packets, bytes; };

// A flow as the client sees it, or as the backend does.
struct tuple { struct addr client, server; __be16 client_port, server_port; };

enum kind {
	FORWARD,  // to another container
	HAIRPIN,  // the client is its own backend: what it sends to the VIP comes back to it from the VIP
	ANSWERS,  // and this is the other direction of that
};
enum state {
	REPLIED = 1, // the backend has sent something
	FINISHED = 2, // a FIN was sent in this direction; fin is its acknowledgement
	ACKED = 4,    // and the other side has acknowledged it
};

// By the client's tuple. port is the client's port as the backend sees it; seen is in units of 2^30 ns; device and mac
// are how the client is reached.
struct flow { __u32 backend, seen, fin, device; __be16 port; __u8 kind, state, tries, mac[6], pad; };

// By the backend's tuple: what to make of it. port is the client's own.
struct reverse { struct addr vip; __u32 fin; __be16 port; __u8 state, pad; };

// Later fragments have no ports: they go where the first one went. Direction keeps requests and replies apart.
struct fragment_key { struct addr src, dst; __be32 id; __u8 proto, reply, pad[2]; };
struct fragment { struct addr to; __u8 mac[6]; __u8 kind, pad; __u32 seen; };

#define MAP(kind, name, k, v, n, flags) \
	struct { __uint(type, kind); __uint(max_entries, n); __type(key, k); __type(value, v); __uint(map_flags, flags); } \
	name SEC(".maps")

MAP(BPF_MAP_TYPE_HASH, vips, struct addr, struct vip, 8192, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_HASH, backends, __u32, struct backend, 16384, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_PERCPU_HASH, counts, __u32, struct count, 16384, BPF_F_NO_PREALLOC);
// TCP apart from UDP, which anyone can make flows of without an answer. Both need about 110 bytes an entry, at once.
MAP(BPF_MAP_TYPE_LRU_HASH, tcp_flows, struct tuple, struct flow, 32768, 0);
MAP(BPF_MAP_TYPE_LRU_HASH, tcp_reverse, struct tuple, struct reverse, 32768, 0);
MAP(BPF_MAP_TYPE_LRU_HASH, udp_flows, struct tuple, struct flow, 8192, 0);
MAP(BPF_MAP_TYPE_LRU_HASH, udp_reverse, struct tuple, struct reverse, 8192, 0);
MAP(BPF_MAP_TYPE_LRU_HASH, fragments, struct fragment_key, struct fragment, 1024, 0);

inline_ __u32 now(void) { return bpf_ktime_get_ns() >> 30; }

inline_ struct flow *find_flow(__u8 proto, struct tuple *t)
{
	return proto == IPPROTO_TCP ? bpf_map_lookup_elem(&tcp_flows, t) : bpf_map_lookup_elem(&udp_flows, t);
}

inline_ struct reverse *find_reverse(__u8 proto, struct tuple *t)
{
	return proto == IPPROTO_TCP ? bpf_map_lookup_elem(&tcp_reverse, t) : bpf_map_lookup_elem(&udp_reverse, t);
}

inline_ long put_flow(__u8 proto, struct tuple *t, struct flow *f)
{
	return proto == IPPROTO_TCP ? bpf_map_update_elem(&tcp_flows, t, f, BPF_ANY)
				    : bpf_map_update_elem(&udp_flows, t, f, BPF_ANY);
}

inline_ long put_reverse(__u8 proto, struct tuple *t, struct reverse *r, __u64 how)
{
	return proto == IPPROTO_TCP ? bpf_map_update_elem(&tcp_reverse, t, r, how)
				    : bpf_map_update_elem(&udp_reverse, t, r, how);
}

inline_ void drop_flow(__u8 proto, struct tuple *client, struct tuple *server)
{
	if (proto == IPPROTO_TCP) {
		bpf_map_delete_elem(&tcp_flows, client);
		bpf_map_delete_elem(&tcp_reverse, server);
	} else {
		bpf_map_delete_elem(&udp_flows, client);
		bpf_map_delete_elem(&udp_reverse, server);
	}
}

inline_ int same(struct addr *a, struct addr *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}
