package frontend_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// fillContext makes 20,000 files with 420 MB below dir.
func fillContext(b *testing.B, dir string) {
	r := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, 21000)
	for i := range 20000 {
		p := filepath.Join(dir, fmt.Sprintf("d%d", i/200))
		if i%200 == 0 {
			if err := os.MkdirAll(p, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		r.Read(buf)
		if err := os.WriteFile(filepath.Join(p, fmt.Sprintf("f%d", i)), buf, 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCopy builds FROM busybox, COPY of 20,000 files: with nothing
// changed since the last build, and with one file changed.
func BenchmarkCopy(b *testing.B) {
	l := newLab(b)
	fillContext(b, l.dir)
	const df = "FROM busybox\nCOPY . /data\n"
	l.build(df)
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			if _, err := l.try(df); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("one changed", func(b *testing.B) {
		n := 0
		for b.Loop() {
			n++
			l.write("d7/f1400", fmt.Sprint(n))
			if _, err := l.try(df); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRebuild builds 14 steps of which nothing changed.
func BenchmarkRebuild(b *testing.B) {
	l := newLab(b)
	df := "FROM busybox\n"
	for i := range 6 {
		l.write(fmt.Sprint("f", i), fmt.Sprint(i))
		df += fmt.Sprintf("RUN echo %d >/r%d\nCOPY f%d /f%d\n", i, i, i, i)
	}
	df += "ENV A=b\n"
	l.build(df)
	for b.Loop() {
		if _, err := l.try(df); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRun runs one command that does nothing, over and over.
func BenchmarkRun(b *testing.B) {
	l := newLab(b)
	n := 0
	for b.Loop() {
		n++
		if _, err := l.try(fmt.Sprintf("FROM busybox\nRUN true %d\n", n)); err != nil {
			b.Fatal(err)
		}
	}
}
