package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What a build is to write is tried before the build: an hour's work is not to
// end with a directory that was not there.

// checkWritable fails where no file can appear, or be replaced, at path; a
// device or a pipe is written to as it is. It makes nothing.
func checkWritable(path string) error {
	fi, err := os.Stat(path)
	switch {
	case err == nil && fi.IsDir():
		return &fs.PathError{Op: "open", Path: path, Err: unix.EISDIR}
	case err == nil && !fi.Mode().IsRegular():
		return access(path, path, unix.W_OK)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return access(path, filepath.Dir(path), unix.W_OK|unix.X_OK)
}

// checkWritableDir fails where no file can be made in dir, which need not exist.
func checkWritableDir(dir string) error {
	at := filepath.Clean(dir)
	for {
		_, err := os.Stat(at)
		if err == nil {
			return access(dir, at, unix.W_OK|unix.X_OK)
		}
		up := filepath.Dir(at)
		if !errors.Is(err, fs.ErrNotExist) || up == at {
			return err
		}
		at = up
	}
}

// access asks the kernel, which knows of read-only file systems and of what
// root may not; the error is about path.
func access(path, at string, mode uint32) error {
	if err := unix.Faccessat(unix.AT_FDCWD, at, mode, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return nil
}

// checkResultFiles is for --iidfile and --metadata-file.
func (f *buildFlags) checkResultFiles() error {
	for _, path := range []string{f.iidFile, f.metadataFile} {
		if path == "" {
			continue
		}
		if err := checkWritable(path); err != nil {
			return err
		}
	}
	return nil
}
