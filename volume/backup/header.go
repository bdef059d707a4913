package backup

import (
	"fmt"
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
	var records []string
	record := func(key, value string) {
		if value != "" {
			records = append(records, paxRecord(key, value))
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
		record("mtime", paxTime(e.stat.Mtim))
	}
	for _, x := range e.xattrs {
		records = append(records, paxRecord(xattrPrefix+x.name, x.value))
	}
	if len(records) > 0 {
		data := strings.Join(records, "")
		buf = appendUSTAR(buf, "PaxHeaders/"+short(name), "", typeExtended, int64(len(data)), &entry{})
		buf = pad(append(buf, data...), int64(len(data)))
	}
	return appendUSTAR(buf, name, e.link, e.flag(), size, e)
}

// xattrPrefix begins the pax records of extended attributes, as star, GNU tar and bsdtar have them.
const xattrPrefix = "SCHILY.xattr."

// sparseName is what a reader that does not know sparse files will call what it extracts.
func sparseName(name string) string {
	i := strings.LastIndex(name, "/") + 1
	return name[:i] + "GNUSparseFile.0/" + name[i:]
}

// paxRecord writes "LENGTH KEY=VALUE\n", where LENGTH counts itself.
func paxRecord(key, value string) string {
	size := len(key) + len(value) + len(" =\n")
	total := size + len(strconv.Itoa(size))
	if total = size + len(strconv.Itoa(total)); size+len(strconv.Itoa(total)) != total {
		total++
	}
	return strconv.Itoa(total) + " " + key + "=" + value + "\n"
}

// paxTime writes a time in seconds with its fraction, without trailing zeros.
func paxTime(t unix.Timespec) string {
	sec, nsec := t.Sec, t.Nsec
	sign := ""
	if sec < 0 { // −0.25 s is {−1, 750000000}
		sign, sec = "-", -sec
		if nsec != 0 {
			sec, nsec = sec-1, 1e9-nsec
		}
	}
	if nsec == 0 {
		return sign + strconv.FormatInt(sec, 10)
	}
	return strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, sec, nsec), "0")
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

// appendUSTAR appends one ustar header block.
func appendUSTAR(buf []byte, name, link string, flag byte, size int64, e *entry) []byte {
	start := len(buf)
	buf = append(buf, make([]byte, block)...)
	h := buf[start:]
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
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return buf
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
