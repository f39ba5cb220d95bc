package layer

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// header writes e's headers.
func (w *Writer) header(e *Entry) error {
	name, flag := e.Path, byte(e.Type)
	switch e.Type {
	case Dir:
		name += "/" // "./" is the root
	case Whiteout:
		dir, base := splitPath(e.Path)
		name, flag = whiteoutPrefix+base, byte(Regular)
		if dir != "." {
			name = dir + "/" + name
		}
	case Opaque:
		name, flag = e.Path+"/"+opaqueName, byte(Regular)
		if e.Path == "." {
			name = opaqueName
		}
	}
	w.pax = w.pax[:0]
	if len(e.Xattrs) > 0 {
		w.keys = w.keys[:0]
		for k := range e.Xattrs {
			w.keys = append(w.keys, k)
		}
		slices.Sort(w.keys)
		for _, k := range w.keys {
			w.record(PAXXattr+k, e.Xattrs[k])
		}
	}
	// The keys below are in their sorted order; all of them come after
	// "SCHILY…", as capitals do.
	const maxOctal7, maxOctal11 = 0o7777777, 0o77777777777
	if e.GID > maxOctal7 {
		w.record("gid", strconv.Itoa(e.GID))
	}
	if !fits(e.Link, 100) {
		w.record("linkpath", e.Link)
	}
	sec, nsec := e.ModTime.Unix(), e.ModTime.Nanosecond()
	if sec < 0 || sec > maxOctal11 || nsec != 0 {
		w.record("mtime", paxTime(sec, nsec))
	}
	prefix, short, ok := splitUstar(name)
	if !ok {
		w.record("path", name)
	}
	if e.Size > maxOctal11 {
		w.record("size", strconv.FormatInt(e.Size, 10))
	}
	if e.UID > maxOctal7 {
		w.record("uid", strconv.Itoa(e.UID))
	}
	if err := w.writePAX(); err != nil {
		return err
	}
	b, err := w.block()
	if err != nil {
		return err
	}
	copy(b[0:100], short)
	copy(b[345:500], prefix)
	copyASCII(b[157:257], e.Link)
	ustar(b, e.Mode, octalOr0(int64(e.UID), maxOctal7), octalOr0(int64(e.GID), maxOctal7),
		octalOr0(e.Size, maxOctal11), octalOr0(sec, maxOctal11), flag)
	octal(b[329:337], e.DevMajor)
	octal(b[337:345], e.DevMinor)
	checksum(b)
	return nil
}

// writePAX writes the records collected in w.pax, if any, as an extended header.
func (w *Writer) writePAX() error {
	if len(w.pax) == 0 {
		return nil
	}
	b, err := w.block()
	if err != nil {
		return err
	}
	copy(b, "././@PaxHeader")
	ustar(b, 0, 0, 0, int64(len(w.pax)), 0, 'x')
	octal(b[329:337], 0)
	octal(b[337:345], 0)
	checksum(b)
	for p := w.pax; len(p) > 0; {
		b, err := w.room()
		if err != nil {
			return err
		}
		n := copy(b, p)
		w.advance(n)
		p = p[n:]
	}
	return w.pad()
}

// record appends the PAX record "LENGTH key=value\n", whose length counts its
// own digits.
func (w *Writer) record(key, value string) {
	n := len(key) + len(value) + 3
	size := n + digits(n)
	size = n + digits(size)
	w.pax = strconv.AppendInt(w.pax, int64(size), 10)
	w.pax = append(w.pax, ' ')
	w.pax = append(w.pax, key...)
	w.pax = append(w.pax, '=')
	w.pax = append(w.pax, value...)
	w.pax = append(w.pax, '\n')
}

func digits(n int) int {
	d := 1
	for ; n >= 10; n /= 10 {
		d++
	}
	return d
}

// paxTime is a decimal fraction without trailing zeros.
func paxTime(sec int64, nsec int) string {
	sign := ""
	if sec < 0 {
		sign = "-"
		sec = -sec
		if nsec > 0 {
			sec--
			nsec = 1e9 - nsec
		}
	}
	s := sign + strconv.FormatInt(sec, 10)
	if nsec == 0 {
		return s
	}
	return strings.TrimRight(fmt.Sprintf("%s.%09d", s, nsec), "0")
}

// fits tells whether a ustar field of n bytes can hold s: short and ASCII.
func fits(s string, n int) bool {
	if len(s) > n {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// splitUstar cuts name into ustar's prefix and name fields. Where that is not
// possible it returns what stands in the name field beside the PAX record.
func splitUstar(name string) (prefix, short string, ok bool) {
	if fits(name, 100) {
		return "", name, true
	}
	if fits(name, 256) {
		// The last "/" that leaves a prefix of at most 155 bytes; a directory's
		// own trailing one does not count.
		i := strings.LastIndexByte(name[:min(156, len(name)-1)], '/')
		if i > 0 && len(name)-i-1 <= 100 {
			return name[:i], name[i+1:], true
		}
	}
	var b [100]byte
	n := copyASCII(b[:], name)
	return "", string(bytes.TrimRight(b[:n], "/")), false
}

// copyASCII copies the ASCII bytes of s that fit.
func copyASCII(b []byte, s string) int {
	n := 0
	for i := 0; i < len(s) && n < len(b); i++ {
		if s[i] < 0x80 {
			b[n] = s[i]
			n++
		}
	}
	return n
}

func octalOr0(v, most int64) int64 {
	if v < 0 || v > most {
		return 0
	}
	return v
}

// ustar fills in the fields that every header has.
func ustar(b []byte, mode uint32, uid, gid, size, mtime int64, flag byte) {
	octal(b[100:108], int64(mode))
	octal(b[108:116], uid)
	octal(b[116:124], gid)
	octal(b[124:136], size)
	octal(b[136:148], mtime)
	b[156] = flag
	copy(b[257:], "ustar\x0000")
}

// octal writes v with leading zeros and a closing NUL.
func octal(b []byte, v int64) {
	for i := len(b) - 2; i >= 0; i-- {
		b[i] = '0' + byte(v&7)
		v >>= 3
	}
}

// checksum sums the block as if its own field were spaces.
func checksum(b []byte) {
	sum := int64(8 * ' ')
	for i, c := range b[:blockSize] {
		if i < 148 || i >= 156 {
			sum += int64(c)
		}
	}
	octal(b[148:155], sum)
	b[155] = ' '
}
