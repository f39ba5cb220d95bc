// Package rootfs turns a stack of layers into a root that a process can have:
// it has the layers unpacked side by side, works out the directories that must
// be laid over them, and turns what a process left in the upper directory into
// a new layer. The overlay itself is mounted by package sandbox, inside the
// process's own mount namespace, so nothing stays mounted when a process or
// strake dies.
package rootfs

import (
	"context"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// Root is an overlay to be mounted.
type Root struct {
	// Lowers are read-only trees, the topmost first.
	Lowers []string
	// Upper and Work take the writes; both empty means read-only.
	Upper, Work string
}

// Prepare returns the root of layers (diffIDs, lowest first), unpacking what
// has no tree yet, all side by side. Upper and Work are fresh directories
// that belong to ctx's lease. No layers gives an empty root.
func Prepare(ctx context.Context, s *store.Store, layers []oci.Digest) (*Root, error) {
	panic("unwritten")
}

// Commit makes r's upper directory the layer above its lowers and returns its
// TOC, or nil if nothing was changed. r must not be in use any more.
func Commit(ctx context.Context, s *store.Store, r *Root) (*layer.TOC, error) { panic("unwritten") }
