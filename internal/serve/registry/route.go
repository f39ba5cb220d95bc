package registry

import (
	"net/http"
	"strings"

	"github.com/strake-project/strake/internal/oci"
)

type kind int

const (
	kindBase kind = iota
	kindCatalog
	kindSearch
	kindTags
	kindReferrers
	kindManifest
	kindBlob
	kindUploads // start of an upload
	kindUpload  // one upload
)

// route is a parsed path.
type route struct {
	kind   kind
	name   string     // repository
	digest oci.Digest // of a blob, a subject or a manifest named by digest
	tag    string     // of a manifest named by tag
	upload string     // session
}

// maxName bounds a repository name; docker's own bound is the same.
const maxName = 255

// parsePath reads a path of the API from its end, because a repository's name
// may itself contain "blobs" or "manifests".
func parsePath(path string) (route, error) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		switch path {
		case "/v2":
			return route{}, nil
		case "/v1/search":
			return route{kind: kindSearch}, nil
		}
		return route{}, fault(codeNotFound, http.StatusNotFound, "the API begins at /v2/")
	}
	switch rest {
	case "":
		return route{}, nil
	case "_catalog":
		return route{kind: kindCatalog}, nil
	}
	parts := strings.Split(rest, "/")
	n := len(parts)
	end := func(i int) string {
		if i > n {
			return ""
		}
		return parts[n-i]
	}
	last := end(1)
	switch {
	case end(3) == "blobs" && end(2) == "uploads" && last == "" && n > 3:
		return route{kind: kindUploads, name: strings.Join(parts[:n-3], "/")}, nil
	case end(3) == "blobs" && end(2) == "uploads" && n > 3:
		return route{kind: kindUpload, name: strings.Join(parts[:n-3], "/"), upload: last}, nil
	case n < 3 || last == "":
	case end(2) == "blobs" && last == "uploads":
		return route{kind: kindUploads, name: strings.Join(parts[:n-2], "/")}, nil
	case end(2) == "tags" && last == "list":
		return route{kind: kindTags, name: strings.Join(parts[:n-2], "/")}, nil
	case end(2) == "blobs" || end(2) == "referrers":
		r := route{kind: kindBlob, name: strings.Join(parts[:n-2], "/")}
		if end(2) == "referrers" {
			r.kind = kindReferrers
		}
		var err error
		r.digest, err = parseDigest(last)
		return r, err
	case end(2) == "manifests":
		r := route{kind: kindManifest, name: strings.Join(parts[:n-2], "/")}
		if strings.Contains(last, ":") {
			var err error
			r.digest, err = parseDigest(last)
			return r, err
		}
		if !validTag(last) {
			return r, fault(codeTagInvalid, http.StatusBadRequest, "tag %q must be at most 128 letters, digits and _ . - and begin with none of the last two", last)
		}
		r.tag = last
		return r, nil
	}
	return route{}, fault(codeNotFound, http.StatusNotFound, "no such path in the distribution API")
}

func parseDigest(s string) (oci.Digest, error) {
	d := oci.Digest(s)
	if err := d.Validate(); err != nil || !d.Algorithm().Available() {
		return "", fault(codeDigestInvalid, http.StatusBadRequest, "digest %q must be sha256: and 64 hex digits, or sha512: and 128", s)
	}
	return d, nil
}

func alnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// validName is the specification's grammar of <name>: components of words of
// lower-case letters and digits, which "." "_" "__" or dashes separate.
func validName(s string) bool {
	if len(s) > maxName {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		for i := 0; i < len(part); {
			switch c := part[i]; {
			case alnum(c):
				i++
				continue
			case i == 0:
				return false
			case c == '-':
				for i < len(part) && part[i] == '-' {
					i++
				}
			case c == '.':
				i++
			case c == '_':
				i++
				if i < len(part) && part[i] == '_' {
					i++
				}
			default:
				return false
			}
			if i == len(part) || !alnum(part[i]) {
				return false
			}
		}
		if part == "" {
			return false
		}
	}
	return true
}

// validTag is the specification's grammar of a tag.
func validTag(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		word := alnum(c) || c >= 'A' && c <= 'Z' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return true
}
