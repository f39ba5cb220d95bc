package registry

import (
	"strconv"
	"strings"
)

// span is a part of a blob.
type span struct{ start, length int64 }

// parseRange reads a Range header for content of that size (RFC 9110, 14.2).
// whole says to answer with everything: there is no range, or one that may be
// ignored (several ranges, another unit, nonsense). ok is false where none of
// the range is there: status 416.
func parseRange(header string, size int64) (part span, whole, ok bool) {
	all := span{0, size}
	spec, found := strings.CutPrefix(header, "bytes=")
	if !found || strings.Contains(spec, ",") {
		return all, true, true
	}
	first, last, found := strings.Cut(strings.TrimSpace(spec), "-")
	if !found {
		return all, true, true
	}
	if first == "" { // the last n bytes
		n, valid := number(last)
		if !valid {
			return all, true, true
		}
		if n == 0 || size == 0 {
			return span{}, false, false
		}
		n = min(n, size)
		return span{size - n, n}, false, true
	}
	start, valid := number(first)
	if !valid {
		return all, true, true
	}
	end := size - 1
	if last != "" {
		if end, valid = number(last); !valid || end < start {
			return all, true, true
		}
	}
	if start >= size {
		return span{}, false, false
	}
	return span{start, min(end, size-1) - start + 1}, false, true
}

// parseContentRange reads an upload's Content-Range: "START-END", both
// inclusive, as the specification has it; "bytes START-END/SIZE" of RFC 9110 is
// understood too.
func parseContentRange(header string) (part span, ok bool) {
	header = strings.TrimPrefix(header, "bytes ")
	header, _, _ = strings.Cut(header, "/")
	first, last, found := strings.Cut(header, "-")
	if !found {
		return span{}, false
	}
	start, ok1 := number(first)
	end, ok2 := number(last)
	if !ok1 || !ok2 || end < start {
		return span{}, false
	}
	return span{start, end - start + 1}, true
}

// number is a decimal number without sign, below 2⁶².
func number(s string) (int64, bool) {
	if s == "" || len(s) > 19 {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n < 1<<62
}
