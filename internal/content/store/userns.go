package store

import (
	"fmt"
	"os"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/userns"
)

// A tree that was made in a user namespace has other owners and other overlay
// xattrs than one that root makes; neither can use the other's.

// checkNamespace refuses an ordinary user's store to the machine's root.
func (s *Store) checkNamespace() error {
	if s.rootless {
		return nil
	}
	if _, err := os.Lstat(s.path("userns")); err != nil {
		return nil
	}
	return fmt.Errorf("store %s is an ordinary user's: what is unpacked in it belongs to ids of that user's namespace; use it as that user, or choose another place with --root DIR or STRAKE_ROOT: %w", s.root, oci.ErrDenied)
}

// markNamespace marks the store before its first tree.
func (s *Store) markNamespace() {
	if !userns.Inside() || s.readOnly != "" {
		return
	}
	f, err := os.OpenFile(s.path("userns"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil { // else it is marked already, or the next one to open it does that
		f.Close()
	}
}
