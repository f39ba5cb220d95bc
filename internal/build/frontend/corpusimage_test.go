package frontend_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/strake-project/strake/internal/oci"
)

// corpusBusybox is the digest of the machine's busybox, which goldens name "busybox".
var corpusBusybox string

// corpusBase is the image "base" of the corpus: busybox and a few things to
// stumble over. Goldens name only what a case changes of it.
func corpusBase(t *testing.T, busybox string) []byte {
	bin, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var spec strings.Builder
	for _, d := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "usr", "usr/local", "usr/local/lib", "var"} {
		fmt.Fprintf(&spec, "dir 755 0:0 %s\n", d)
	}
	for a := range strings.FieldsSeq(string(applets)) {
		if a != "busybox" {
			fmt.Fprintf(&spec, "sym %s busybox\n", "bin/"+a)
		}
	}
	spec.WriteString(`dir 1777 0:0 tmp
file 644 0:0 etc/passwd root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/usr/sbin:/bin/false\nuser:x:1000:1000::/home/user:/bin/sh\nother:x:1001:2000::/nohome:/bin/sh\n
file 644 0:0 etc/group root:x:0:\ndaemon:x:1:\nuser:x:1000:\nstaff:x:50:user,other\nother:x:2000:\nextra:x:3000:user\n
file 644 0:0 etc/hosts
file 644 0:0 etc/hostname
file 644 0:0 etc/resolv.conf
dir 755 0:0 home
dir 750 1000:1000 home/user
dir 2775 1000:50 data
file 640 1000:50 data/one 1\n
file 4755 0:0 data/suid s\n
dir 700 1001:2000 data/private
file 600 1001:2000 data/private/key k\n
dir 755 0:0 tree
dir 755 0:0 tree/a
dir 755 0:0 tree/a/b
file 644 0:0 tree/a/b/c c\n
file 644 0:0 tree/a/d d\n
file 644 0:0 tree/e e\n
sym tree/to-a a
sym tree/to-c a/b/c
dir 755 0:0 link
sym link/dir ../tree/a
sym link/absdir /tree/a
sym link/file ../tree/e
sym link/absfile /tree/e
sym link/dangling nowhere
sym link/absdangling /no/where
sym link/out ../../../../tree/a
sym link/loop loop
dir 755 0:0 hard
file 644 0:0 hard/1 hard\n
link hard/2 hard/1
link hard/3 hard/1
dir 755 0:0 odd
file 644 0:0 odd/with\x20space s\n
file 644 0:0 odd/ünï u\n
fifo 622 0:0 odd/fifo
xattr security.capability 0100000200040000000000000000000000000000
file 755 0:0 odd/cap cap\n
`)
	return specTar(t, "file 755 0:0 bin/busybox\n"+spec.String(), string(bin))
}

