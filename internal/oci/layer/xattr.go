package layer

import "strings"

// The names of overlayfs' own xattrs, and of ours among them. Ours lie in
// overlay's name space because the kernel neither shows those in a mounted
// overlay nor copies them up: a mark stays on the tree it was made for.
const (
	overlayTrusted = "trusted.overlay."
	overlayUser    = "user.overlay."
	opaqueXattr    = "opaque"         // "y": the directory is opaque
	impliedXattr   = "strake.implied" // the tar does not name the directory
	rootXattr      = "strake.root"    // the tar names the root
	whiteoutXattr  = "whiteout"       // a whiteout where mknod is not allowed
)

// portable tells whether the xattr belongs to the image. What does not is
// overlayfs' bookkeeping and what the host's security modules write on every
// file of theirs; with those a tree would have other bytes on each host.
func portable(name string) bool {
	switch {
	case strings.HasPrefix(name, overlayTrusted), strings.HasPrefix(name, overlayUser):
		return false
	case strings.HasPrefix(name, "security."):
		return name == "security.capability"
	case strings.HasPrefix(name, "system."):
		return name == "system.posix_acl_access" || name == "system.posix_acl_default"
	}
	// "=" ends a PAX key, so such a name cannot be written.
	return name != "" && len(name) <= maxName && strings.IndexByte(name, '=') < 0 && strings.IndexByte(name, 0) < 0
}

// portableXattrs is m without what is not portable; m itself where that is
// all of it, nil where nothing is left.
func portableXattrs(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	n := 0
	for k := range m {
		if portable(k) {
			n++
		}
	}
	if n == len(m) || n == 0 {
		if n == 0 {
			return nil
		}
		return m
	}
	kept := make(map[string]string, n)
	for k, v := range m {
		if portable(k) {
			kept[k] = v
		}
	}
	return kept
}

// capability is the only xattr that docker writes into a layer it makes.
const capability = "security.capability"

// BuiltXattrs is m as a layer that a build or a commit makes has it: docker's
// layers carry file capabilities and nothing else, whatever a step, an archive
// or the context had on its files. Layers from elsewhere keep what they have.
func BuiltXattrs(m map[string]string) map[string]string {
	v, ok := m[capability]
	switch {
	case !ok:
		return nil
	case len(m) == 1:
		return m
	}
	return map[string]string{capability: v}
}
