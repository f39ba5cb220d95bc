package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/userns"
)

// hide makes a whiteout of the file name in dir, of an upper directory, if its
// name is one (layer.Hidden), so that the tree is what the layer will say.
func hide(dir, name string) error {
	hides, all, reserved := layer.Hidden(name)
	if !reserved {
		return nil
	}
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		return err
	}
	switch {
	case all:
		mark := opaqueTrusted
		if userns.Inside() { // where overlays are mounted with userxattr
			mark = opaqueUser
		}
		if err := unix.Lsetxattr(dir, mark, []byte("y"), 0); err != nil {
			return &os.PathError{Op: "set xattr " + mark, Path: dir, Err: err}
		}
	case hides != "":
		path := filepath.Join(dir, hides)
		_, err := os.Lstat(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return err // what is there hides as much
		}
		if err := unix.Mknod(path, unix.S_IFCHR, 0); err != nil {
			return fmt.Errorf("make whiteout %s: %w", path, err)
		}
	}
	return nil
}
