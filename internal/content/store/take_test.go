package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/strake-project/strake/internal/oci"
)

func TestTakeFile(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, release, err := s.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	dir, err := s.Scratch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	body := bytes.Repeat([]byte("blob"), 100_000)
	d := oci.DescriptorOf("application/octet-stream", body)
	take := func(b []byte) error {
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		err := s.TakeFile(ctx, d, path)
		if _, serr := os.Stat(path); !os.IsNotExist(serr) {
			t.Errorf("the file is still there: %v", serr)
		}
		return err
	}
	for name, b := range map[string][]byte{"short": body[1:], "long": append(bytes.Clone(body), 'x'), "other": bytes.ToUpper(body), "empty": nil} {
		if err := take(b); !errors.Is(err, oci.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
		if ok, _ := s.Has(ctx, d); ok {
			t.Fatalf("%s: the wrong blob is visible", name)
		}
	}
	for range 2 { // the second time it is there already
		if err := take(body); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.Open(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) {
		t.Errorf("the blob differs: %v", err)
	}
}
