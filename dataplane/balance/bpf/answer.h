// What is answered here on behalf of a virtual address, which no machine has: ARP, neighbour solicitations, echo
// requests; and refusals. Every answer goes straight back to the container that asked.
#pragma once
#include "packet.h"

// Every virtual address has this MAC: locally administered, "NDVIP". It is seen between a container and this program only.
// It is put together here, since a constant would be another map, which a new version would take over with the old value.
inline_ void vip_mac(__u8 *mac)
{
	__be32 head = htonl(0x024e4456);
	__be16 tail = htons(0x4950);
	copy(mac, &head, 4);
	copy(mac + 4, &tail, 2);
}

inline_ int back(struct __sk_buff *skb) { return bpf_redirect(skb->ifindex, 0); }

// answer_frame sets the frame's addresses for an answer to the container whose MAC is to.
inline_ void answer_frame(struct __sk_buff *skb, __u8 *to)
{
	__u8 mac[6];
	vip_mac(mac);
	bpf_skb_store_bytes(skb, 0, to, 6, 0);
	bpf_skb_store_bytes(skb, 6, mac, 6, 0);
}

inline_ void sender(struct __sk_buff *skb, __u8 *mac) { bpf_skb_load_bytes(skb, 6, mac, 6); }

// turn sends the packet back with source and destination swapped, which changes no checksum.
inline_ int turn(struct __sk_buff *skb, struct packet *p)
{
	__u8 mac[6];
	sender(skb, mac);
	answer_frame(skb, mac);
	if (p->v6) {
		bpf_skb_store_bytes(skb, V6_SRC, &p->dst, 16, 0);
		bpf_skb_store_bytes(skb, V6_DST, &p->src, 16, 0);
	} else {
		bpf_skb_store_bytes(skb, V4_SRC, &p->dst.w[3], 4, 0);
		bpf_skb_store_bytes(skb, V4_DST, &p->src.w[3], 4, 0);
	}
	return back(skb);
}

// fold makes a checksum of a sum (RFC 1071).
inline_ __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// add sums n bytes, a multiple of four, to seed.
inline_ __u32 add(void *bytes, __u32 n, __u32 seed) { return bpf_csum_diff(0, 0, bytes, n, seed); }

// add_pseudo sums the pseudo-header of an answer to p whose transport part has n bytes (RFC 9293 §3.1, RFC 8200 §8.1).
// The prefix of an IPv4 address in IPv6 form is there twice and sums up to -0.
inline_ __u32 add_pseudo(struct packet *p, __u8 proto, __u32 n, __u32 seed)
{
	__be32 rest[2] = { htonl(n), htonl(proto) };
	seed = add(&p->src, sizeof(p->src), seed);
	seed = add(&p->dst, sizeof(p->dst), seed);
	return add(rest, sizeof(rest), seed);
}

// answer_header makes room for n bytes of transport and writes the frame's and the network's header; 0 is success.
inline_ long answer_header(struct __sk_buff *skb, struct packet *p, __u8 proto, __u32 n, __u8 hops)
{
	__u8 mac[6];
	sender(skb, mac);
	if (bpf_skb_change_tail(skb, sizeof(struct ethhdr) + (p->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + n, 0))
		return -1;
	answer_frame(skb, mac);
	if (p->v6) {
		struct ipv6hdr h = { .ver_flow = htonl(6 << 28), .len = htons(n), .next = proto, .hops = hops };
		copy(h.src, &p->dst, 16);
		copy(h.dst, &p->src, 16);
		return bpf_skb_store_bytes(skb, sizeof(struct ethhdr), &h, sizeof(h), 0);
	}
	struct iphdr h = { .ver_ihl = 0x45, .len = htons(sizeof(h) + n), .frag = htons(0x4000), .ttl = hops, .proto = proto,
			   .src = p->dst.w[3], .dst = p->src.w[3] };
	h.check = fold(add(&h, sizeof(h), 0));
	return bpf_skb_store_bytes(skb, sizeof(struct ethhdr), &h, sizeof(h), 0);
}

// transport_at is where an answer's transport header is: after a network header without options.
inline_ __u32 transport_at(struct packet *p)
{
	return sizeof(struct ethhdr) + (p->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
}

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

// reset refuses a TCP segment (RFC 9293 §3.10.7.1).
inline_ int reset(struct __sk_buff *skb, struct packet *p, struct tcphdr *t)
{
	if (t->flags & RST)
		return DROP;
	struct tcphdr r = { .src = t->dst, .dst = t->src, .doff = 0x50 };
	if (t->flags & ACK) {
		r.seq = t->ack;
		r.flags = RST;
	} else {
		__u32 used = p->size - (t->doff >> 4) * 4 + !!(t->flags & SYN) + (t->flags & FIN);
		r.ack = htonl(ntohl(t->seq) + used);
		r.flags = RST | ACK;
	}
	r.check = fold(add_pseudo(p, IPPROTO_TCP, sizeof(r), add(&r, sizeof(r), 0)));
	if (answer_header(skb, p, IPPROTO_TCP, sizeof(r), 64))
		return DROP;
	bpf_skb_store_bytes(skb, transport_at(p), &r, sizeof(r), 0);
	return back(skb);
}

// unreachable refuses a datagram as a host without that port does (RFC 792, RFC 4443 §3.1). It quotes the headers only.
inline_ int unreachable(struct __sk_buff *skb, struct packet *p)
{
	__u8 quote[48];
	__u32 at = transport_at(p), sum;
	if (p->fragment == LATER || p->l4 != at)
		return DROP;
	if (p->v6) {
		struct icmphdr h = { .type = 1, .code = 4 };
		if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), quote, 48))
			return DROP;
		sum = add(quote, 48, add(&h, sizeof(h), 0));
		h.check = fold(add_pseudo(p, IPPROTO_ICMPV6, sizeof(h) + 48, sum));
		if (answer_header(skb, p, IPPROTO_ICMPV6, sizeof(h) + 48, 64))
			return DROP;
		bpf_skb_store_bytes(skb, at, &h, sizeof(h), 0);
		bpf_skb_store_bytes(skb, at + sizeof(h), quote, 48, 0);
		return back(skb);
	}
	struct icmphdr h = { .type = 3, .code = 3 };
	if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), quote, 28))
		return DROP;
	h.check = fold(add(quote, 28, add(&h, sizeof(h), 0)));
	if (answer_header(skb, p, IPPROTO_ICMP, sizeof(h) + 28, 64))
		return DROP;
	bpf_skb_store_bytes(skb, at, &h, sizeof(h), 0);
	bpf_skb_store_bytes(skb, at + sizeof(h), quote, 28, 0);
	return back(skb);
}

