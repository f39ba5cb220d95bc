package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

type filesOptions struct {
	lookOptions
	recursive, json, quiet bool
	format                 string
}

// imageListCommand is docker's `image ls`, which with a second argument lists
// files of an image. Called by the name docker there is no second argument.
func (a *App) imageListCommand() *cobra.Command {
	cmd := a.imagesCommand("ls")
	cmd.Aliases = []string{"list"}
	if a.name == "docker" {
		return cmd
	}
	var o filesOptions
	images := cmd.RunE
	cmd.Use = "ls [OPTIONS] [REPOSITORY[:TAG]]\n        " + a.name + " image ls [OPTIONS] IMAGE PATH"
	cmd.Short = "List images, or the files of one"
	cmd.Long = `List images; or, with IMAGE and PATH, the files at PATH in the image as
"ls -l" does: mode, owner, size, time and name. Symlinks in PATH are followed
inside the image. Nothing is unpacked.` + lookLong
	cmd.Example += `
  strake image ls nginx /etc
  strake image ls -R --json nginx /etc/nginx`
	cmd.Args = maxArgs(2)
	fs := cmd.Flags()
	fs.BoolVarP(&o.recursive, "recursive", "R", false, "Files: list all below PATH too")
	fs.BoolVar(&o.json, "json", false, "Files: the same as --format json")
	o.register(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) < 2 {
			for _, name := range []string{"recursive", "json", "platform", "remote"} {
				if fs.Changed(name) {
					return fmt.Errorf("--%s is about files: name an IMAGE and a PATH in it", name)
				}
			}
			return images(cmd, args)
		}
		for _, name := range []string{"digests", "filter", "no-trunc", "tree"} { // -a is as well: all files are shown
			if fs.Changed(name) {
				return fmt.Errorf("--%s is about images: leave out the PATH", name)
			}
		}
		// The flags are declared by imagesCommand, so they have these types.
		o.format, _ = fs.GetString("format")
		o.quiet, _ = fs.GetBool("quiet")
		if o.json {
			if o.format != "" && o.format != "json" {
				return errors.New("--json and --format contradict each other")
			}
			o.format = "json"
		}
		return a.looking(cmd.Context(), func(ctx context.Context, s *store.Store) error {
			return a.listFiles(ctx, s, args[0], args[1], &o)
		})
	}
	return cmd
}

// fileRow is a file of an image; its fields are the placeholders.
type fileRow struct {
	Path    string
	Name    string // relative to what was asked for
	Type    string
	Mode    string
	Perm    string
	UID     int
	GID     int
	Size    int64
	ModTime string
	Link    string     `json:",omitempty"`
	Device  string     `json:",omitempty"`
	Digest  oci.Digest `json:",omitempty"`

	entry *layer.Entry
}

func (a *App) listFiles(ctx context.Context, s *store.Store, name, p string, o *filesOptions) error {
	im, err := a.look(ctx, s, name, &o.lookOptions)
	if err != nil {
		return err
	}
	top, err := inImage(ctx, im, name, p, true)
	if err != nil {
		return err
	}
	var rows []*fileRow
	add := func(e *layer.Entry, shown string) { rows = append(rows, newFileRow(e, shown)) }
	switch {
	case top.Type != layer.Dir:
		add(top, p)
	case o.recursive:
		err = tree.Walk(im.Tree, top.Path, func(e *layer.Entry) error {
			if e.Path != top.Path {
				add(e, strings.TrimPrefix(strings.TrimPrefix(e.Path, top.Path), "/"))
			}
			return ctx.Err()
		})
	default:
		var list []*layer.Entry
		list, err = im.Tree.ReadDir(top.Path)
		for _, e := range list {
			add(e, path.Base(e.Path))
		}
	}
	if err != nil {
		return daemon(err)
	}
	switch {
	case o.quiet && (o.format == "" || o.format == "table"):
		return term.PrintRows(a.Out, "{{.Name}}", nil, rows)
	case o.format == "":
		return a.printFiles(rows)
	case o.format == "table":
		o.format = "table {{.Mode}}\t{{.UID}}:{{.GID}}\t{{.Size}}\t{{.ModTime}}\t{{.Name}}"
	}
	header := term.Header{"Path": "PATH", "Name": "NAME", "Type": "TYPE", "Mode": "MODE", "Perm": "PERM", "UID": "UID", "GID": "GID",
		"Size": "SIZE", "ModTime": "MODIFIED", "Link": "LINK", "Device": "DEVICE", "Digest": "DIGEST"}
	return term.PrintRows(a.Out, o.format, header, rows)
}

func newFileRow(e *layer.Entry, shown string) *fileRow {
	r := &fileRow{
		Path: path.Join("/", e.Path), Name: shown, Type: fileType(e.Type),
		Mode: lsMode(e), Perm: fmt.Sprintf("%04o", e.Mode&0o7777), UID: e.UID, GID: e.GID, Size: e.Size,
		ModTime: e.ModTime.UTC().Format("2006-01-02T15:04:05.999999999Z07:00"), Digest: e.Digest, entry: e,
	}
	switch e.Type {
	case layer.Symlink:
		r.Link = e.Link
	case layer.Regular, layer.HardLink:
		if e.Link != "" {
			r.Link = "/" + e.Link
		}
	case layer.Char, layer.Block:
		r.Device = fmt.Sprintf("%d, %d", e.DevMajor, e.DevMinor)
	}
	return r
}

func fileType(t layer.Type) string {
	switch t {
	case layer.Dir:
		return "directory"
	case layer.Symlink:
		return "symlink"
	case layer.Char:
		return "char"
	case layer.Block:
		return "block"
	case layer.Fifo:
		return "fifo"
	}
	return "file"
}

// lsMode is the mode as ls prints it.
func lsMode(e *layer.Entry) string {
	b := []byte("?rwxrwxrwx")
	kinds := map[layer.Type]byte{layer.Regular: '-', layer.HardLink: '-', layer.Dir: 'd', layer.Symlink: 'l', layer.Char: 'c', layer.Block: 'b', layer.Fifo: 'p'}
	if c := kinds[e.Type]; c != 0 {
		b[0] = c
	}
	for i := range 9 {
		if e.Mode&(1<<(8-i)) == 0 {
			b[i+1] = '-'
		}
	}
	for _, s := range [...]struct {
		bit     uint32
		at      int
		on, off byte
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		if e.Mode&s.bit != 0 {
			if b[s.at] == 'x' {
				b[s.at] = s.on
			} else {
				b[s.at] = s.off
			}
		}
	}
	return string(b)
}

// printFiles prints rows as ls -l does, owners as numbers: names are the
// image's own matter.
func (a *App) printFiles(rows []*fileRow) error {
	owners, sizes := make([]string, len(rows)), make([]string, len(rows))
	wide, long := 0, 0
	for i, r := range rows {
		owners[i] = fmt.Sprintf("%d:%d", r.UID, r.GID)
		sizes[i] = strconv.FormatInt(r.Size, 10)
		if r.Device != "" {
			sizes[i] = r.Device
		}
		wide, long = max(wide, len(owners[i])), max(long, len(sizes[i]))
	}
	w := bufio.NewWriter(a.Out)
	for i, r := range rows {
		fmt.Fprintf(w, "%s %-*s %*s %s %s", r.Mode, wide, owners[i], long, sizes[i], r.entry.ModTime.Local().Format("2006-01-02 15:04"), safeName(r.Name))
		if r.entry.Type == layer.Symlink {
			fmt.Fprintf(w, " -> %s", safeName(r.Link))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// safeName quotes a name that would do something to the terminal, or to the
// line it stands in.
func safeName(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
