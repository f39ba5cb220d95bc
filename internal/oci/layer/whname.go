package layer

import "strings"

// Hidden tells what a file called name means in a layer, where names that begin
// with ".wh." are not names: that hides is gone from the layers below, or that
// the whole directory hides what they have in it. Neither is said by a name
// that merely begins so: nothing (aufs' bookkeeping), or reserved is false.
//
// docker lets a build make such files, and what unpacks the image reads them
// as whiteouts: so does a layer that we make.
func Hidden(name string) (hides string, all, reserved bool) {
	switch hides, reserved = strings.CutPrefix(name, whiteoutPrefix); {
	case !reserved:
		return "", false, false
	case name == opaqueName:
		return "", true, true
	case strings.HasPrefix(name, aufsPrefix), hides == "", hides == ".", hides == "..":
		return "", false, true
	}
	return hides, false, true
}
