// Balances services' virtual addresses at the host's side of each container's veth pair, at tc.
//
//   from_container (ingress): to a virtual address → a backend chosen per flow, destination and source port rewritten
//   to_container   (egress):  from the backend of a known flow → as if from the virtual address
//
// All state is on the client's node: a backend may be anywhere in the network, and knows of nothing. Only the
// destination and the source port change, so the bridge forwards what comes out as it does everything else.
#include "flow.h"

enum { FRAGMENT_IDLE = 30 }; // seconds that a receiver waits for the rest (net.ipv4.ipfrag_time)

inline_ void note_fragment(struct packet *p, int reply, struct fragment *g)
{
	struct fragment_key k = { p->src, p->dst, p->id, p->proto, reply };
	g->seen = now();
	bpf_map_update_elem(&fragments, &k, g, BPF_ANY);
}

inline_ struct fragment *find_fragment(struct packet *p, int reply)
{
	struct fragment_key k = { p->src, p->dst, p->id, p->proto, reply };
	struct fragment *g = bpf_map_lookup_elem(&fragments, &k);
	return g && now() - g->seen <= FRAGMENT_IDLE ? g : 0;
}

// forget_fragment: an old entry with this identification would tear the datagram apart.
inline_ void forget_fragment(struct packet *p, int reply)
{
	struct fragment_key k = { p->src, p->dst, p->id, p->proto, reply };
	bpf_map_delete_elem(&fragments, &k);
}

inline_ int later_fragment(struct __sk_buff *skb, struct packet *p)
{
	struct fragment *g = find_fragment(p, 0);
	if (!g)
		return DROP;
	if (g->kind != FORWARD)
		return turn(skb, p);
	struct addr to = g->to;
	set_mac(skb, g->mac);
	set_addr(skb, p, 1, &p->dst, &to, p->proto);
	return PASS;
}

inline_ void count(struct __sk_buff *skb, struct flow *f)
{
	struct count *c = f->kind == ANSWERS ? 0 : bpf_map_lookup_elem(&counts, &f->backend);
	if (!c)
		return;
	c->packets++;
	c->bytes += skb->len;
}

// forward sends a packet of a flow on its way.
inline_ int forward(struct __sk_buff *skb, struct packet *p, struct flow *f, struct backend *b, __be16 from,
		    const __u8 proto)
{
	struct fragment g = { .to = b->addr, .kind = f->kind };
	copy(g.mac, b->mac, 6);
	if (p->fragment == FIRST)
		note_fragment(p, 0, &g);
	count(skb, f);
	if (f->kind != FORWARD)
		return turn(skb, p);
	set_mac(skb, g.mac);
	set_addr(skb, p, 1, &p->dst, &g.to, proto);
	set_port(skb, p, 0, from, f->port, proto);
	return PASS;
}

// to_service handles a TCP segment or UDP datagram for a virtual address. proto is known at each call, which halves what
// the kernel's verifier has to walk through.
inline_ int to_service(struct __sk_buff *skb, struct packet *p, struct vip *v, const __u8 proto)
{
	struct tcphdr h = {};
	const int tcp = proto == IPPROTO_TCP;
	if (p->fragment == LATER)
		return later_fragment(skb, p);
	if (bpf_skb_load_bytes(skb, p->l4, &h, tcp ? sizeof(h) : 4))
		return DROP;
	struct tuple t = { p->src, p->dst, h.src, h.dst };
	int syn = tcp && (h.flags & (SYN | ACK)) == SYN;
	__u8 try = 0;
	struct flow *f = find_flow(proto, &t), at;
	struct backend *b = f ? bpf_map_lookup_elem(&backends, &f->backend) : 0;
	if (b && (tcp ? !syn || connection_lives(&t, f, b, v, &try) : udp_lives(f))) {
		refresh(proto, &t, f, b);
		at = *f;
		if (tcp)
			client_closes(p, &h, &t, f, b);
	} else {
		if (f)
			forget(proto, &t, f, b);
		if (tcp && !syn)
			return reset(skb, p, &h);
		at = (struct flow){ .backend = pick(v, &t, proto, try), .tries = try };
		b = bpf_map_lookup_elem(&backends, &at.backend);
		if (!b)
			return tcp ? reset(skb, p, &h) : unreachable(skb, p);
		if (begin(skb, proto, &t, &at, b))
			return DROP; // no source port is free, or no memory: the client will try again
	}
	return forward(skb, p, &at, b, h.src, proto);
}