// specTar makes a tar of a text, one entry a line:
//
//	dir|file|fifo|sym|link|char|block|xattr|as …
//
// "file MODE UID:GID NAME [TEXT]", "sym NAME TARGET", "link NAME TARGET [MODE UID:GID]",
// "char MODE MAJOR:MINOR NAME", "xattr KEY HEX" and "pax KEY VALUE" (for the
// next entry; mtime is seconds), "form ustar|pax|gnu" (of all that follow),
// "as gz|xz|bz2|zst" (pack the whole). Names and texts know \n, \x20 and the like.
// first is the content of the first file, for what no text can hold.
func specTar(t testing.TB, spec string, first ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	pack := ""
	modes := map[string]int64{}
	var pax map[string]string
	var form tar.Format
	un := func(s string) string {
		r, err := strconv.Unquote(`"` + s + `"`)
		if err != nil {
			t.Fatalf("spec %q: %v", s, err)
		}
		return r
	}
	for line := range strings.Lines(spec) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 5)
		h := tar.Header{Mode: 0o777, PAXRecords: pax, Format: form}
		if m := pax["mtime"]; m != "" {
			delete(pax, "mtime")
			h.ModTime = parseTime(t, m)
		}
		text := ""
		switch f[0] {
		case "#":
			continue
		case "as":
			pack = f[1]
			continue
		case "xattr":
			raw, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			pax = with(pax, "SCHILY.xattr."+f[1], string(raw))
			continue
		case "pax":
			pax = with(pax, f[1], un(f[2]))
			continue
		case "form":
			form = map[string]tar.Format{"ustar": tar.FormatUSTAR, "pax": tar.FormatPAX, "gnu": tar.FormatGNU}[f[1]]
			continue
		case "sym", "link":
			h.Typeflag, h.Name, h.Linkname = tar.TypeSymlink, un(f[1]), un(f[2])
			if f[0] == "link" { // has what its target has, as tar writes it
				h.Typeflag, h.Mode = tar.TypeLink, modes[h.Linkname]
				if len(f) > 4 {
					n, err := strconv.ParseInt(f[3], 8, 64)
					if _, err2 := fmt.Sscanf(f[4], "%d:%d", &h.Uid, &h.Gid); err != nil || err2 != nil {
						t.Fatalf("spec %q", line)
					}
					h.Mode = n
				}
			}
		default:
			types := map[string]byte{"dir": tar.TypeDir, "file": tar.TypeReg, "fifo": tar.TypeFifo, "char": tar.TypeChar, "block": tar.TypeBlock}
			h.Typeflag, h.Name = types[f[0]], un(f[3])
			a, b, _ := strings.Cut(f[2], ":")
			n1, err1 := strconv.Atoi(a)
			n2, err2 := strconv.Atoi(b)
			mode, err3 := strconv.ParseInt(f[1], 8, 64)
			if err1 != nil || err2 != nil || err3 != nil || h.Typeflag == 0 {
				t.Fatalf("spec %q", line)
			}
			h.Mode = mode
			if f[0] == "char" || f[0] == "block" {
				h.Devmajor, h.Devminor = int64(n1), int64(n2)
			} else {
				h.Uid, h.Gid = n1, n2
			}
			if f[0] == "dir" && !strings.HasSuffix(h.Name, "/") {
				h.Name += "/"
			}
			if len(f) > 4 {
				text = un(f[4])
			}
			if f[0] == "file" && len(first) > 0 {
				text, first = first[0], nil
			}
		}
		pax = nil
		modes[h.Name] = h.Mode
		h.Size = int64(len(text))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	switch pack {
	case "":
		return buf.Bytes()
	case "gz":
		z := gzip.NewWriter(&out)
		z.Write(buf.Bytes())
		z.Close()
	case "bz2":
		cmd := exec.Command("busybox", "bzip2", "-c")
		cmd.Stdin, cmd.Stdout = &buf, &out
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	case "xz":
		z, err := xz.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		z.Write(buf.Bytes())
		z.Close()
	case "zst":
		z, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		z.Write(buf.Bytes())
		z.Close()
	default:
		t.Fatalf("spec: unknown form %q", pack)
	}
	return out.Bytes()
}

func plainTar(t testing.TB, b []byte) []byte {
	if !bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
		return b
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	return b
}

// file is a file of a flattened image; hard links share one *file.
type file struct {
	kind, path, sha, text, target string
	mode                          int64
	uid, gid                      int
	size                          int64
	dev                           string
	xattrs                        []string
	mtime                         time.Time
}

// flatten applies layers to one another by the rules of the image
// specification. It is written anew here, apart from package tree, so that no
// mistake of that package hides in a golden.
func flatten(t testing.TB, layers [][]byte) map[string]*file {
	fs := map[string]*file{}
	remove := func(p string, self bool) {
		for q := range fs {
			if q == p && self || strings.HasPrefix(q, p+"/") || p == "" && q != "" {
				delete(fs, q)
			}
		}
	}
	for n, b := range layers {
		var entries []*tar.Header
		var bodies [][]byte
		r := tar.NewReader(bytes.NewReader(b))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("layer %d: %v", n, err)
			}
			body, err := io.ReadAll(r)
			if err != nil {
				t.Fatalf("layer %d: %v", n, err)
			}
			entries, bodies = append(entries, h), append(bodies, body)
		}
		for _, h := range entries { // whiteouts first: they speak of lower layers
			dir, name := path.Split(strings.TrimPrefix(path.Clean("/"+h.Name), "/"))
			if gone, ok := strings.CutPrefix(name, ".wh."); ok && n > 0 {
				if name == ".wh..wh..opq" {
					remove(strings.TrimSuffix(dir, "/"), false)
				} else {
					remove(dir+gone, true)
				}
			}
		}
		for i, h := range entries {
			p := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
			if strings.HasPrefix(path.Base(p), ".wh.") {
				continue
			}
			f := fileOf(h, p, bodies[i])
			if h.Typeflag == tar.TypeLink {
				to := strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
				if f = fs[to]; f == nil {
					t.Errorf("layer %d: %s is a hard link to %s, which is not there", n, p, to)
					continue
				}
			}
			if old := fs[p]; old != nil && old.kind == "d" && f.kind != "d" {
				remove(p, true)
			}
			fs[p] = f
		}
	}
	return fs
}

