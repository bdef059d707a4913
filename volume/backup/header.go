package backup

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// block is the unit of a tar archive, in bytes (POSIX.1-2017, pax, "ustar Interchange Format").
const block = 512

// The type flags of ustar, and of pax for an extended header.
const (
	typeFile, typeHardLink, typeSymlink = '0', '1', '2'
	typeChar, typeBlock, typeDir        = '3', '4', '5'
	typeFIFO, typeExtended              = '6', 'x'
)

// Limits of ustar's octal fields.
const (
	maxID8    = 1<<21 - 1 // seven octal digits
	maxSize12 = 1<<33 - 1 // eleven
	maxName   = 100
)

// appendHeader appends an entry's header: an extended one for what ustar has no room for, then ustar's. size is that of the
// data that follows; for a sparse file that is the map and the segments (GNU tar manual, "PAX Format, Version 1.0").
//
// archive/tar writes neither sparse files nor GNU.sparse records, therefore this.
func appendHeader(buf []byte, e *entry, size int64, segments []segment) []byte {
	name := e.name()
	start := len(buf)
	buf = append(buf, make([]byte, block)...) // for the extended header's own, if there is one
	record := func(key, value string) {
		if value != "" {
			buf = appendRecord(buf, "", key, value)
		}
	}
	if segments != nil {
		record("GNU.sparse.major", "1")
		record("GNU.sparse.minor", "0")
		record("GNU.sparse.name", name)
		record("GNU.sparse.realsize", strconv.FormatInt(e.stat.Size, 10))
		name = sparseName(name)
	}
	if len(name) > maxName || !ascii(name) {
		record("path", name)
	}
	if len(e.link) > maxName || !ascii(e.link) {
		record("linkpath", e.link)
	}
	if size > maxSize12 {
		record("size", strconv.FormatInt(size, 10))
	}
	if e.stat.Uid > maxID8 {
		record("uid", strconv.FormatUint(uint64(e.stat.Uid), 10))
	}
	if e.stat.Gid > maxID8 {
		record("gid", strconv.FormatUint(uint64(e.stat.Gid), 10))
	}
	if e.stat.Mtim.Nsec != 0 || e.stat.Mtim.Sec < 0 || e.stat.Mtim.Sec > maxSize12 {
		var room [32]byte
		buf = appendRecord(buf, "", "mtime", appendTime(room[:0], e.stat.Mtim))
	}
	for _, x := range e.xattrs {
		buf = appendRecord(buf, xattrPrefix, x.name, x.value)
	}
	if extended := int64(len(buf) - start - block); extended > 0 {
		putUSTAR(buf[start:], "PaxHeaders/"+short(name), "", typeExtended, extended, &entry{})
		buf = pad(buf, extended)
	} else {
		buf = buf[:start]
	}
	buf = append(buf, make([]byte, block)...)
	putUSTAR(buf[len(buf)-block:], name, e.link, e.flag(), size, e)
	return buf
}

// xattrPrefix begins the pax records of extended attributes, as star, GNU tar and bsdtar have them.
const xattrPrefix = "SCHILY.xattr."

// sparseName is what a reader that does not know sparse files will call what it extracts.
func sparseName(name string) string {
	i := strings.LastIndex(name, "/") + 1
	return name[:i] + "GNUSparseFile.0/" + name[i:]
}

// appendRecord appends "LENGTH KEY=VALUE\n", where LENGTH counts itself and the key has a prefix.
func appendRecord[V string | []byte](buf []byte, prefix, key string, value V) []byte {
	size := len(prefix) + len(key) + len(value) + len(" =\n")
	total := size + digits(size)
	if total = size + digits(total); size+digits(total) != total {
		total++
	}
	buf = append(append(strconv.AppendInt(buf, int64(total), 10), ' '), prefix...)
	return append(append(append(append(buf, key...), '='), value...), '\n')
}

// digits is how many a positive number has.
func digits(n int) int {
	count := 1
	for ; n >= 10; n /= 10 {
		count++
	}
	return count
}

// appendTime appends a time in seconds with its fraction, without trailing zeros.
func appendTime(buf []byte, t unix.Timespec) []byte {
	sec, nsec := t.Sec, t.Nsec
	if sec < 0 { // −0.25 s is {−1, 750000000}
		buf, sec = append(buf, '-'), -sec
		if nsec != 0 {
			sec, nsec = sec-1, 1e9-nsec
		}
	}
	buf = strconv.AppendInt(buf, sec, 10)
	if nsec == 0 {
		return buf
	}
	buf = strconv.AppendInt(buf, 1e9+nsec, 10) // the 1 gives way to the point
	buf[len(buf)-10] = '.'
	return bytes.TrimRight(buf, "0")
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// short cuts a name to what fits a header; an extended header has the whole.
func short(name string) string {
	const room = maxName - len("PaxHeaders/")
	if !ascii(name) {
		name = strings.Map(func(r rune) rune {
			if r >= 0x80 {
				return '_'
			}
			return r
		}, name)
	}
	return name[:min(len(name), room)]
}

// putUSTAR fills one ustar header block, which is all zeros.
func putUSTAR(buf []byte, name, link string, flag byte, size int64, e *entry) {
	h := buf[:block]
	copy(h[0:100], fit(name))
	octal(h[100:108], int64(e.stat.Mode&0o7777))
	octal(h[108:116], int64(min(e.stat.Uid, maxID8)))
	octal(h[116:124], int64(min(e.stat.Gid, maxID8)))
	octal(h[124:136], min(size, maxSize12))
	octal(h[136:148], min(max(e.stat.Mtim.Sec, 0), maxSize12))
	copy(h[148:156], "        ") // the checksum counts itself as spaces
	h[156] = flag
	copy(h[157:257], fit(link))
	copy(h[257:265], "ustar\x0000")
	if flag == typeChar || flag == typeBlock {
		octal(h[329:337], int64(min(unix.Major(e.stat.Rdev), maxID8)))
		octal(h[337:345], int64(min(unix.Minor(e.stat.Rdev), maxID8)))
	}
	sum := int64(0)
	for _, b := range h {
		sum += int64(b)
	}
	h[154] = 0
	octal(h[148:155], sum) // a space stays at its end
}

// fit cuts a name to the field's size; a longer or foreign one is in the extended header.
func fit(s string) string {
	if !ascii(s) {
		s = short(s)
	}
	return s[:min(len(s), maxName)]
}

// octal writes n in octal with leading zeros and a final NUL.
func octal(field []byte, n int64) {
	i := len(field) - 2
	for ; i >= 0; i-- {
		field[i] = byte('0' + n&7)
		n >>= 3
	}
}

// pad appends zeros up to the next block after data of a size.
func pad(buf []byte, size int64) []byte {
	if rest := size % block; rest != 0 {
		buf = append(buf, make([]byte, block-rest)...)
	}
	return buf
}

// segment is a piece of a sparse file that has data.
type segment struct{ at, size int64 }

// sparseMap writes the map that precedes the data of a sparse file, in whole blocks.
func sparseMap(segments []segment, size int64) []byte {
	if n := len(segments); n == 0 || segments[n-1].at+segments[n-1].size < size {
		segments = append(slices.Clone(segments), segment{size, 0}) // a hole at the end
	}
	out := strconv.AppendInt(nil, int64(len(segments)), 10)
	out = append(out, '\n')
	for _, s := range segments {
		out = append(strconv.AppendInt(out, s.at, 10), '\n')
		out = append(strconv.AppendInt(out, s.size, 10), '\n')
	}
	return pad(out, int64(len(out)))
}
