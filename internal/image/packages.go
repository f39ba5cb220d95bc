package image

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"

	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Package is a package that a package manager's database says is installed.
type Package struct {
	Manager string // "dpkg" or "apk"
	Name    string
	Arch    string
	Version string
}

// maxDatabase bounds what is read of one database, in bytes. Debian's largest
// installations have some ten megabytes.
const maxDatabase = 64 << 20

// databases are the files and directories that Packages reads.
func databases() []string {
	return []string{"var/lib/dpkg/status", "var/lib/dpkg/status.d", "lib/apk/db/installed", "usr/lib/apk/db/installed"}
}

// Packages lists what the databases of dpkg and apk in v say is installed.
// Damaged lines are left out: an image's file is not to be believed, only read.
func Packages(ctx context.Context, v tree.View) ([]Package, error) {
	var all []Package
	read := func(path string, parse func(io.Reader) ([]Package, error)) error {
		at, err := tree.Resolve(v, path, true)
		if err != nil {
			return nil // a loop of links is no database
		}
		e, err := v.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) || err == nil && e.Type != layer.Regular {
			return nil
		}
		if err != nil {
			return err
		}
		r, err := v.Open(ctx, at)
		if err != nil {
			return err
		}
		defer r.Close()
		found, err := parse(io.LimitReader(r, maxDatabase))
		all = append(all, found...)
		return err
	}
	paths := []string{"var/lib/dpkg/status"}
	// Distroless images have a file for each package.
	if list, err := v.ReadDir("var/lib/dpkg/status.d"); err == nil {
		for _, e := range list {
			if !strings.HasSuffix(e.Path, ".md5sums") {
				paths = append(paths, e.Path)
			}
		}
	}
	for _, p := range paths {
		if err := read(p, parseDpkg); err != nil {
			return nil, err
		}
	}
	for _, p := range []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"} {
		if p[0] == 'u' {
			if at, err := tree.Resolve(v, "lib", true); err == nil && at == "usr/lib" {
				break // read already
			}
		}
		if err := read(p, parseApk); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// parseDpkg reads paragraphs of "Key: value" (deb-status is RFC 822's form).
func parseDpkg(r io.Reader) ([]Package, error) {
	var all []Package
	p, status := Package{Manager: "dpkg"}, ""
	err := paragraphs(r, func(line string) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "Package":
			p.Name = strings.TrimSpace(value)
		case "Version":
			p.Version = strings.TrimSpace(value)
		case "Architecture":
			p.Arch = strings.TrimSpace(value)
		case "Status":
			status = strings.TrimSpace(value)
		}
	}, func() {
		// Removed packages keep a paragraph; those of status.d have no status.
		if p.Name != "" && p.Version != "" && (status == "" || strings.HasSuffix(status, " installed")) {
			all = append(all, p)
		}
		p, status = Package{Manager: "dpkg"}, ""
	})
	return all, err
}

// parseApk reads paragraphs of "K:value".
func parseApk(r io.Reader) ([]Package, error) {
	var all []Package
	p := Package{Manager: "apk"}
	err := paragraphs(r, func(line string) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "P":
			p.Name = value
		case "V":
			p.Version = value
		case "A":
			p.Arch = value
		}
	}, func() {
		if p.Name != "" && p.Version != "" {
			all = append(all, p)
		}
		p = Package{Manager: "apk"}
	})
	return all, err
}

// paragraphs calls line for each line and end after each paragraph. The rest
// of a line longer than the buffer is passed over.
func paragraphs(r io.Reader, line func(string), end func()) error {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		b, more, err := br.ReadLine()
		if err == io.EOF {
			end()
			return nil
		}
		if err != nil {
			return err
		}
		if text := string(b); strings.TrimSpace(text) == "" {
			end()
		} else {
			line(text)
		}
		for more && err == nil {
			_, more, err = br.ReadLine()
		}
	}
}
