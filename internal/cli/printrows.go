package cli

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/docker/cli/templates"

	"github.com/strake-project/strake/internal/cli/term"
)

// printRows is term.PrintRows; what a template does wrong is said of the type
// that docker has for such rows.
func printRows[Row any](a *App, theirs, format string, header term.Header, rows []Row) error {
	var row Row
	return dockerTypes(term.PrintRows(a.Out, format, header, rows), fmt.Sprintf("%T", row), theirs, a.name)
}

// printTemplate prints v with the template format, which errors call name, or
// as JSON; theirs is docker's type of v.
func (a *App) printTemplate(name, format string, v any, theirs string) error {
	if format == "json" {
		format = "{{json .}}"
	}
	tmpl, err := templates.New(name).Parse(format)
	if err != nil {
		return &Failure{Code: 64, Err: fmt.Errorf("template parsing error: %w", err)}
	}
	var b bytes.Buffer
	err = tmpl.Execute(&b, v)
	b.WriteByte('\n') // docker prints a line in any case
	if _, werr := b.WriteTo(a.Out); werr != nil {
		return werr
	}
	return dockerTypes(err, fmt.Sprintf("%T", v), theirs, a.name)
}

// dockerTypes gives a template's error the name that docker's type has, where
// strake is called docker.
func dockerTypes(err error, ours, theirs, name string) error {
	if err == nil || name != "docker" {
		return err
	}
	return &renamed{err, strings.ReplaceAll(err.Error(), "in type "+ours, "in type "+theirs)}
}

// renamed is an error in other words.
type renamed struct {
	error
	text string
}

func (r *renamed) Error() string { return r.text }
func (r *renamed) Unwrap() error { return r.error }
