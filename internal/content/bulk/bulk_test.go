package bulk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWriter writes files of every awkward length in pieces of every awkward
// size, on a disk and on a tmpfs, which may know no direct I/O.
func TestWriter(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/dev/shm"} {
		for _, size := range []int{0, 1, blockSize - 1, blockSize, directFrom, directFrom + 1, 9*blockSize - 5, 9 * blockSize} {
			r := rand.NewChaCha8([32]byte{byte(size)})
			want := make([]byte, size)
			r.Read(want)
			f, err := os.CreateTemp(dir, "direct-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.Remove(f.Name())
			d := New(f)
			for rest := want; len(rest) > 0; {
				n := min(len(rest), 1+int(r.Uint64()%(300<<10)))
				if _, err := d.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := d.Finish(); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(f.Name())
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes came back as %d, %v", dir, size, len(got), err)
			}
			f.Close()
		}
	}
}

// TestFullDisk: a disk that is full in the middle is an error of Write or
// Finish, and both end.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := New(f)
	piece := make([]byte, 100<<10)
	for range 200 {
		if _, err = d.Write(piece); err != nil {
			break
		}
	}
	if err := errors.Join(err, d.Finish()); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
}
