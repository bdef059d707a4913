// What this program uses of the kernel's interface, so that it is built from nothing but a compiler and comes out the
// same whatever headers a machine has. All of it is ABI: struct __sk_buff, helper numbers and flags of
// include/uapi/linux/bpf.h, packet headers of linux/if_ether.h, linux/ip.h, linux/ipv6.h, linux/tcp.h.
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;

#define SEC(name) __attribute__((section(name), used))
#define inline_ static inline __attribute__((always_inline))

// A map is described by the type information of a struct of these (libbpf's convention).
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name

#define htons(x) ((__be16)__builtin_bswap16(x))
#define ntohs(x) __builtin_bswap16(x)
#define htonl(x) ((__be32)__builtin_bswap32(x))
#define ntohl(x) __builtin_bswap32(x)
#define copy(to, from, n) __builtin_memcpy(to, from, n)

struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority;
	__u32 ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end;
};

enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_PERCPU_HASH = 5, BPF_MAP_TYPE_LRU_HASH = 9 };
enum { BPF_F_NO_PREALLOC = 1 };
enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
// Of bpf_l4_csum_replace; the lowest four bits are the size of what changes, 0 for a difference.
enum { BPF_F_PSEUDO_HDR = 1 << 4, BPF_F_MARK_MANGLED_0 = 1 << 5 };

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *, __u32 off, const void *, __u32 n, __u64 flags) = (void *)9;
static long (*const bpf_l3_csum_replace)(struct __sk_buff *, __u32 off, __u64 from, __u64 to, __u64 flags) = (void *)10;
static long (*const bpf_l4_csum_replace)(struct __sk_buff *, __u32 off, __u64 from, __u64 to, __u64 flags) = (void *)11;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*const bpf_skb_load_bytes)(const struct __sk_buff *, __u32 off, void *, __u32 n) = (void *)26;
static long (*const bpf_csum_diff)(void *from, __u32 n, void *to, __u32 m, __u32 seed) = (void *)28;
static long (*const bpf_skb_change_tail)(struct __sk_buff *, __u32 len, __u64 flags) = (void *)38;
static long (*const bpf_skb_pull_data)(struct __sk_buff *, __u32 len) = (void *)39;

// What a program at tc answers: let the packet go on to what follows, or drop it (linux/pkt_cls.h). With TCX the first
// means "ask the next program" (TCX_NEXT).
enum { PASS = -1, DROP = 2 };

enum { ETH_P_IP = 0x0800, ETH_P_ARP = 0x0806, ETH_P_IPV6 = 0x86dd };
enum {
	IPPROTO_HOPOPTS = 0, IPPROTO_ICMP = 1, IPPROTO_TCP = 6, IPPROTO_UDP = 17, IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44, IPPROTO_ICMPV6 = 58, IPPROTO_DSTOPTS = 60,
};

struct ethhdr { __u8 dst[6], src[6]; __be16 proto; };
struct iphdr { __u8 ver_ihl, tos; __be16 len, id, frag; __u8 ttl, proto; __u16 check; __be32 src, dst; };
struct ipv6hdr { __be32 ver_flow; __be16 len; __u8 next, hops; __be32 src[4], dst[4]; };
struct tcphdr { __be16 src, dst; __be32 seq, ack; __u8 doff, flags; __be16 window, check, urgent; };
struct icmphdr { __u8 type, code; __be16 check; __be32 rest; };
struct arphdr { __be16 hard, prot; __u8 hlen, plen; __be16 op; __u8 smac[6], sip[4], tmac[6], tip[4]; } __attribute__((packed));
