package term

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"text/template"

	"github.com/docker/cli/templates"
)

// Header names the columns of a table: from a row's field to its title.
type Header map[string]string

// Label is the title of a {{.Label "com.example.name"}} column.
func (Header) Label(key string) string {
	name := key[strings.LastIndexByte(key, '.')+1:]
	return strings.NewReplacer("-", " ", "_", " ").Replace(name)
}

// PrintRows prints rows by docker's --format: "table TEMPLATE" with a line of
// titles, "json" with an object a line, or TEMPLATE. A row is a pointer to a
// struct; its exported fields and methods are the placeholders, and its fields
// in the order of their names are its JSON. A command replaces the formats
// "table" and "" by its own default table.
//
// Nothing is printed where a row does not fit the template.
func PrintRows[Row any](w io.Writer, format string, header Header, rows []Row) error {
	if format == "json" {
		return printLines(w, rows)
	}
	text, table := strings.CutPrefix(format, "table")
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(strings.Trim(text, " "))
	tmpl, err := templates.Parse(text)
	if err != nil {
		return fmt.Errorf("template parsing error: %w", err)
	}
	escapeRows[Row](tmpl)
	body, err := fill(tmpl, rows)
	if err != nil {
		return fmt.Errorf("template parsing error: %w", err)
	}
	if !table {
		_, err := body.WriteTo(w)
		return err
	}
	out := bufio.NewWriterSize(w, 32<<10) // a tabwriter writes each cell
	tw := NewTable(out)
	// A title that the template cannot print is left out: docker does so too.
	_ = tmpl.Funcs(templates.HeaderFunctions).Execute(tw, header)
	if _, err := tw.Write([]byte{'\n'}); err != nil {
		return err
	}
	if _, err := body.WriteTo(tw); err != nil {
		return err
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return out.Flush()
}

// fill prints the rows by the template, many of them on two cores: of a list
// of 10,000 images templates are an eighth.
func fill[Row any](tmpl *template.Template, rows []Row) (*bytes.Buffer, error) {
	const many = 1000
	var second *bytes.Buffer
	var failed error
	var wg sync.WaitGroup
	if n := len(rows) / 2; n >= many {
		rest := rows[n:]
		rows = rows[:n]
		wg.Go(func() { second, failed = fill(tmpl, rest) })
	}
	var body bytes.Buffer
	for _, row := range rows {
		if err := tmpl.Execute(&body, row); err != nil {
			wg.Wait()
			return nil, err
		}
		body.WriteByte('\n')
	}
	wg.Wait()
	if second != nil {
		body.Write(second.Bytes())
	}
	return &body, failed
}

// escapeRows makes {{json .}} print a row as the format "json" does: with <>&
// escaped, which {{json .Field}} does not.
func escapeRows[Row any](tmpl *template.Template) {
	tmpl.Funcs(template.FuncMap{"json": func(v any) (string, error) {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		_, whole := v.(Row)
		enc.SetEscapeHTML(whole)
		err := enc.Encode(v)
		return strings.TrimSuffix(b.String(), "\n"), err
	}})
}

// printLines prints each row as a JSON object, with <>& escaped as docker does.
func printLines[Row any](w io.Writer, rows []Row) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, row := range rows {
		if err := enc.Encode(row); err != nil {
			return err
		}
	}
	_, err := b.WriteTo(w)
	return err
}

// NewTable aligns tab-separated columns as docker does.
func NewTable(w io.Writer) *tabwriter.Writer {
	return tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
}

// ObjectFormat is a parsed --format of inspect.
type ObjectFormat struct {
	json   bool
	indent string
	tmpl   *template.Template
}

// ParseObjectFormat reads --format: "" for an indented JSON array, "json" for
// the array in one line, else a template that runs once for each object.
func ParseObjectFormat(format string) (*ObjectFormat, error) {
	switch format {
	case "":
		return &ObjectFormat{json: true, indent: "    "}, nil
	case "json":
		return &ObjectFormat{json: true}, nil
	}
	tmpl, err := templates.Parse(format)
	if err != nil {
		return nil, fmt.Errorf("template parsing error: %w", err)
	}
	return &ObjectFormat{tmpl: tmpl}, nil
}

// Print prints what inspect found. A template runs on the Go value first, in
// which numbers compare and empty lists print as such, and, where that has no
// such field, on the JSON, because people write .Id as they see it. An object
// that does not fit is left out and its error joined to what is returned.
func (f *ObjectFormat) Print(w io.Writer, objects []any) error {
	if f.json {
		if objects == nil {
			objects = []any{}
		}
		return writeJSON(w, objects, f.indent)
	}
	var out bytes.Buffer
	var errs []error
	for _, o := range objects {
		line, err := f.line(o)
		if err != nil {
			errs = append(errs, fmt.Errorf("template parsing error: %w", err))
			continue
		}
		out.Write(append(line, '\n'))
	}
	if out.Len() == 0 {
		out.WriteByte('\n') // docker prints a line in any case
	}
	if _, err := out.WriteTo(w); err != nil {
		return err
	}
	return errors.Join(errs...)
}

func (f *ObjectFormat) line(o any) ([]byte, error) {
	var b bytes.Buffer
	if f.tmpl.Execute(&b, o) == nil {
		return b.Bytes(), nil
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber() // sizes stay whole numbers
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	strict, err := f.tmpl.Clone()
	if err != nil {
		return nil, err
	}
	b.Reset()
	// A key that is not there is an error, not "<no value>": a script must
	// notice that it asks for nothing.
	err = strict.Option("missingkey=error").Execute(&b, v)
	return b.Bytes(), err
}

func writeJSON(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := b.WriteTo(w)
	return err
}
