package term

import (
	"fmt"
	"io"
	"strings"

	"github.com/strake-project/strake/internal/build"
)

// warn keeps w for the summary and tells whether it is news: each platform of
// a build finds the same.
func (p *BuildPrinter) warn(w *build.Warning) bool {
	for _, have := range p.warned {
		if have.Short == w.Short && have.File == w.File && have.Line == w.Line {
			return false
		}
	}
	p.warned = append(p.warned, w)
	return true
}

// summary prints, as docker does below the progress, what the Dockerfile's
// checks found.
func (p *BuildPrinter) summary() {
	if len(p.warned) == 0 {
		return
	}
	switch p.view.(type) {
	case quietView, *rawView:
		return
	}
	head := "1 warning found (use docker --debug to expand):"
	if n := len(p.warned); n > 1 {
		head = fmt.Sprintf("%d warnings found (use docker --debug to expand):", n)
	}
	if p.out.IsTerminal() {
		head = "\x1b[33m" + head + "\x1b[0m"
	}
	var b strings.Builder
	b.WriteString("\n " + head + "\n")
	for _, w := range p.warned {
		b.WriteString(" - " + w.Short + "\n")
	}
	// A closed stderr must not stop a build.
	_, _ = io.WriteString(p.out, b.String())
}