// echo answers an echo request of any size. Of a fragmented one only the first piece has a type and a checksum.
inline_ int echo(struct __sk_buff *skb, struct packet *p)
{
	__u8 request = p->v6 ? 128 : 8, reply = p->v6 ? 129 : 0;
	if (p->fragment != LATER) {
		bpf_l4_csum_replace(skb, p->l4 + 2, htons(request << 8), htons(reply << 8), 2);
		bpf_skb_store_bytes(skb, p->l4, &reply, 1, 0);
	}
	return turn(skb, p);
}

// arp answers a question for a virtual address (RFC 826), and drops what claims to have one.
inline_ int arp(struct __sk_buff *skb)
{
	struct arphdr a;
	struct addr ip;
	if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &a, sizeof(a)))
		return PASS;
	__be32 v4;
	copy(&v4, a.sip, 4);
	mapped(&ip, v4);
	if (bpf_map_lookup_elem(&vips, &ip))
		return DROP;
	copy(&v4, a.tip, 4);
	mapped(&ip, v4);
	if (a.op != htons(1) || !bpf_map_lookup_elem(&vips, &ip))
		return PASS;
	a.op = htons(2);
	copy(a.tmac, a.smac, 6);
	copy(a.tip, a.sip, 4);
	vip_mac(a.smac);
	copy(a.sip, &v4, 4);
	answer_frame(skb, a.tmac);
	bpf_skb_store_bytes(skb, sizeof(struct ethhdr), &a, sizeof(a), 0);
	return back(skb);
}

// nd does the same for IPv6 (RFC 4861 §4.3, §4.4). Whoever asks without an address is about to take the virtual one
// (RFC 4862 §5.4) and gets the answer that all nodes get.
inline_ int nd(struct __sk_buff *skb, struct packet *p)
{
	struct { struct icmphdr h; struct addr target; __u8 option, length, mac[6]; } m;
	if (bpf_skb_load_bytes(skb, p->l4, &m, 24))
		return PASS;
	if (!bpf_map_lookup_elem(&vips, &m.target))
		return PASS;
	if (m.h.type == 136)
		return DROP;
	int probe = !p->src.w[0] && !p->src.w[1] && !p->src.w[2] && !p->src.w[3];
	p->dst = m.target;
	if (probe) {
		p->src.w[0] = htonl(0xff020000);
		p->src.w[3] = htonl(1);
	}
	m.h = (struct icmphdr){ .type = 136, .rest = htonl(probe ? 0x20000000 : 0x60000000) }; // solicited, override
	m.option = 2; // target link-layer address, 1 unit of 8 bytes
	m.length = 1;
	vip_mac(m.mac);
	m.h.check = fold(add_pseudo(p, IPPROTO_ICMPV6, sizeof(m), add(&m, sizeof(m), 0)));
	if (answer_header(skb, p, IPPROTO_ICMPV6, sizeof(m), 255))
		return DROP;
	if (probe) {
		struct { __be16 group; __be32 low; } __attribute__((packed)) all_nodes = { htons(0x3333), htonl(1) };
		set_mac(skb, (__u8 *)&all_nodes);
	}
	bpf_skb_store_bytes(skb, transport_at(p), &m, sizeof(m), 0);
	return back(skb);
}
