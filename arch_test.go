package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// floors is the map of ARCHITECTURE.md: a room imports only rooms of lower
// floors, its own parent or its own children. A room that is not named stands
// on its nearest named parent's floor.
var floors = map[string]int{
	"internal/oci":                 1,
	"internal/oci/ref":             1,
	"internal/oci/layer":           1,
	"internal/oci/tree":            1,
	"internal/userns":              1,
	"internal/content":             2,
	"internal/content/bulk":        2,
	"internal/content/store":       2,
	"internal/content/remote":      2,
	"internal/content/remote/auth": 2,
	"internal/content/archive":     2,
	"internal/rootfs":              2,
	"internal/sandbox":             2,
	"internal/sandbox/network":     2,
	"internal/sandbox/seccomp":     2,
	"internal/build":               3,
	"internal/build/cache":         3,
	"internal/build/frontend":      3,
	"internal/build/fileop":        3,
	"internal/build/git":           3,
	"internal/build/local":         3,
	"internal/build/output":        3,
	"internal/build/remote":        3,
	"internal/build/sshagent":      3,
	"internal/container":           3,
	"internal/image":               3,
	"internal/image/sbom":          3,
	"internal/serve/registry":      4,
	"internal/cli":                 5,
	"internal/cli/term":            5,
	"internal/ocitest":             9, // tests only
	"":                             9, // main
}

// sameFloor are the imports between rooms of one floor that are meant: rootfs
// asks the store for trees, the sandbox mounts what rootfs describes, and a
// tree is made of layers.
var sameFloor = map[[2]string]bool{
	{"internal/oci/tree", "internal/oci/layer"}:         true,
	{"internal/content/store", "internal/content/bulk"}: true,
	{"internal/rootfs", "internal/content/store"}:       true,
	{"internal/sandbox", "internal/rootfs"}:             true,
}

// maxLines bounds a source file. Tables that a program wrote do not count.
const maxLines = 520

const module = "github.com/strake-project/strake"

func TestArchitecture(t *testing.T) {
	fset := token.NewFileSet()
	rooms := map[string]bool{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "bin" || d.Name() == ".git") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, p, src, parser.ParseComments)
		if err != nil {
			return err
		}
		generated := ast.IsGenerated(f)
		if n := strings.Count(string(src), "\n"); n > maxLines && !generated && !strings.HasSuffix(p, "_test.go") {
			t.Errorf("%s has %d lines, the most is %d: what does it hide?", p, n, maxLines)
		}
		room := path.Dir(filepath.ToSlash(p))
		if room == "." {
			room = ""
		}
		rooms[room] = true
		if strings.HasSuffix(p, "_test.go") || f.Name.Name == "main" && room != "" {
			return nil // tests may look anywhere, generators stand alone
		}
		checkImports(t, p, room, f)
		checkDecls(t, fset, p, f, generated)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	chart, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	for room := range floors {
		if !rooms[room] {
			t.Errorf("floors names %s, which has no code", room)
		}
		short := strings.TrimPrefix(room, "internal/")
		if room != "" && !strings.Contains(string(chart), "`"+short+"`") && !strings.Contains(string(chart), "`"+room+"`") {
			t.Errorf("ARCHITECTURE.md does not say what %s knows", room)
		}
	}
}

func floorOf(room string) (int, bool) {
	for r := room; ; r = path.Dir(r) {
		if n, ok := floors[r]; ok {
			return n, true
		}
		if r == "." || r == "/" || r == "" || !strings.Contains(r, "/") {
			return 0, false
		}
	}
}

func checkImports(t *testing.T, file, room string, f *ast.File) {
	floor, ok := floorOf(room)
	if !ok {
		t.Errorf("%s: the room %s has no floor in arch_test.go", file, room)
		return
	}
	for _, spec := range f.Imports {
		imp, _ := strconv.Unquote(spec.Path.Value)
		other, ours := strings.CutPrefix(imp, module+"/")
		if !ours {
			continue
		}
		otherFloor, ok := floorOf(other)
		if !ok {
			t.Errorf("%s imports %s, which has no floor", file, other)
			continue
		}
		family := strings.HasPrefix(room+"/", other+"/") || strings.HasPrefix(other+"/", room+"/")
		if otherFloor >= floor && !family && !sameFloor[[2]string{room, other}] {
			t.Errorf("%s (floor %d) imports %s (floor %d)", file, floor, other, otherFloor)
		}
	}
}

// checkDecls refuses init functions, and package variables that look mutable:
// a map, slice or pointer is allowed where its comment calls it a table, and
// errors, regular expressions and interface checks always.
func checkDecls(t *testing.T, fset *token.FileSet, file string, f *ast.File, generated bool) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				t.Errorf("%s: init() at %s", file, fset.Position(d.Pos()))
			}
		case *ast.GenDecl:
			if d.Tok != token.VAR || generated {
				continue
			}
			for _, s := range d.Specs {
				v := s.(*ast.ValueSpec)
				for _, n := range v.Names {
					if n.Name != "_" && len(v.Values) == 0 {
						t.Errorf("%s: package variable %s has no value: it is there to be changed", file, n.Name)
					}
				}
			}
		}
	}
}
