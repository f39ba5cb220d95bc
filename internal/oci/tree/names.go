package tree

import "github.com/strake-project/strake/internal/oci/layer"

// FirstNames has the first name of each file that has several.
type FirstNames map[string]string

// Relink makes e, an entry of a view that is at from there and may have another
// name by now, the file where no other name of it came before, else a hard link
// to the first: whichever of them a layer had as the file, and whether or not
// that one comes too. What is no regular file stays as it is.
func (n FirstNames) Relink(e *layer.Entry, from string) {
	if e.Type != layer.Regular {
		return
	}
	group := from
	if e.Link != "" {
		group = e.Link
	}
	e.Link = ""
	if first, seen := n[group]; seen {
		e.Type, e.Link = layer.HardLink, first
	} else {
		n[group] = e.Path
	}
}
