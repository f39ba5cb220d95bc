package fileop

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/oci/layer"
)

// FuzzUnpackContext unpacks what came as a context's tar and writes the layer:
// no bytes may panic, and what is accepted makes a layer that can be read.
func FuzzUnpackContext(f *testing.F) {
	for _, h := range [][]*tar.Header{
		{{Name: "a", Typeflag: tar.TypeReg, Mode: 0o644}},
		{{Name: "../x/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "l", Linkname: "/etc", Typeflag: tar.TypeSymlink}, {Name: "l/f", Typeflag: tar.TypeReg}},
		{{Name: "h", Linkname: "missing", Typeflag: tar.TypeLink}, {Name: ".", Typeflag: tar.TypeDir}, {Name: ".wh.x", Typeflag: tar.TypeReg}},
		{{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, {Name: "d/x", Typeflag: tar.TypeReg}, {Name: "d", Typeflag: tar.TypeFifo}},
		{{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, one := range h {
			_ = w.WriteHeader(one)
		}
		_ = w.Close()
		f.Add(b.Bytes())
	}
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		src := New(nil)
		defer src.Close()
		src.SpoolIn(t.TempDir())
		ctx := context.Background()
		mk := &pb.FileAction{Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/c.tar", Data: data, Mode: 0o644}}}
		if err := src.Apply(ctx, mk, nil, nil, time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
		d := New(nil)
		defer d.Close()
		d.SpoolIn(t.TempDir())
		cp := &pb.FileAction{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{
			Src: "/c.tar", Dest: "/", AttemptUnpackDockerCompatibility: true, CreateDestPath: true, Mode: -1, Timestamp: -1,
		}}}
		if err := d.Apply(ctx, cp, src, nil, time.Unix(0, 0)); err != nil {
			return
		}
		var out bytes.Buffer
		w := layer.NewWriter(&out)
		if err := d.Write(ctx, w); err != nil {
			return
		}
		if _, err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(&out); ; {
			if _, err := tr.Next(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("the layer cannot be read: %v", err)
			}
		}
	})
}

// FuzzListing compares listings that may be damaged.
func FuzzListing(f *testing.F) {
	good, err := (&Selection{all: []selected{{e: &layer.Entry{Path: "a", Type: layer.Regular}}}}).Listing()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		_, _ = Changes(a, b)
		_, _ = Changes(b, a)
	})
}