// quoted is the packet that an ICMP error is about.
struct quoted { struct packet p; __be16 src, dst; };

inline_ int is_error(struct packet *p, __u8 type)
{
	return p->v6 ? type >= 1 && type <= 4 : type == 3 || type == 11 || type == 12;
}

// quote reads the packet in an ICMP error; 0 if there is none that can belong to a flow.
inline_ int quote(struct __sk_buff *skb, struct packet *p, struct quoted *q)
{
	__u32 at = p->l4 + sizeof(struct icmphdr);
	__u8 type;
	if (p->fragment != WHOLE || bpf_skb_load_bytes(skb, p->l4, &type, 1) || !is_error(p, type))
		return 0;
	q->p.v6 = p->v6;
	if (p->v6) {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
			return 0;
		copy(&q->p.src, ip.src, 16);
		copy(&q->p.dst, ip.dst, 16);
		q->p.proto = ip.next;
		q->p.l4 = at + sizeof(ip);
	} else {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.ver_ihl != 0x45)
			return 0;
		mapped(&q->p.src, ip.src);
		mapped(&q->p.dst, ip.dst);
		q->p.proto = ip.proto;
		q->p.l4 = at + sizeof(ip);
	}
	if (q->p.proto != IPPROTO_TCP && q->p.proto != IPPROTO_UDP)
		return 0;
	return !bpf_skb_load_bytes(skb, q->p.l4, &q->src, 4);
}

// requote changes an address in the quoted header. For IPv4 that header's own checksum takes up the change, and so the
// message's stays as it is; for IPv6 it does not.
inline_ void requote(struct __sk_buff *skb, struct packet *p, int dst, struct addr *from, struct addr *to)
{
	__u32 at = p->l4 + sizeof(struct icmphdr) - sizeof(struct ethhdr), diff = difference(from, to);
	if (p->v6) {
		bpf_l4_csum_replace(skb, p->l4 + 2, 0, diff, 0);
		bpf_skb_store_bytes(skb, at + (dst ? V6_DST : V6_SRC), to, 16, 0);
	} else {
		bpf_l3_csum_replace(skb, at + V4_CHECK, 0, diff, 0);
		bpf_skb_store_bytes(skb, at + (dst ? V4_DST : V4_SRC), &to->w[3], 4, 0);
	}
}

// requote_port changes the source port (offset 0) or destination port (2) of the quoted packet.
inline_ void requote_port(struct __sk_buff *skb, struct packet *p, struct quoted *q, __u32 offset, __be16 from, __be16 to)
{
	if (from == to)
		return;
	bpf_l4_csum_replace(skb, p->l4 + 2, from, to, 2);
	bpf_skb_store_bytes(skb, q->p.l4 + offset, &to, 2, 0);
}

// error_to_service handles a client's ICMP error about what it got from a virtual address.
inline_ int error_to_service(struct __sk_buff *skb, struct packet *p)
{
	struct quoted q;
	if (!quote(skb, p, &q))
		return DROP;
	struct tuple t = { q.p.dst, q.p.src, q.dst, q.src };
	struct flow *f = find_flow(q.p.proto, &t);
	struct backend *b = f ? bpf_map_lookup_elem(&backends, &f->backend) : 0;
	if (!b)
		return DROP;
	if (f->kind != FORWARD) { // back to the same container, which then sees its own packet quoted
		requote(skb, p, 0, &q.p.src, &q.p.dst);
		requote(skb, p, 1, &q.p.dst, &q.p.src);
		return turn(skb, p);
	}
	struct addr to = b->addr;
	requote(skb, p, 0, &q.p.src, &to);
	requote_port(skb, p, &q, 2, q.dst, f->port);
	set_mac(skb, b->mac);
	set_addr(skb, p, 1, &p->dst, &to, p->proto);
	return PASS;
}

