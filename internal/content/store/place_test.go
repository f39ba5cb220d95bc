package store_test

import (
	"bytes"
	"database/sql"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/ocitest"
)

func mount(t *testing.T, source, fstype, data string, flags uintptr) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount(source, dir, fstype, flags, data); err != nil {
		t.Skipf("mount %s: %v", fstype, err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestNoSpace(t *testing.T) {
	root := filepath.Join(mount(t, "tmpfs", "tmpfs", "size=4m", 0), "store")
	s := open(t, root)
	put(t, t.Context(), s, ocitest.Two(), "two")
	big := bytes.Repeat([]byte("0123456789abcdef"), 512<<10) // 8 MiB
	d := oci.DescriptorOf("application/octet-stream", big)
	tries := map[string]func() error{
		"Put": func() error { return s.Put(t.Context(), d, bytes.NewReader(big)) },
		"Resume": func() error {
			p, err := s.Resume(t.Context(), d)
			if err != nil {
				return err
			}
			defer p.Close()
			if _, err := io.Copy(p, bytes.NewReader(big)); err != nil {
				return errors.Join(err, p.Reset())
			}
			return p.Commit(t.Context())
		},
		"NewLayer": func() error {
			ctx, release := lease(t, s)
			defer release()
			w, err := s.NewLayer(ctx)
			if err != nil {
				return err
			}
			defer w.Abort()
			if err := w.Write(entry("f", len(big)), bytes.NewReader(big)); err != nil {
				// The layer's writer wraps what the store's file said.
				_, err2 := w.Commit(ctx)
				return errors.Join(err, err2)
			}
			_, err = w.Commit(ctx)
			return err
		},
	}
	for what, try := range tries {
		err := try()
		if !errors.Is(err, oci.ErrNoSpace) && !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s on a full disk: %v", what, err)
		}
		if ok, err := s.Has(t.Context(), d); ok || err != nil {
			t.Errorf("%s: half of a blob is visible: %v", what, err)
		}
	}
	err := tries["Put"]()
	if !errors.Is(err, oci.ErrNoSpace) || !strings.Contains(err.Error(), root) || strings.Contains(err.Error(), "\n") {
		t.Errorf("the error is %q", err)
	}
	// Full to the last block: reading goes on, writing fails cleanly.
	filler, ferr := os.Create(filepath.Join(filepath.Dir(root), "filler"))
	if ferr != nil {
		t.Fatal(ferr)
	}
	io.Copy(filler, zeros{})
	filler.Close()
	if err := s.Put(t.Context(), numbered(1).Blobs[0].Descriptor, bytes.NewReader(numbered(1).Blobs[0].Body)); !errors.Is(err, oci.ErrNoSpace) {
		t.Errorf("Put on a disk full to the last block: %v", err)
	}
	if n := len(images(t, s)); n != 1 {
		t.Errorf("%d images", n)
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	put(t, t.Context(), s, ocitest.One(), "one")
	collect(t, s)
	sound(t, s)
}

// A file that came to its place in a transaction which the full disk then
// refused has no row, and keeps no space either.
func TestFullDiskSweepsFilesWithoutRows(t *testing.T) {
	root := filepath.Join(mount(t, "tmpfs", "tmpfs", "size=4m", 0), "store")
	s := open(t, root)
	put(t, t.Context(), s, ocitest.Two(), "two")
	blob := numbered(1).Blobs[0]
	hex := blob.Digest.Encoded()
	left := filepath.Join(root, "blobs", "sha256", hex[:2], hex)
	if err := errors.Join(os.MkdirAll(filepath.Dir(left), 0o700), os.WriteFile(left, blob.Body, 0o600)); err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 512<<10) // 8 MiB
	if err := s.Put(t.Context(), oci.DescriptorOf("application/octet-stream", big), bytes.NewReader(big)); !errors.Is(err, oci.ErrNoSpace) {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file without a row is still there: %v", err)
	}
	sound(t, open(t, root))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestReadOnlyRoot(t *testing.T) {
	for _, c := range []struct {
		name   string
		killed bool // the last writer did not close the database
	}{{"closed", false}, {"killed", true}} {
		t.Run(c.name, func(t *testing.T) {
			dir := mount(t, "tmpfs", "tmpfs", "size=8m", 0)
			root := filepath.Join(dir, "store")
			s := open(t, root)
			im := ocitest.Two()
			put(t, t.Context(), s, im, "two")
			if c.killed {
				// What kill -9 leaves: the database and its log.
				copied := filepath.Join(dir, "copy")
				if err := os.CopyFS(copied, os.DirFS(root)); err != nil {
					t.Fatal(err)
				}
				os.Remove(filepath.Join(copied, "strake.db-shm"))
				root = copied
			}
			s.Close()
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			ro := open(t, root)
			if n := len(images(t, ro)); n != 1 {
				t.Fatalf("%d images on a read-only root", n)
			}
			ctx, _ := lease(t, ro)
			if _, err := ro.Find(ctx, "two"); err != nil {
				t.Error(err)
			}
			for _, b := range im.Blobs {
				readAll(t, ro, b.Descriptor)
			}
			for what, err := range map[string]error{
				"Put":       ro.Put(ctx, ocitest.One().Target, bytes.NewReader(nil)),
				"PutRecord": ro.PutRecord(ctx, store.Record{Bucket: "x", Key: "y"}),
				"Tag":       ro.Tag(ctx, name(t, "three:1"), im.Target),
			} {
				if err == nil || !strings.Contains(err.Error(), "read-only file system") || !strings.Contains(err.Error(), "--root") {
					t.Errorf("%s on a read-only root: %v", what, err)
				}
			}
			if _, err := store.Open(filepath.Join(dir, "new"), store.Options{}); err == nil || !strings.Contains(err.Error(), "--root") {
				t.Errorf("a new store on a read-only file system: %v", err)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	root := t.TempDir()
	open(t, root).Close()
	db, err := sql.Open("sqlite", filepath.Join(root, "strake.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := store.Open(root, store.Options{}); !errors.Is(err, oci.ErrUnsupported) || !strings.Contains(err.Error(), "newer strake") {
		t.Errorf("a newer schema: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, "strake.db"), bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(root, store.Options{}); !errors.Is(err, oci.ErrCorrupt) {
		t.Errorf("a damaged database: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(file, store.Options{}); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a file as root: %v", err)
	}
	// Root neither uses an ordinary user's store nor makes its database again.
	if os.Geteuid() == 0 {
		theirs := t.TempDir()
		open(t, theirs).Close()
		if err := os.WriteFile(filepath.Join(theirs, "userns"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := store.Open(theirs, store.Options{})
		_, rerr := store.Rebuild(t.Context(), theirs, store.Options{})
		if !errors.Is(err, oci.ErrDenied) || !errors.Is(rerr, oci.ErrDenied) {
			t.Errorf("an ordinary user's store: %v; made again: %v", err, rerr)
		}
	}
	// A name that means something to SQLite's URIs.
	odd := filepath.Join(t.TempDir(), "a?mode=ro#b%20c")
	put(t, t.Context(), open(t, odd), ocitest.One(), "one")
	if _, err := os.Stat(filepath.Join(odd, "strake.db")); err != nil {
		t.Error(err)
	}
}

// After a boot that differs, what was not synced is verified before its use.
func TestAfterPowerCut(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	ctx, release := lease(t, s)
	im := ocitest.Two()
	put(t, ctx, s, im, "two")
	found, err := s.Find(ctx, "two")
	if err != nil {
		t.Fatal(err)
	}
	var trees []string
	for _, l := range found.Layers {
		tree, err := s.Tree(ctx, l)
		if err != nil {
			t.Fatal(err)
		}
		trees = append(trees, tree)
	}
	dir, err := s.Scratch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(dir+"/up", 0o755), os.WriteFile(dir+"/up/f", []byte("only form"), 0o644)); err != nil {
		t.Fatal(err)
	}
	own, err := s.TakeTree(ctx, dir+"/up")
	if err != nil {
		t.Fatal(err)
	}
	release()
	if err := s.PutRecord(t.Context(), store.Record{Bucket: "x", Key: "y", Holds: []oci.Digest{own.DiffID}}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	db, err := sql.Open("sqlite", filepath.Join(root, "strake.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{"UPDATE blob SET boot = 'another'", "UPDATE layer SET boot = 'another' WHERE tree <> 0"} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	db.Close()
	// The disk lost one tree's file and one blob's end.
	if err := os.Truncate(filepath.Join(trees[0], "bin/hello"), 0); err != nil {
		t.Fatal(err)
	}
	hex := im.Blobs[1].Digest.Encoded()
	if err := os.Truncate(filepath.Join(root, "blobs/sha256", hex[:2], hex), 3); err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	ctx, _ = lease(t, s)
	if ok, err := s.Has(ctx, im.Blobs[1].Descriptor); ok || err != nil {
		t.Errorf("Has of a damaged blob = %v, %v", ok, err)
	}
	if got := readAll(t, s, im.Blobs[0].Descriptor); !bytes.Equal(got, im.Blobs[0].Body) {
		t.Error("a sound blob reads otherwise")
	}
	tree, err := s.Tree(ctx, found.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(tree, "bin/hello")); len(b) == 0 || err != nil {
		t.Errorf("the damaged tree was not made again: %q, %v", b, err)
	}
	tree, err = s.Tree(ctx, own.DiffID)
	if err != nil {
		t.Errorf("a sound tree: %v", err)
	}
	put(t, ctx, s, im, "two")
	sound(t, s)
	// The same again, where a tree is the layer's only form.
	s.Close()
	db, _ = sql.Open("sqlite", filepath.Join(root, "strake.db"))
	if _, err := db.Exec("UPDATE layer SET boot = 'another' WHERE tree <> 0"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if err := os.Truncate(filepath.Join(tree, "f"), 0); err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	if _, err := s.Tree(t.Context(), own.DiffID); !errors.Is(err, oci.ErrCorrupt) || !strings.Contains(err.Error(), "build or pull") {
		t.Errorf("a layer whose only form is damaged: %v", err)
	}
	if _, err := readBlob(s, oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: own.DiffID, Size: own.Size}); !errors.Is(err, oci.ErrCorrupt) {
		t.Errorf("reading it: %v", err)
	}
}
