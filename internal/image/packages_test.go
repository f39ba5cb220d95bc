package image

import (
	"strings"
	"testing"
)

// FuzzPackages: an image's databases are foreign bytes; whatever is in them,
// every package that is found has a name and a version.
func FuzzPackages(f *testing.F) {
	f.Add("Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage")
	f.Add("P:musl\nV:1.2\nA:x86_64\n\nP:\nV:3\n" + strings.Repeat("x", 1<<17) + "\n\n")
	f.Fuzz(func(t *testing.T, s string) {
		dpkg, err := parseDpkg(strings.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		apk, err := parseApk(strings.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range append(dpkg, apk...) {
			if p.Name == "" || p.Version == "" {
				t.Errorf("%+v", p)
			}
		}
	})
}

func TestPackages(t *testing.T) {
	apk, err := parseApk(strings.NewReader("C:Q1\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\nR:libc.so\n\nP:busybox\nV:1.36\n"))
	if err != nil || len(apk) != 2 || apk[0] != (Package{"apk", "musl", "x86_64", "1.2.5-r0"}) || apk[1].Name != "busybox" {
		t.Errorf("apk: %v, %v", apk, err)
	}
	long := "Package: a\nDescription: " + strings.Repeat("long ", 50_000) + "\nVersion: 1\n"
	if got, err := parseDpkg(strings.NewReader(long)); err != nil || len(got) != 1 || got[0].Version != "1" {
		t.Errorf("after a long line: %v, %v", got, err)
	}
}
