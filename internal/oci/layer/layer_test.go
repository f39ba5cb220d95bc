package layer

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, es []Entry, bodies map[string]string) ([]byte, *TOC) {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, e := range es {
		var r io.Reader
		if e.Type == Regular {
			e.Size = int64(len(bodies[e.Path]))
			r = strings.NewReader(bodies[e.Path])
		}
		if err := w.Write(e, r); err != nil {
			t.Fatal(err)
		}
	}
	toc, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), toc
}

// allTypes is a layer with everything a canonical layer can hold.
func allTypes() ([]Entry, map[string]string) {
	at := time.Unix(1700000000, 0)
	long := strings.Repeat("n", 200)
	return []Entry{
		{Path: "a", Type: Dir, Mode: 0o755, ModTime: at},
		{Path: "a", Type: Opaque},
		{Path: "a/b", Type: Regular, Mode: 0o4755, UID: 1000, GID: 1000, ModTime: at.Add(123456789)},
		{Path: "a/c", Type: HardLink, Mode: 0o4755, UID: 1000, GID: 1000, ModTime: at.Add(123456789), Link: "a/b"},
		{Path: "a/gone", Type: Whiteout},
		{Path: "a-b", Type: Regular, Mode: 0o600, UID: 4000000000, GID: 3000000, ModTime: time.Unix(-5, 500000000)},
		{Path: "dev", Type: Dir, Mode: 0o2755, GID: 7, ModTime: at},
		{Path: "dev/blk", Type: Block, Mode: 0o660, DevMajor: 8, DevMinor: 1, ModTime: at},
		{Path: "dev/fifo", Type: Fifo, Mode: 0o644, ModTime: at},
		{Path: "dev/null", Type: Char, Mode: 0o666, DevMajor: 1, DevMinor: 3, ModTime: at},
		{Path: "implied/" + long + "/" + long, Type: Regular, Mode: 0o644, ModTime: at},
		{Path: "lnk", Type: Symlink, Mode: 0o777, Link: "../../etc/passwd", ModTime: at},
		{Path: "new\nline", Type: Regular, Mode: 0o644, ModTime: at},
		{Path: "opaque", Type: Opaque},
		{Path: "opaque/x", Type: Dir, Mode: 0o1777, ModTime: at},
		{Path: "ümlaut", Type: Regular, Mode: 0o755, ModTime: at, Xattrs: map[string]string{
			"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "user.k": "v\nw"}},
	}, map[string]string{"a/b": "hello", "a-b": strings.Repeat("x", 513), "new\nline": strings.Repeat("y", 700000)}
}

func TestRoundTrip(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners and devices")
	}
	es, bodies := allTypes()
	raw, toc := write(t, es, bodies)
	ix, err := Index(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(toc, ix); d != "" {
		t.Fatalf("Index of what Writer wrote (-writer +index):\n%s", d)
	}
	dir := t.TempDir()
	un, err := Unpack(context.Background(), bytes.NewReader(raw), dir, UnpackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(toc, un); d != "" {
		t.Fatalf("Unpack's TOC:\n%s", d)
	}
	var again bytes.Buffer
	pk, err := Pack(context.Background(), &again, dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(toc, pk); d != "" {
		t.Fatalf("Pack's TOC:\n%s", d)
	}
	if !bytes.Equal(raw, again.Bytes()) {
		t.Fatal("Pack of the unpacked tree has other bytes")
	}
	b, err := toc.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var back TOC
	if err := back.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(toc, &back); d != "" {
		t.Fatalf("MarshalBinary:\n%s", d)
	}
}