func fileOf(h *tar.Header, p string, body []byte) *file {
	f := &file{path: p, mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid, size: h.Size, target: h.Linkname, mtime: h.ModTime}
	switch h.Typeflag {
	case tar.TypeDir:
		f.kind = "d"
	case tar.TypeSymlink:
		f.kind, f.mode = "l", 0o777
	case tar.TypeFifo:
		f.kind = "p"
	case tar.TypeChar:
		f.kind, f.dev = "c", fmt.Sprintf("%d:%d", h.Devmajor, h.Devminor)
	case tar.TypeBlock:
		f.kind, f.dev = "b", fmt.Sprintf("%d:%d", h.Devmajor, h.Devminor)
	default:
		f.kind = "f"
		f.sha = fmt.Sprintf("%x", sha256.Sum256(body))
		printable := func(r rune) bool { return unicode.IsPrint(r) || r == '\n' || r == '\t' }
		if len(body) <= 100 && utf8.Valid(body) && !strings.ContainsFunc(string(body), func(r rune) bool { return !printable(r) }) {
			f.text = strconv.Quote(string(body))
		}
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			f.xattrs = append(f.xattrs, fmt.Sprintf("%s=%x", name, v))
		}
	}
	slices.Sort(f.xattrs)
	return f
}

func (f *file) String() string {
	s := fmt.Sprintf("%s %04o %d:%d", f.kind, f.mode, f.uid, f.gid)
	switch f.kind {
	case "f":
		switch {
		case f.sha == corpusBusybox:
			s += " busybox"
		case f.text != "":
			s += " " + f.text
		default:
			s += fmt.Sprintf(" %d bytes sha256:%s", f.size, f.sha[:16])
		}
	case "l":
		s += " -> " + f.target
	case "c", "b":
		s += " " + f.dev
	}
	for _, x := range f.xattrs {
		s += " " + x
	}
	return s
}

// golden is the text that a case is held to: the config, the history above the
// base's and how the files differ from the base's.
func golden(t testing.TB, c *corpusCase, config []byte, layers [][]byte, lower map[string]*file) string {
	var img oci.Image
	if err := json.Unmarshal(config, &img); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fields := map[string]json.RawMessage{}
	var raw struct{ Config map[string]json.RawMessage }
	if err := json.Unmarshal(config, &raw); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell", "StopSignal", "User", "Volumes", "WorkingDir"} {
		switch v := string(raw.Config[k]); v {
		case "", "null", `""`, "[]", "{}", `["PATH=/bin"]`:
		default:
			fields[k] = json.RawMessage(v)
		}
	}
	if string(fields["WorkingDir"]) == `"/"` {
		delete(fields, "WorkingDir") // the same as none; docker of old says none
	}
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		var v any
		if err := json.Unmarshal(fields[k], &v); err != nil {
			t.Fatal(err)
		}
		s, _ := json.Marshal(v)
		fmt.Fprintf(&b, "config.%s %s\n", k, s)
	}
	if img.Author != "" {
		fmt.Fprintf(&b, "author %s\n", img.Author)
	}
	history := img.History
	base := len(layers) > 0 && len(history) > 0 && (history[0].CreatedBy == "import" || strings.HasPrefix(history[0].Comment, "Imported"))
	if base {
		history = history[1:]
	} else {
		lower = nil
	}
	filled := 0
	for _, h := range history {
		mark := ""
		if h.EmptyLayer {
			mark = " (empty)"
		} else {
			filled++
		}
		fmt.Fprintf(&b, "history%s %q\n", mark, h.CreatedBy)
	}
	if n := len(layers) - len(lower)/max(len(lower), 1); n != filled {
		t.Errorf("%d layers above the base, %d in the history", n, filled)
	}
	all := flatten(t, layers)
	b.WriteString(listing(all, lower))
	b.WriteString(c.listMore(all))
	return b.String()
}

func listing(fs, lower map[string]*file) string {
	groups := map[*file][]string{}
	for p, f := range fs {
		groups[f] = append(groups[f], p)
	}
	was := map[*file][]string{}
	for p, f := range lower {
		was[f] = append(was[f], p)
	}
	all := map[string]bool{}
	for p := range fs {
		all[p] = true
	}
	for p := range lower {
		all[p] = true
	}
	var b strings.Builder
	for _, p := range slices.Sorted(maps.Keys(all)) {
		f, old := fs[p], lower[p]
		if p == "" {
			continue
		}
		if f == nil {
			fmt.Fprintf(&b, "gone %q\n", p)
			continue
		}
		slices.Sort(groups[f])
		slices.Sort(was[old])
		line := f.String()
		if old != nil && old.String() == line && slices.Equal(groups[f], was[old]) {
			continue
		}
		if len(groups[f]) > 1 {
			line += fmt.Sprintf(" (one of %q)", groups[f])
		}
		fmt.Fprintf(&b, "file %q %s\n", p, line)
	}
	return b.String()
}