// error_to_client handles an ICMP error about what a client sent to a virtual address, from the backend or from anyone
// on the way. The client knows only of the virtual address.
inline_ int error_to_client(struct __sk_buff *skb, struct packet *p)
{
	struct quoted q;
	if (!quote(skb, p, &q))
		return PASS;
	struct tuple t = { q.p.src, q.p.dst, q.src, q.dst };
	struct reverse *r = find_reverse(q.p.proto, &t);
	if (!r)
		return PASS;
	struct addr vip = r->vip;
	__be16 port = r->port;
	requote(skb, p, 1, &q.p.dst, &vip);
	requote_port(skb, p, &q, 0, q.src, port);
	if (same(&p->src, &q.p.dst))
		set_addr(skb, p, 0, &p->src, &vip, p->proto);
	return PASS;
}

// icmp handles what a container sends to a virtual address by ICMP.
inline_ int icmp_to_service(struct __sk_buff *skb, struct packet *p)
{
	__u8 type;
	if (p->fragment == LATER)
		return turn(skb, p); // of a long echo request
	if (bpf_skb_load_bytes(skb, p->l4, &type, 1))
		return DROP;
	return type == (p->v6 ? 128 : 8) ? echo(skb, p) : error_to_service(skb, p);
}

inline_ int is_ip(struct __sk_buff *skb)
{
	return skb->protocol == htons(ETH_P_IP) || skb->protocol == htons(ETH_P_IPV6);
}

SEC("tc") int nd_from_ct(struct __sk_buff *skb)
{
	struct packet p = {};
	if (skb->protocol == htons(ETH_P_ARP))
		return arp(skb);
	if (!is_ip(skb) || !parse(skb, &p))
		return PASS;
	if (p.v6 && p.proto == IPPROTO_ICMPV6 && p.fragment == WHOLE) {
		__u8 type;
		if (!bpf_skb_load_bytes(skb, p.l4, &type, 1) && (type == 135 || type == 136))
			return nd(skb, &p);
	}
	struct vip *v = bpf_map_lookup_elem(&vips, &p.dst);
	if (!v)
		return PASS;
	if (p.proto == IPPROTO_TCP)
		return to_service(skb, &p, v, IPPROTO_TCP);
	if (p.proto == IPPROTO_UDP)
		return to_service(skb, &p, v, IPPROTO_UDP);
	if (p.proto == (p.v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return icmp_to_service(skb, &p);
	return DROP;
}

// reply handles a TCP segment or UDP datagram to a container, as if it came from the backend of a flow.
inline_ int reply(struct __sk_buff *skb, struct packet *p, const __u8 proto)
{
	struct tcphdr h = {};
	struct fragment g = {};
	if (p->fragment == LATER) {
		struct fragment *first = find_fragment(p, 1);
		if (first) {
			g.to = first->to;
			set_addr(skb, p, 0, &p->src, &g.to, proto);
		}
		return PASS;
	}
	if (bpf_skb_load_bytes(skb, p->l4, &h, proto == IPPROTO_TCP ? sizeof(h) : 4))
		return PASS;
	struct tuple t = { p->dst, p->src, h.dst, h.src };
	// No flow of ours has a port above those of reserve.
	struct reverse *r = ntohs(h.dst) < 32768 ? find_reverse(proto, &t) : 0;
	if (!r) {
		if (p->fragment == FIRST)
			forget_fragment(p, 1);
		return PASS;
	}
	g.to = r->vip;
	__be16 port = r->port;
	if (!(r->state & REPLIED))
		r->state |= REPLIED;
	if (p->fragment == FIRST)
		note_fragment(p, 1, &g);
	if (proto == IPPROTO_TCP)
		server_closes(p, &h, &t, r);
	set_addr(skb, p, 0, &p->src, &g.to, proto);
	set_port(skb, p, 2, h.dst, port, proto);
	return PASS;
}

SEC("tc") int nd_to_ct(struct __sk_buff *skb)
{
	struct packet p = {};
	if (!is_ip(skb) || !parse(skb, &p))
		return PASS;
	if (p.proto == IPPROTO_TCP)
		return reply(skb, &p, IPPROTO_TCP);
	if (p.proto == IPPROTO_UDP)
		return reply(skb, &p, IPPROTO_UDP);
	if (p.proto == (p.v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return error_to_client(skb, &p);
	return PASS;
}

char _license[] SEC("license") = "GPL";
