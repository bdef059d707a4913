// Reading a packet, and changing its addresses and ports. The program cannot see whether a checksum is complete, still
// to be done by the device, or not there at all; the kernel's helpers can, so nothing is written but through them.
#pragma once
#include "maps.h"

enum { WHOLE, FIRST, LATER }; // fragment

struct packet {
	struct addr src, dst;
	__u32 l4, size; // offset of the transport header, and how many bytes there are from it on
	__be32 id;      // of a fragment
	__u8 proto, v6, fragment;
};

enum { V4_SRC = 26, V4_DST = 30, V4_CHECK = 24, V6_SRC = 22, V6_DST = 38 }; // offsets from the frame's beginning

inline_ void mapped(struct addr *a, __be32 v4)
{
	a->w[0] = a->w[1] = 0;
	a->w[2] = htonl(0xffff);
	a->w[3] = v4;
}

inline_ int parse4(struct iphdr *ip, struct packet *p)
{
	mapped(&p->src, ip->src);
	mapped(&p->dst, ip->dst);
	__u32 header = (ip->ver_ihl & 15) * 4;
	__u16 frag = ntohs(ip->frag);
	p->l4 = sizeof(struct ethhdr) + header;
	p->size = ntohs(ip->len) - header;
	p->proto = ip->proto;
	p->id = ip->id;
	p->fragment = frag & 0x1fff ? LATER : frag & 0x2000 ? FIRST : WHOLE;
	p->v6 = 0;
	return 1;
}

// parse6 walks over at most four extension headers (RFC 8200 §4.1).
inline_ int parse6(struct __sk_buff *skb, struct ipv6hdr *ip, struct packet *p)
{
	copy(&p->src, ip->src, 16);
	copy(&p->dst, ip->dst, 16);
	__u32 end = sizeof(struct ethhdr) + sizeof(*ip) + ntohs(ip->len);
	p->l4 = sizeof(struct ethhdr) + sizeof(*ip);
	p->proto = ip->next;
	p->fragment = WHOLE;
	p->id = 0;
	p->v6 = 1;
	for (int i = 0; i < 4; i++) {
		struct { __u8 next, len; __be16 offset; __be32 id; } x;
		__u8 h = p->proto;
		if (h != IPPROTO_HOPOPTS && h != IPPROTO_ROUTING && h != IPPROTO_DSTOPTS && h != IPPROTO_FRAGMENT)
			break;
		if (bpf_skb_load_bytes(skb, p->l4, &x, sizeof(x)))
			return 0;
		p->proto = x.next;
		p->l4 += 8;
		if (h == IPPROTO_FRAGMENT) {
			__u16 o = ntohs(x.offset);
			p->id = x.id;
			p->fragment = o & 0xfff8 ? LATER : o & 1 ? FIRST : WHOLE;
			if (p->fragment == LATER)
				break;
		} else {
			p->l4 += x.len * 8;
		}
	}
	p->size = end > p->l4 ? end - p->l4 : 0;
	return 1;
}

// parse reads the network header; 0 means that this is none of ours.
inline_ int parse(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (skb->protocol == htons(ETH_P_IP)) {
		struct iphdr *ip = data + sizeof(struct ethhdr);
		if ((void *)(ip + 1) > end) {
			if (bpf_skb_pull_data(skb, sizeof(struct ethhdr) + sizeof(*ip)))
				return 0;
			data = (void *)(long)skb->data, end = (void *)(long)skb->data_end;
			ip = data + sizeof(struct ethhdr);
			if ((void *)(ip + 1) > end)
				return 0;
		}
		return parse4(ip, p);
	}
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);
	if ((void *)(ip + 1) > end) {
		if (bpf_skb_pull_data(skb, sizeof(struct ethhdr) + sizeof(*ip)))
			return 0;
		data = (void *)(long)skb->data, end = (void *)(long)skb->data_end;
		ip = data + sizeof(struct ethhdr);
		if ((void *)(ip + 1) > end)
			return 0;
	}
	return parse6(skb, ip, p);
}

inline_ __u32 difference(struct addr *from, struct addr *to)
{
	return bpf_csum_diff(from, sizeof(*from), to, sizeof(*to), 0);
}

// checksum_of says where a transport's checksum is, relative to its header.
inline_ __u32 checksum_of(__u8 proto)
{
	return proto == IPPROTO_TCP ? 16 : proto == IPPROTO_UDP ? 6 : 2;
}

// set_addr changes the source or destination address and what checksums cover it. A later fragment has no transport
// checksum, nor does ICMP for IPv4 cover addresses (RFC 792).
inline_ void set_addr(struct __sk_buff *skb, struct packet *p, int dst, struct addr *from, struct addr *to,
		     const __u8 proto)
{
	__u32 diff = difference(from, to);
	if (p->fragment != LATER && proto != IPPROTO_ICMP)
		bpf_l4_csum_replace(skb, p->l4 + checksum_of(proto), 0, diff,
				    BPF_F_PSEUDO_HDR | (proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0));
	if (p->v6) {
		bpf_skb_store_bytes(skb, dst ? V6_DST : V6_SRC, to, 16, 0);
	} else {
		bpf_l3_csum_replace(skb, V4_CHECK, 0, diff, 0);
		bpf_skb_store_bytes(skb, dst ? V4_DST : V4_SRC, &to->w[3], 4, 0);
	}
}

// set_port changes the source port (offset 0) or destination port (2).
inline_ void set_port(struct __sk_buff *skb, struct packet *p, __u32 offset, __be16 from, __be16 to,
		     const __u8 proto)
{
	if (from == to)
		return;
	bpf_l4_csum_replace(skb, p->l4 + checksum_of(proto), from, to,
			    2 | (proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0));
	bpf_skb_store_bytes(skb, p->l4 + offset, &to, 2, 0);
}

inline_ void set_mac(struct __sk_buff *skb, __u8 *dst) { bpf_skb_store_bytes(skb, 0, dst, 6, 0); }
