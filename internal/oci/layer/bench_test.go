package layer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// The benchmarks' layer: 20,000 files of 20 KiB in 400 directories, about
// 400 MB, of which a compressor can save half.
const benchFiles, benchSize = 20000, 20 << 10

var benchTar = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	b.Grow(benchFiles * (benchSize + 1024))
	w := NewWriter(&b)
	body := make([]byte, benchSize)
	rnd := rand.New(rand.NewPCG(1, 2))
	for d := range 400 {
		at := time.Unix(1700000000, 0)
		dir := fmt.Sprintf("d%03d", d)
		w.Write(Entry{Path: dir, Type: Dir, Mode: 0o755, ModTime: at}, nil)
		for f := range benchFiles / 400 {
			for i := 0; i < len(body)/2; i++ {
				body[i] = byte(rnd.Uint32())
			}
			e := Entry{Path: fmt.Sprintf("%s/file%05d", dir, f), Type: Regular, Mode: 0o644, ModTime: at, Size: benchSize}
			if err := w.Write(e, bytes.NewReader(body)); err != nil {
				panic(err)
			}
		}
	}
	if _, err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
})

// benchDir is on a real disk where one is given: STRAKE_BENCH_DIR.
func benchDir(b *testing.B) string {
	dir, err := os.MkdirTemp(os.Getenv("STRAKE_BENCH_DIR"), "layer")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func BenchmarkIndex(b *testing.B) {
	raw := benchTar()
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Index(bytes.NewReader(raw)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnpack(b *testing.B) {
	raw := benchTar()
	b.SetBytes(int64(len(raw)))
	base := benchDir(b)
	n := 0
	for b.Loop() {
		dir := filepath.Join(base, fmt.Sprint(n))
		n++
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		if _, err := Unpack(context.Background(), bytes.NewReader(raw), dir, UnpackOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(dir)
		b.StartTimer()
	}
}

func BenchmarkPack(b *testing.B) {
	raw := benchTar()
	b.SetBytes(int64(len(raw)))
	dir := benchDir(b)
	if _, err := Unpack(context.Background(), bytes.NewReader(raw), dir, UnpackOptions{}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Pack(context.Background(), io.Discard, dir); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWriter is a COPY of files whose digests are known.
func BenchmarkWriter(b *testing.B) {
	body := make([]byte, benchSize)
	at := time.Unix(1700000000, 0)
	b.SetBytes(benchFiles * benchSize)
	b.ReportAllocs()
	names := make([]string, benchFiles)
	for i := range names {
		names[i] = fmt.Sprintf("d/file%05d", i)
	}
	r := bytes.NewReader(body)
	for b.Loop() {
		w := NewWriter(io.Discard)
		for _, n := range names {
			r.Reset(body)
			if err := w.Write(Entry{Path: n, Type: Regular, Mode: 0o644, ModTime: at, Size: benchSize, Digest: emptyDigest}, r); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTOC(b *testing.B) {
	t, err := Index(bytes.NewReader(benchTar()))
	if err != nil {
		b.Fatal(err)
	}
	raw, _ := t.MarshalBinary()
	b.Run("marshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			t.MarshalBinary()
		}
		b.ReportMetric(float64(len(raw))/float64(len(t.Entries)), "bytes/entry")
	})
	b.Run("unmarshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var back TOC
			if err := back.UnmarshalBinary(raw); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("implied", func(b *testing.B) {
		for b.Loop() {
			t.Implied()
		}
	})
}

func BenchmarkCompress(b *testing.B) {
	raw := benchTar()
	for _, p := range []Packing{Gzip, Zstd} {
		var packed bytes.Buffer
		b.Run(string(p), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				packed.Reset()
				w, err := Compress(&packed, p)
				if err != nil {
					b.Fatal(err)
				}
				for rest := raw; len(rest) > 0; {
					n := min(len(rest), chunkSize)
					w.Write(rest[:n])
					rest = rest[n:]
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(packed.Len())/float64(len(raw)), "ratio")
		})
		b.Run("un"+string(p), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				r, _, err := Decompress(bytes.NewReader(packed.Bytes()))
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); err != nil || n != int64(len(raw)) {
					b.Fatal(n, err)
				}
				r.Close()
			}
		})
	}
}
